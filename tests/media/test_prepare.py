"""Preparing a collection: once, in parallel, whatever happens in between."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.media import clips
from triptych.errors import TriptychError, UsageError
from triptych.media import prepare
from triptych.media.collection import Rows
from triptych.media.prepare import Encoding, encode, prepare_collection
from triptych.media.recording import Recording

TIMES = [k / 10 for k in range(20)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    (root / "deep").mkdir(parents=True)
    clips.write(root / "b.mp4", TIMES)
    clips.write(root / "deep" / "a.mkv", TIMES)
    (root / "broken.mp4").write_bytes(b"no video at all")
    return root


def test_prepare_quarantines_and_remembers(folder: Path, tmp_path: Path) -> None:
    summary = prepare_collection(Rows.open(folder), tmp_path / "out", workers=1)
    assert summary.recordings == 2 and [path for path, _ in summary.quarantined] == ["broken.mp4"]
    with (tmp_path / "out" / "quarantine.csv").open() as file:
        assert "cannot be opened" in next(csv.DictReader(file))["reason"]
    rows = Rows.open(tmp_path / "out")
    assert len(rows) == 2 and "probe" in rows.columns
    with rows.recording(0) as recording:
        assert clips.read(recording.frames([1.0]).numpy()[0]) == 10


def test_prepare_re_encodes_once(folder: Path, tmp_path: Path) -> None:
    encoding = Encoding(short_side=24, gop=5, fps=10.0)
    out = tmp_path / "out"
    prepare_collection(Rows.open(folder), out, encoding, workers=1)
    made = {path: path.stat().st_mtime_ns for path in (out / "clips").iterdir()}
    assert len(made) == 2
    clips.write(folder / "new.mp4", TIMES)
    assert prepare_collection(Rows.open(folder), out, encoding, workers=1).recordings == 3
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert len(list((out / "clips").iterdir())) == 3
    (folder / "new.mp4").unlink()
    with Rows.open(out).recording(0) as recording:
        assert min(recording.probe.width, recording.probe.height) == 24
        assert clips.read(recording.frames([1.0]).numpy()[0]) == 10
    with pytest.raises(UsageError, match="prepared with other settings"):
        prepare_collection(Rows.open(folder), out, Encoding(gop=9), workers=1)


def test_prepare_of_nothing_usable(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.mp4").write_bytes(b"x")
    with pytest.raises(TriptychError, match="None of the 1 files"):
        prepare_collection(Rows.open(tmp_path / "in"), tmp_path / "out", workers=1)


def test_dry_run_writes_nothing(folder: Path, tmp_path: Path) -> None:
    summary = prepare_collection(Rows.open(folder), tmp_path / "out", Encoding(gop=5), workers=1, dry_run=True)
    assert not (tmp_path / "out").exists() and summary.estimate_seconds is not None


def test_a_moved_collection_still_works(folder: Path, tmp_path: Path) -> None:
    prepare_collection(Rows.open(folder), tmp_path / "out", Encoding(gop=5), workers=1)
    shutil.move(tmp_path / "out", tmp_path / "elsewhere")
    with Rows.open(tmp_path / "elsewhere").recording(1) as recording:
        assert recording.frames([0.5]).shape[0] == 1


def test_rows_of_one_file_share_its_preparation(folder: Path, tmp_path: Path) -> None:
    manifest = folder / "m.csv"
    lines = [f"b.mp4,{start},{start + 0.5},part {start}\n" for start in (0.0, 0.5, 1.0, 7.0)]
    manifest.write_text("path,start,end,caption\n" + "".join(lines))
    summary = prepare_collection(Rows.open(manifest), tmp_path / "out", Encoding(fps=10.0), workers=1)
    assert summary.recordings == 3 and summary.seconds == pytest.approx(2.0, abs=0.2)
    assert len(list((tmp_path / "out" / "clips").iterdir())) == 1
    ((path, reason),) = summary.quarantined
    assert path == "b.mp4" and reason.startswith("there is nothing between 7.0 and 7.5 s; it is 1.9")
    with Rows.open(tmp_path / "out").recording(1) as recording:
        assert (recording.timeline.start, recording.timeline.end) == (0.5, 1.0)
        assert recording.timeline.captions[0].text == "part 0.5"
        assert clips.read(recording.frames([0.75]).numpy()[0]) == 7


def test_second_0_stays_where_it_was(tmp_path: Path) -> None:
    """The picture of this file begins half a second after its sound; captions and spans count from the sound."""
    (tmp_path / "in").mkdir()
    sound = clips.track(clips.noise(3.0, 16_000), 16_000)
    clips.write(tmp_path / "in" / "late.mkv", [0.5 + k / 10 for k in range(20)], sound=sound)
    (tmp_path / "in" / "late.srt").write_text("00:00:01,000 --> 00:00:02,000\nnow\n")
    prepare_collection(Rows.open(tmp_path / "in"), tmp_path / "out", Encoding(fps=10.0), workers=1)
    with Rows.open(tmp_path / "out").recording(0) as new, Recording(tmp_path / "in" / "late.mkv") as old:
        assert new.timeline.captions == old.timeline.captions
        assert new.timeline.streams["audio"].end == pytest.approx(3.0, abs=0.1)
        for second in (0.25, 0.95, 1.55, 2.35):
            assert clips.read(new.frames([second]).numpy()[0]) == clips.read(old.frames([second]).numpy()[0])
            before, after = (one.waveform(second, second + 0.2, 16_000).numpy() for one in (old, new))
            shift = np.correlate(after[0], before[0], "same").argmax() - before.shape[1] // 2
            assert abs(int(shift)) < 32


def test_half_a_file_is_set_aside_with_the_second(folder: Path, tmp_path: Path) -> None:
    whole = clips.write(tmp_path / "long.mkv", [k / 25 for k in range(250)], gop=10).read_bytes()
    (folder / "half.mkv").write_bytes(whole[: len(whole) // 2])
    summary = prepare_collection(Rows.open(folder), tmp_path / "out", workers=1)
    reasons = dict(summary.quarantined)
    assert "ends early: its last picture is at" in reasons["half.mkv"] and "promises 10.00 s" in reasons["half.mkv"]


def test_changed_files_and_captions_are_done_again(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert prepare_collection(Rows.open(folder), out, workers=1).seconds == pytest.approx(4.0, abs=0.2)
    clips.write(folder / "b.mp4", TIMES[:10])
    (folder / "deep" / "a.txt").write_text("a caption")
    (folder / "broken.mp4").unlink()
    summary = prepare_collection(Rows.open(folder), out, workers=1)
    assert summary.seconds == pytest.approx(3.0, abs=0.2) and not summary.quarantined
    with Rows.open(out).recording(1) as recording:
        assert recording.timeline.captions[0].text == "a caption"


def test_a_journal_with_half_a_line_goes_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    prepare_collection(Rows.open(folder), out, workers=1)
    before = (out / "manifest.csv").read_bytes()
    journal = (out / "journal.jsonl").read_bytes()
    (out / "journal.jsonl").write_bytes(journal[:-40])
    done = []
    original = prepare._prepare_file
    monkeypatch.setattr(prepare, "_prepare_file", lambda number, **k: done.append(number) or original(number, **k))
    prepare_collection(Rows.open(folder), out, workers=1)
    assert len(done) == 1 and (out / "manifest.csv").read_bytes() == before
    assert len((out / "journal.jsonl").read_bytes().splitlines()) == 3


def test_settings_that_make_no_sense() -> None:
    for wrong in ({"short_side": 1}, {"gop": 0}, {"fps": 0.0}, {"audio_rate": 12_345}):
        with pytest.raises(UsageError, match=r"must be at least|AAC sound has no"):
            Encoding(**wrong)  # type: ignore[arg-type]


def test_encoding_stops_where_it_is_told(folder: Path, tmp_path: Path) -> None:
    with Recording(folder / "b.mp4") as recording:
        encode(recording, tmp_path / "short.mp4", Encoding(gop=5), longest=0.5)
    with Recording(tmp_path / "short.mp4") as short:
        assert short.timeline.end == pytest.approx(0.5, abs=0.1)


SCRIPT = """
import sys
from triptych.media.collection import Rows
from triptych.media.prepare import Encoding, prepare_collection
if __name__ == "__main__":
    prepare_collection(Rows.open(sys.argv[1]), sys.argv[2], Encoding(short_side=24, gop=5), workers=2)
"""


@pytest.mark.slow
def test_a_killed_preparation_goes_on_and_leaves_no_process(folder: Path, tmp_path: Path) -> None:
    for number in range(12):
        clips.write(folder / f"{number}.mp4", [k / 25 for k in range(200)])
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), str(folder), str(tmp_path / "out")]
    with subprocess.Popen(command, start_new_session=True) as process:
        journal = tmp_path / "out" / "journal.jsonl"
        while not journal.is_file() or journal.stat().st_size == 0:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    done = [json.loads(line)["key"] for line in journal.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    deadline = time.monotonic() + 10
    while _session(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _session(process.pid)
    subprocess.run(command, check=True)
    lines = [json.loads(line) for line in journal.read_bytes().splitlines()]
    assert [line["key"] for line in lines[: len(done)]] == done and len(lines) == 15
    assert len(Rows.open(tmp_path / "out")) == 14
    assert not list((tmp_path / "out" / "clips").glob(".*"))


def _session(leader: int) -> list[int]:
    """Return the processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.getsid(int(entry.name)) == leader:
                found.append(int(entry.name))
        except OSError:
            continue
    return found
