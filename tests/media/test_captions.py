"""Caption files, good and bad."""

import os
from pathlib import Path

import av
import pytest

from triptych.media.captions import parse_cues, read_sidecars, sidecars_of
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


def test_embedded_subtitles_count_from_second_0(data_dir: Path, tmp_path: Path) -> None:
    """A container may add an offset to all its times."""
    path = data_dir / "decode_robustness" / "files" / "with_subtitles.mp4"
    with av.open(str(path)) as source, av.open(str(tmp_path / "late.mp4"), "w") as late:
        wanted = [source.streams.video[0], source.streams.subtitles[0]]
        added = {stream.index: late.add_stream_from_template(stream) for stream in wanted}
        for packet in source.demux(wanted):
            if packet.size and packet.dts is not None and packet.pts is not None:
                packet.pts += round(5 / packet.time_base)
                packet.dts += round(5 / packet.time_base)
                packet.stream = added[packet.stream.index]
                late.mux(packet)
    with av.open(str(tmp_path / "late.mp4")) as late:
        assert late.start_time == 5_000_000
    with Recording(path) as one, Recording(tmp_path / "late.mp4") as two:
        for early, later in zip(one.timeline.captions, two.timeline.captions, strict=True):
            assert later.text == early.text and later.start == pytest.approx(early.start, abs=0.06)


def test_text_around_the_words() -> None:
    text = "00:01.000 --> 00:02.000\n<v Ann>Fish &amp; chips&nbsp;{\\an8}<c.red>now</c>, 1 < 2 and 4 > 3"
    (cue,) = parse_cues(text)
    assert cue.text == "Fish & chips now, 1 < 2 and 4 > 3"
    assert parse_cues(f"{'9' * 400}:00:01.000 --> 00:02.000\nlong ago") == ()


def test_old_encodings(tmp_path: Path) -> None:
    cue = "00:00:01,000 --> 00:00:02,000\nça va"
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "cp1252"):
        (tmp_path / "clip.srt").write_bytes(cue.encode(encoding))
        assert [one.text for one in read_sidecars(tmp_path / "clip.mp4", 4.0)] == ["ça va"], encoding


def test_captions_of_another_recording_are_not_taken(tmp_path: Path) -> None:
    for name in ("clip.mp4", "clip.two.mp4", "clip.two.srt", "clip.lecture.srt", "other.pt-BR.vtt", "other.en.srt"):
        (tmp_path / name).write_text(SRT)
    assert sidecars_of(tmp_path / "clip.mp4") == []
    assert sidecars_of(tmp_path / "clip.two.mp4") == [tmp_path / "clip.two.srt"]
    assert sidecars_of(tmp_path / "other.mp4") == [tmp_path / "other.en.srt", tmp_path / "other.pt-BR.vtt"]


def test_a_folder_is_listed_once_for_all_its_recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("words")
    os.utime(tmp_path, (1, 1))
    listed = []
    original = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: listed.append(self) or original(self))
    for name in ("a", "b", "a"):
        assert bool(sidecars_of(tmp_path / f"{name}.mp4")) == (name == "a")
    assert len(listed) == 1
