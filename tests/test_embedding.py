"""Vectors of windows: candidates folded, captions apart, tables on disk, a sweep that is interrupted."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.media import clips
from tests.tiny import tiny_lava
from triptych import embedding
from triptych.batch import Clip
from triptych.embedding import EmbeddingTable, fold, sweep, sweep_to
from triptych.errors import TriptychError, UsageError
from triptych.media.collection import Rows
from triptych.media.write import write_video
from triptych.model import Model, random_model
from triptych.recipe import Grid

FACTS = {"fingerprint": "f", "data": "d", "kind": "embed"}


@pytest.fixture(scope="module")
def model() -> Model:
    recipe, tokenizer = tiny_lava()
    return random_model(recipe.method, recipe.config, recipe.test, tokenizer)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """Five recordings; the first has three captions, the third none, the fourth cannot be read."""
    folder = tmp_path_factory.mktemp("rows")
    for number in range(5):
        clips.write(folder / f"{number}.mp4", [k / 8 for k in range(24)])
        (folder / f"{number}.txt").write_text("a small red disc\n")
    cues = "\n\n".join(f"{n + 1}\n00:00:0{n},000 --> 00:00:0{n + 1},000\na blue star {n}" for n in range(3))
    (folder / "0.srt").write_text(cues + "\n")
    (folder / "0.txt").unlink()
    (folder / "2.txt").unlink()
    (folder / "3.mp4").write_bytes(b"nothing")
    return Rows.open(folder)


def test_windows_and_crops_fold_side_by_side() -> None:
    def clip(count: int) -> Clip:
        data = torch.arange(2 * count).view(2, count, 1)
        return Clip(data, torch.ones(2, count, dtype=torch.long), torch.zeros(2, count, 2))

    found = fold({"video": clip(6), "audio": clip(2)}, crops=3)  # two windows, three crops of the picture
    assert found.view["video"].data.flatten().tolist() == list(range(12))
    assert found.view["audio"].data.flatten().tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert found.rows.tolist() == [0] * 6 + [1] * 6 and found.crops.tolist() == [0, 1, 2] * 4
    assert found.first["audio"].tolist() == [True, False, False] * 4 and found.first["video"].all()


def test_each_caption_is_one_vector_and_each_window_another(model: Model, rows: Rows) -> None:
    table = sweep(model, rows, workers=0, progress=False)["joint"]
    counts = {(row.path, row.stream): 0 for row in map(table.row, range(len(table)))}
    for row in map(table.row, range(len(table))):
        counts[row.path, row.stream] += 1
    assert counts == {
        **{("0.mp4", "text"): 3, ("1.mp4", "text"): 1, ("4.mp4", "text"): 1},
        **{(f"{number}.mp4", "video"): 2 for number in (0, 1, 2, 4)},
    }
    told = table.select("text")
    assert told.starts[told.numbers == 0].tolist() == [0, 1, 2]


def test_crops_are_of_the_picture_alone(model: Model, tmp_path: Path) -> None:
    frames = torch.randint(0, 255, (32, 48, 96, 3), dtype=torch.uint8)
    write_video(tmp_path / "a.mp4", frames, 8, torch.randn(1, 64_000) * 0.1)
    viewing = model.test.model_copy(update={"windows": Grid(seconds=2.0, count=2, crops=3)})
    table = sweep(model, Rows.open(tmp_path), viewing, workers=0, progress=False)["joint"]
    assert table.select("video").crops.tolist() == [0, 1, 2] * 2
    assert table.select("audio").crops.tolist() == [0, 0]


def test_three_lines_of_python(model: Model, rows: Rows) -> None:
    vectors = model.embed(rows.row(1).path)["joint"]["video"]
    assert vectors.dtype == np.float32 and vectors.ndim == 2
    with pytest.raises(UsageError, match="no such file"):
        model.embed("nowhere.mp4")


def test_tables_are_mapped_and_damage_is_told(model: Model, rows: Rows, tmp_path: Path) -> None:
    table = sweep(model, rows, workers=0, progress=False)["joint"]
    table.save(tmp_path / "table")
    again = EmbeddingTable.load(tmp_path / "table")
    assert isinstance(again.vectors, np.memmap) and np.array_equal(again.vectors, table.vectors)
    assert list(map(again.row, range(len(again)))) == list(map(table.row, range(len(table))))
    for name, change, message in (
        ("vectors.safetensors", lambda data: data[:-8], "no whole table"),
        ("vectors.safetensors", lambda data: data[:5], "no whole table"),
        ("rows.jsonl", lambda data: data[: len(data) // 2], "no whole table"),
        ("rows.jsonl", lambda data: data[data.index(b"\n") + 1 :], "vectors and"),
        ("table.json", lambda data: data.replace(b'"format": 1', b'"format": 9'), "table format 9"),
        ("table.json", lambda data: b"[]", "no whole table"),
    ):
        path = tmp_path / "table" / name
        whole = path.read_bytes()
        path.write_bytes(change(whole))
        with pytest.raises(TriptychError, match=message):
            EmbeddingTable.load(tmp_path / "table")
        path.write_bytes(whole)


def test_an_interrupted_sweep_goes_on(
    model: Model, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is done is not decoded again, and the result is that of one sweep."""
    whole = sweep(model, rows, workers=0, progress=False)["joint"]
    monkeypatch.setattr(embedding, "SHARD", 2)
    out, decoded = tmp_path / "out", []
    parts = embedding.sweep_parts

    def one_part(models, rows, numbers, *rest, **options):  # type: ignore[no-untyped-def]
        decoded.append([list(part) for part in numbers])
        for count, part in enumerate(parts(models, rows, numbers, *rest, **options)):
            if count == 1 and len(decoded) == 1:
                raise KeyboardInterrupt
            yield part

    monkeypatch.setattr(embedding, "sweep_parts", one_part)
    with pytest.raises(KeyboardInterrupt):
        sweep_to(model, rows, out, FACTS, workers=0, progress=False)
    assert not list(out.glob("*/table.json"))
    table = sweep_to(model, rows, out, FACTS, workers=0, progress=False)["joint"]
    assert decoded == [[[0, 1], [2, 3], [4]], [[2, 3], [4]]]
    assert list(map(table.row, range(len(table)))) == list(map(whole.row, range(len(whole))))
    np.testing.assert_allclose(table.vectors, whole.vectors, atol=1e-6)
    assert sorted(path.name for path in out.iterdir()) == ["embedding.json", "joint"]
    told = json.loads((out / "joint" / "table.json").read_text())["unreadable"]
    assert len(told) == 1 and told[0][0].endswith("3.mp4")
    assert sweep_to(model, rows, out, FACTS, workers=0, progress=False)["joint"].row(0) == whole.row(0)
    assert len(decoded) == 2  # nothing was left to do
    with pytest.raises(UsageError, match="was made with fingerprint f, not g"):
        sweep_to(model, rows, out, FACTS | {"fingerprint": "g"}, workers=0, progress=False)
    with pytest.raises(UsageError, match="holds something that is no table"):
        sweep_to(model, rows, rows.root, FACTS, workers=0, progress=False)


def test_nothing_to_embed_is_told(model: Model, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"nothing")
    rows = Rows.open(tmp_path / "a.mp4")
    with pytest.raises(TriptychError, match=r"None of the 1 recordings could be embedded; the first: .*a\.mp4"):
        sweep_to(model, rows, tmp_path / "out", FACTS, workers=0, progress=False)


@pytest.mark.parametrize("captioned", ["by times", "by a column"])
def test_long_recordings_in_parts_give_the_same_table(
    captioned: str, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips.write(tmp_path / "long.mp4", [k / 8 for k in range(100)])
    clips.write(tmp_path / "short.mp4", [k / 8 for k in range(16)])
    cues = "\n\n".join(f"{n + 1}\n00:00:0{n},000 --> 00:00:0{n + 1},500\na blue star {n}" for n in range(9))
    (tmp_path / "long.srt").write_text(cues + "\n")
    (tmp_path / "m.csv").write_text("path,caption\nlong.mp4,a red disc\nshort.mp4,a star\n")
    rows = Rows.open(tmp_path if captioned == "by times" else tmp_path / "m.csv")
    found = {}
    for most in (2, 32):
        monkeypatch.setattr("triptych.data.segments.SEGMENT", most)
        found[most] = sweep(model, rows, workers=0, progress=False)["joint"]
    parts, whole = found[2], found[32]
    assert [parts.row(n).start for n in range(len(parts))] == [whole.row(n).start for n in range(len(whole))]
    assert parts.numbers.tolist() == whole.numbers.tolist() and parts.streams.tolist() == whole.streams.tolist()
    assert len(whole.select("text")) == (9 if captioned == "by times" else 2)
    np.testing.assert_allclose(parts.vectors, whole.vectors, atol=1e-5)
