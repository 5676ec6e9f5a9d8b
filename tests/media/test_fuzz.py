"""Damaged caption files and damaged media: never a crash, a hang or anything but a clear error."""

import csv
import io
import random
import time
from pathlib import Path

import av
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from triptych.errors import TriptychError
from triptych.media.captions import parse_cues, read_sidecars
from triptych.media.collection import Rows
from triptych.media.processes import spread
from triptych.media.recording import Recording

LINES = ["00:00:01,0 --> 00:00:02,0", "01:00.5 --> 02:00.000 align:start", "99999:00:00.0 --> 1", "1", "", "x <i>"]
LINES += [
    "WEBVTT",
    "NOTE no",
    "<00:01.500>word <c>",
    "-->",
    "{\\an8}",
    "&amp;&#0;&#x110000;",
    "\ufeff",
    "00:00:0\u0661,0 --> ",
]
SOUP = st.text() | st.lists(st.sampled_from(LINES) | st.text(max_size=9)).map("\n".join)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(SOUP)
@example("9" * 5000 + ":00:00,0 --> 00:00:01,0")
def test_cues(text: str) -> None:
    cues = parse_cues(text)
    assert [cue.start for cue in cues] == sorted(cue.start for cue in cues)
    for cue in cues:
        assert cue.end > cue.start >= 0 and cue.text.strip() == cue.text != ""
        assert all(word for word, _, _ in cue.words)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary() | SOUP.map(lambda text: text.encode("utf-16")), st.sampled_from([".srt", ".vtt", ".txt"]))
def test_caption_files(tmp_path: Path, data: bytes, suffix: str) -> None:
    path = tmp_path / f"clip{suffix}"
    path.write_bytes(data)
    for caption in read_sidecars(tmp_path / "clip.mp4", 4.0):
        assert caption.text and caption.end > caption.start
    path.unlink()


@pytest.mark.slow
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary() | st.lists(st.sampled_from([b'"', b",", b"\n", b"\r\n", b"path", b"a.mp4", b'""'])).map(b"".join),
    st.sampled_from([".csv", ".jsonl"]),
)
def test_manifests(tmp_path: Path, data: bytes, suffix: str) -> None:
    path = tmp_path / f"m{suffix}"
    path.write_bytes(b"path,caption\n" + data if suffix == ".csv" else data)
    try:
        rows = Rows.open(path)
        paths = rows.column("path")
        assert paths == [row["path"] for row in rows]
    except TriptychError as error:
        assert str(path) in str(error)
        return
    if suffix == ".csv":
        lines = csv.reader(io.StringIO(path.read_bytes().decode(), newline="\n"))
        assert paths == [line[0] for line in lines if line][1:]


def _damaged(path: Path, seed: int) -> bytes:
    """Return a file with bytes changed, cut out, put in, or lost at the end."""
    dice = random.Random(seed)
    data = bytearray(path.read_bytes())
    kind = dice.randrange(4)
    if kind == 0:
        for _ in range(dice.choice([1, 4, 20, 200])):
            data[dice.randrange(len(data))] = dice.randrange(256)
    elif kind == 1:  # the headers, at the beginning or at the end
        for _ in range(dice.choice([1, 3, 10])):
            data[dice.choice([1, -1]) * dice.randrange(min(len(data), 2000))] = dice.randrange(256)
    elif kind == 2:
        del data[dice.randrange(len(data)) :]
    else:
        place = dice.randrange(len(data))
        data[place : place + dice.randrange(2000)] = dice.randbytes(dice.randrange(500))
    return bytes(data)


def _read(job: tuple[Path, int]) -> tuple[float, str]:
    """Ask a damaged file for everything; return the seconds that it took, and an error that is none of ours."""
    path, seed = job
    dice = random.Random(seed)
    av.logging.set_level(av.logging.PANIC)
    began, wrong = time.monotonic(), ""
    try:
        with Recording(_damaged(path, seed), name=path.name) as recording:
            timeline = recording.timeline
            if "video" in timeline.streams:
                recording.frames([0.0, timeline.end * dice.random()], short_side=32)
                recording.frames([timeline.end * dice.random()])
                for _ in recording.pictures(5.0, 16, end=20.0):
                    pass
            if "audio" in timeline.streams:
                start = timeline.end * dice.random()
                recording.waveform(start, start + 1.0, 16_000)
                recording.waveform(-0.5, 0.5, 8_000)
    except TriptychError as error:
        wrong = "" if path.name in str(error) else f"names no file: {error}"
    except Exception as error:
        wrong = repr(error)
    return time.monotonic() - began, wrong


@pytest.mark.slow
@pytest.mark.timeout(600)
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32))
def test_damaged_media(data_dir: Path, seed: int) -> None:
    """In processes of their own, so that a fault of FFmpeg is told from one of the test."""
    paths = [path for path in sorted((data_dir / "decode_robustness" / "files").iterdir()) if path.stat().st_size]
    paths = [path for path in paths if path.stat().st_size < 700_000]
    dice = random.Random(seed)
    jobs = [(dice.choice(paths), dice.randrange(2**32)) for _ in range(80)]
    for job, outcome in spread(_read, jobs, 2):
        assert outcome is not None, f"the process died of {job}"
        seconds, wrong = outcome
        assert not wrong and seconds < 60, (job, seconds, wrong)
