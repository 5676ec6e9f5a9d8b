"""Caption files, good and bad."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.media.captions import parse_cues, read_sidecars
from triptych.media.recording import Recording

SRT = """1
00:00:01,000 --> 00:00:02,500
<i>A dog</i>
barks

2
00:01:00,000 --> 00:01:01,000
silence
"""
VTT = """WEBVTT

00:01.000 --> 00:03.000 align:start
bin <00:01.500>blue <00:02.000>now
"""


def test_srt() -> None:
    first, second = parse_cues(SRT)
    assert (first.text, first.start, first.end) == ("A dog barks", 1.0, 2.5)
    assert (second.text, second.start) == ("silence", 60.0)


def test_vtt_with_the_times_of_words() -> None:
    (cue,) = parse_cues(VTT)
    assert cue.text == "bin blue now"
    assert cue.words == (("bin", 1.0, 1.5), ("blue", 1.5, 2.0), ("now", 2.0, 3.0))


def test_cues_without_blank_lines_and_out_of_order() -> None:
    text = "00:00:05,000 --> 00:00:06,000\nlater\n2\n00:00:01,000 --> 00:00:02,000\nearlier"
    assert [cue.text for cue in parse_cues(text)] == ["earlier", "later"]


def test_sidecars_in_order_of_preference(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    assert read_sidecars(path, 4.0) == ()
    (tmp_path / "clip.txt").write_text("a dog\nin the rain")
    assert read_sidecars(path, 4.0)[0].text == "a dog in the rain"
    (tmp_path / "clip.en.vtt").write_text(VTT)
    assert read_sidecars(path, 4.0)[0].text == "bin blue now"
    (tmp_path / "clip.srt").write_text(SRT)
    assert len(read_sidecars(path, 4.0)) == 2


def test_embedded_subtitles(data_dir: Path) -> None:
    with Recording(data_dir / "decode_robustness" / "files" / "with_subtitles.mp4") as recording:
        assert recording.timeline.captions and "text" in recording.timeline.streams


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.text() | st.lists(st.sampled_from(["00:00:01,0 --> 00:00:02,0", "1", "", "x <i>", "-->"])).map("\n".join))
def test_garbage_never_raises(text: str) -> None:
    for cue in parse_cues(text):
        assert cue.end > cue.start and cue.text
