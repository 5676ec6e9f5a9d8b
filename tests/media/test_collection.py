"""Sources: folders, manifests, splits; and preparing them."""

import csv
import pickle
import shutil
import time
from pathlib import Path

import pytest

from tests.media import clips
from triptych.errors import TriptychError, UsageError
from triptych.media.collection import Rows
from triptych.media.prepare import Encoding, prepare_collection, probe_rows
from triptych.media.recording import Recording

TIMES = [k / 10 for k in range(20)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("source")
    (root / "deep").mkdir()
    clips.write(root / "b.mp4", TIMES)
    clips.write(root / "deep" / "a.mkv", TIMES)
    (root / "broken.mp4").write_bytes(b"no video at all")
    (root / ".hidden.mp4").write_bytes(b"")
    (root / "notes.md").write_text("no media")
    (root / "deep" / "circle").symlink_to(root)
    return root


def test_a_folder_is_walked_in_order(folder: Path) -> None:
    assert [row["path"] for row in Rows.open(folder)] == ["b.mp4", "broken.mp4", "deep/a.mkv"]


def test_probing_leaves_out_what_cannot_be_read(folder: Path) -> None:
    rows, bad = probe_rows(Rows.open(folder), workers=1)
    assert [row["path"] for row in rows] == ["b.mp4", "deep/a.mkv"]
    assert len(bad) == 1 and bad[0][0].endswith("broken.mp4")
    with rows.recording(0) as recording, Recording(rows.row(0).path) as fresh:
        assert recording.timeline == fresh.timeline and recording.probe == fresh.probe


def test_manifest_columns_have_their_meaning(folder: Path, tmp_path: Path) -> None:
    manifest = folder / "m.csv"
    manifest.write_text('path,caption,start,end,split,kind\nb.mp4,"a, b",0.5,1.5,train,x\nb.mp4,,,,test,y\n')
    rows = Rows.open(manifest)
    manifest.unlink()
    assert rows.splits == ("train", "test") and len(rows.split("test")) == 1
    assert rows.column("kind") == ["x", "y"]
    with rows.recording(0) as recording:
        timeline = recording.timeline
    assert (timeline.start, timeline.end, timeline.captions[0].text) == (0.5, 1.5, "a, b")
    with rows.recording(1) as recording:
        assert not recording.timeline.captions


def test_json_lines_and_newlines_in_quotes(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"path": "a.mp4", "n": 3}\n{"path": "b.mp4", "caption": "x"}\n')
    rows = Rows.open(tmp_path / "m.jsonl")
    assert rows.column("n") == ["3", ""] and rows.row(1)["caption"] == "x"
    (tmp_path / "m.csv").write_text('path,caption\na.mp4,"two\nlines"\nb.mp4,one\n\n')
    assert Rows.open(tmp_path / "m.csv").column("caption") == ["two\nlines", "one"]


def test_rows_survive_pickling_and_selection(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("path,kind\n" + "".join(f"{n}.mp4,{n % 3}\n" for n in range(10)))
    rows = Rows.open(tmp_path / "m.csv").where(kind="1")
    again = pickle.loads(pickle.dumps(rows))
    assert again.column("path") == ["1.mp4", "4.mp4", "7.mp4"]
    assert again.fingerprint == rows.fingerprint != rows.select([0, 1]).fingerprint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,kind\na.mp4,x\n", "no column 'path'; it has file, kind"),
        ("", "is empty"),
        ("path\n", "no rows"),
    ],
)
def test_bad_manifests(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(UsageError, match=message):
        Rows.open(tmp_path / "m.csv")


def test_bad_rows(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("path,start\n,1\na.mp4,1,2\nb.mp4,soon\n")
    rows = Rows.open(tmp_path / "m.csv")
    with pytest.raises(UsageError, match="row 1: the path is empty"):
        rows.row(0)
    with pytest.raises(UsageError, match="row 2: 3 values for 2 columns"):
        rows.row(1)
    with pytest.raises(UsageError, match="'soon' in the column 'start' is no number"):
        rows.row(2).number("start")
    with pytest.raises(UsageError, match="no column 'kind'; it has path, start"):
        rows.column("kind")


def test_missing_and_empty_sources(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such file or folder"):
        Rows.open(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="holds no media files"):
        Rows.open(tmp_path)


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
    prepare_collection(Rows.open(folder), out, encoding, workers=1)
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


@pytest.mark.slow
def test_a_million_rows_open_in_seconds(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    with path.open("w") as file:
        file.write("path,caption,split\n")
        file.writelines(f'clips/{n:07d}.mp4,"thing, number {n}",train\n' for n in range(1_000_000))
    began = time.monotonic()
    rows = Rows.open(path)
    assert len(rows) == 1_000_000 and rows.row(999_999)["caption"] == "thing, number 999999"
    assert time.monotonic() - began < 10
    assert len(pickle.dumps(rows)) < 32_000_000
