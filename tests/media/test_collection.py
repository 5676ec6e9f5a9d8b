"""Sources: folders, manifests, splits; and preparing them."""

import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest

from tests.media import clips
from triptych.errors import TriptychError, UsageError
from triptych.media import lines
from triptych.media.collection import Rows
from triptych.media.prepare import probe_rows
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


@pytest.mark.parametrize(
    ("text", "captions"),
    [
        ('path,caption\na.mp4,a 5" screen\nb.mp4,two\nc.mp4,6" and 7"\n', ['a 5" screen', "two", '6" and 7"']),
        ('path,caption\na.mp4,"x ""y"" z\nw"\n\nb.mp4,"1\n2\n\n3"\n', ['x "y" z\nw', "1\n2\n\n3"]),
        ('path,caption\r\na.mp4,"one, two"\r\n\r\nb.mp4,\r\n', ["one, two", ""]),
        ('path,caption\na.mp4,x"\n"b.mp4","y\n"" z"', ['x"', 'y\n" z']),
        ("\ufeffpath,caption\n\na.mp4,last without an end", ["last without an end"]),
    ],
)
@pytest.mark.parametrize("chunk", [7, 1 << 24])
def test_quotes_newlines_and_blank_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, captions: list[str], chunk: int
) -> None:
    monkeypatch.setattr(lines, "CHUNK", chunk)
    (tmp_path / "m.csv").write_text(text, newline="")
    rows = Rows.open(tmp_path / "m.csv")
    assert rows.column("caption") == captions == [row["caption"] for row in rows]


def test_captions_longer_than_the_csv_module_allows(tmp_path: Path) -> None:
    words = "word " * 40_000
    (tmp_path / "m.csv").write_text(f"path,caption\na.mp4,{words}\n")
    assert Rows.open(tmp_path / "m.csv").row(0)["caption"] == words


def test_a_manifest_that_changes_under_a_worker_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("path\na.mp4\n")
    kept = pickle.dumps(Rows.open(path))
    path.write_text("path\nother.mp4\n")
    with pytest.raises(TriptychError, match=r"m\.csv was changed while it was in use"):
        pickle.loads(kept)


def test_numbers_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("path,start\na.mp4,nan\n")
    with pytest.raises(UsageError, match="'nan' in the column 'start' is no number"):
        Rows.open(tmp_path / "m.csv").row(0).number("start")


def test_names_and_folders_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.mp4")).write_bytes(b"")
    with pytest.raises(UsageError, match="is no UTF-8; give the file another name"):
        Rows.open(tmp_path)


def test_precomputed_vectors_are_streams_of_probed_rows(folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "f.npy", np.zeros((2, 4), np.float32))
    (tmp_path / "m.csv").write_text(f"path,stream:s3d\n{folder / 'b.mp4'},f.npy\n")
    rows, _ = probe_rows(Rows.open(tmp_path / "m.csv"), workers=1)
    with rows.recording(0) as recording:
        assert recording.timeline.streams["s3d"].end == 2.0
        assert recording.sequence("s3d", 0.0, 1.0).vectors.shape == (1, 4)
    for times, message in (
        (np.zeros(4), r"g\.npz: expected vectors \(steps, width\) and times \(steps\), found"),
        (np.zeros(2), r"g\.npz: the times of the vectors must increase"),
    ):
        np.savez(tmp_path / "g.npz", vectors=np.zeros((2, 4)), times=times)
        with (
            Recording(folder / "b.mp4", sequences={"s3d": tmp_path / "g.npz"}) as recording,
            pytest.raises(TriptychError, match=message),
        ):
            _ = recording.timeline


def test_vectors_that_a_probed_row_was_given_later(folder: Path, tmp_path: Path) -> None:
    rows, _ = probe_rows(Rows.build([{"path": str(folder / "b.mp4")}], tmp_path, "m"), workers=1)
    np.savez(tmp_path / "f.npz", vectors=np.zeros((2, 4)), times=[0.0, 0.5, 1.5])
    with rows.with_columns({"stream:s3d": ["f.npz"]}).recording(0) as recording:
        extent = recording.timeline.streams["s3d"]
        assert (extent.start, extent.end) == (0.0, 1.5) and "video" in recording.timeline.streams


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
