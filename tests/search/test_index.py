"""The index on vectors whose neighbours are known, and on a changing folder."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.media import clips
from tests.tiny import tiny_lava
from triptych.errors import TriptychError, UsageError
from triptych.media.collection import Rows
from triptych.model import Model, random_model
from triptych.recipe import Grid
from triptych.search.hits import Hit, clock, merge
from triptych.search.index import Index, glob_to_regex

FACTS = {
    **{"spaces": {"joint": "cosine"}, "model": "m", "fingerprint": "f"},
    **{"source": "s", "root": "s", "windows": {}},
}


def _index(folder: Path, count: int = 60) -> tuple[Index, np.ndarray]:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((count, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = Index.create(folder, FACTS)
    index.append(
        "joint",
        vectors,
        {
            "path": [f"day {n % 3}/it's [{n}]_100%.mp4" for n in range(count)],
            "start": [float(n) for n in range(count)],
            "end": [n + 1.0 for n in range(count)],
            "stream": ["audio" if n % 2 else "video" for n in range(count)],
        },
    )
    index.finish()
    return index, vectors


def test_the_nearest_is_found_first(tmp_path: Path) -> None:
    index, vectors = _index(tmp_path / "index")
    hit = Index.open(tmp_path / "index").search({"joint": vectors[7]}, k=3)[0]
    assert (hit.path, hit.start, hit.stream) == ("day 1/it's [7]_100%.mp4", 7.0, "audio")
    assert hit.similarity == pytest.approx(1.0, abs=1e-5) and hit.score > 2
    assert index.count("joint") == 60


def test_filters_leave_only_what_they_say(tmp_path: Path) -> None:
    index, vectors = _index(tmp_path / "index")
    query = {"joint": vectors[7]}
    assert {hit.path[:5] for hit in index.search(query, 20, path="day 2/*")} == {"day 2"}
    assert [hit.path for hit in index.search(query, 20, path="*it's [[]1?]_100%.mp4")]
    assert index.search(query, 20, path="' OR 1=1 --") == []
    assert {hit.start for hit in index.search(query, 20, between=(10.5, 12.0))} == {10.0, 11.0}
    assert {hit.stream for hit in index.search(query, 20, streams=["video"])} == {"video"}
    with pytest.raises(UsageError, match="no stream 'smell'"):
        index.search(query, streams=["smell"])
    with pytest.raises(UsageError, match="the end must come after the start"):
        index.search(query, between=(3.0, 1.0))


def test_overlapping_hits_become_the_best() -> None:
    def hit(path: str, start: float, score: float) -> Hit:
        return Hit(path, start, start + 2, score, score, "video", "joint")

    hits = [hit("a", 4, 0.9), hit("a", 5, 0.8), hit("b", 5, 0.7), hit("a", 6.5, 0.6), hit("a", 0, 0.5)]
    assert [(h.path, h.start) for h in merge(hits)] == [("a", 4), ("b", 5), ("a", 6.5), ("a", 0)]


@pytest.mark.parametrize(
    ("pattern", "regex"),
    [
        ("*.mp4", r"^.*\.mp4$"),
        ("a?c", "^a.c$"),
        ("[ab]*", "^[ab].*$"),
        ("[!a]", "^[^a]$"),
        ("a+(b)", r"^a\+\(b\)$"),
        ("[[^]", r"^[\[\^]$"),
    ],
)
def test_patterns(pattern: str, regex: str) -> None:
    assert glob_to_regex(pattern) == regex


def test_an_open_bracket_is_told() -> None:
    with pytest.raises(UsageError, match="bracket is not closed"):
        glob_to_regex("a[b")


def test_what_is_no_index_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no index"):
        Index.open(tmp_path)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(TriptychError, match="damaged"):
        Index.open(tmp_path)
    (tmp_path / "index.json").write_text('{"format": 99}')
    with pytest.raises(TriptychError, match="index format 99"):
        Index.open(tmp_path)
    (tmp_path / "index.json").write_text("[]")
    with pytest.raises(TriptychError, match="index format None"):
        Index.open(tmp_path)
    (tmp_path / "index.json").write_text('{"format": 2}')
    with pytest.raises(TriptychError, match="lacks 'model'"):
        Index.open(tmp_path)
    with pytest.raises(UsageError, match="holds something"):
        Index.create(tmp_path, FACTS)


def test_large_indexes_use_cells_and_still_find(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    centres = rng.standard_normal((200, 16))
    vectors = centres[rng.integers(200, size=30_000)] + 0.5 * rng.standard_normal((30_000, 16))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    index = Index.create(tmp_path / "index", FACTS)
    columns = {
        "path": [f"{n}.mp4" for n in range(len(vectors))],
        "start": np.zeros(len(vectors)),
        "end": np.ones(len(vectors)),
        "stream": ["video"] * len(vectors),
    }
    index.append("joint", vectors, columns)
    index.finish()
    found = 0
    for place in range(0, 30_000, 3_000):
        exact = {f"{n}.mp4" for n in np.argsort(-vectors @ vectors[place])[:10]}
        found += len(exact & {hit.path for hit in index.search({"joint": vectors[place]}, 10)})
    assert found >= 95


@pytest.fixture(scope="module")
def model() -> Model:
    recipe, tokenizer = tiny_lava()
    model = random_model(recipe.method, recipe.config, recipe.test, tokenizer)
    model.test = model.test.model_copy(update={"windows": Grid(seconds=2.0, count=None, stride=1.0)})
    return model


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("a.mp4", "b.mp4"):
        clips.write(source / name, [k / 8 for k in range(32)])
    return source


def _windows(index: Index) -> list[tuple[str, float, float]]:
    """Return path and seconds of all vectors, in order."""
    found = index._table("joint").to_arrow().to_pylist()
    return sorted((row["path"], round(row["start"], 3), round(row["end"], 3)) for row in found)


def test_a_folder_that_changes(source: Path, model: Model, tmp_path: Path) -> None:
    """New, changed and removed files; what is unchanged is not read again."""
    times = [k / 8 for k in range(32)]
    index = Index.create(tmp_path / "index", FACTS)
    assert index.update(model, Rows.open(source), workers=0)["added"] == 2
    first = index.count("joint")
    assert index.update(model, Rows.open(source), workers=0)["unchanged"] == 2
    shutil.copy(source / "a.mp4", source / "c.mp4")
    (source / "b.mp4").unlink()
    clips.write(source / "a.mp4", times[:16])
    (source / "broken.mp4").write_bytes(b"x")
    counts = index.update(model, Rows.open(source), workers=0)
    assert counts == {"added": 2, "changed": 1, "removed": 1, "unchanged": 0, "unreadable": 1}
    paths = {hit.path for hit in index.search({"joint": np.ones(16, dtype=np.float32)}, 50)}
    assert paths == {"a.mp4", "c.mp4"}
    assert index.count("joint") < first
    assert index.update(model, Rows.open(source), workers=0)["unchanged"] == 3


def test_an_interrupted_update_goes_on_without_doubles(
    source: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the vectors and the list of files, and once more before the sample is taken."""
    whole = Index.create(tmp_path / "whole", FACTS)
    whole.update(model, Rows.open(source), workers=0)
    index = Index.create(tmp_path / "index", FACTS)
    for step in ("_register", "finish"):
        with monkeypatch.context() as patch:
            patch.setattr(Index, step, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                index.update(model, Rows.open(source), workers=0)
        index = Index.open(tmp_path / "index")
        assert not index.meta["whole"]
    assert index.update(model, Rows.open(source), workers=0)["unchanged"] == 2
    assert _windows(index) == _windows(whole)
    assert len(index.search({"joint": np.ones(16, dtype=np.float32)}, 5)) == 2


def test_damage_is_told_and_a_lost_sample_is_made_again(source: Path, model: Model, tmp_path: Path) -> None:
    index = Index.create(tmp_path / "index", FACTS)
    index.update(model, Rows.open(source), workers=0)
    query = {"joint": np.ones(16, dtype=np.float32)}
    (tmp_path / "index" / "sample.safetensors").write_bytes(b"half")
    with pytest.raises(TriptychError, match="run `triptych index` again"):
        Index.open(tmp_path / "index").search(query)
    index = Index.open(tmp_path / "index")
    assert index.update(model, Rows.open(source), workers=0)["unchanged"] == 2
    assert len(index.search(query, 5)) == 2
    for path in (tmp_path / "index" / "vectors").rglob("*.lance"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(TriptychError, match="are damaged"):
        Index.open(tmp_path / "index").search(query)
    shutil.rmtree(tmp_path / "index" / "vectors")
    with pytest.raises(TriptychError, match="holds no vectors"):
        Index.open(tmp_path / "index").search(query)
    assert Index.open(tmp_path / "index").update(model, Rows.open(source), workers=0)["added"] == 2


def test_what_a_full_disk_left_of_a_table_is_none(source: Path, model: Model, tmp_path: Path) -> None:
    index = Index.create(tmp_path / "index", FACTS)
    for name in ("files", "space_joint"):
        (tmp_path / "index" / "vectors" / f"{name}.lance" / "data").mkdir(parents=True)
        (tmp_path / "index" / "vectors" / f"{name}.lance" / "data" / "half.lance").write_bytes(b"half")
    assert index.update(model, Rows.open(source), workers=0)["added"] == 2
    assert len(index.search({"joint": np.ones(16, dtype=np.float32)}, 5)) == 2


def test_several_rows_of_a_file_are_its_parts(source: Path, model: Model, tmp_path: Path) -> None:
    """Segments of one file are all taken in; captions of one clip are one part."""
    manifest = source / "m.csv"
    lines = ["a.mp4,0,2,x", "a.mp4,2,4,y", "a.mp4,2,4,z", "b.mp4,,,x"]
    manifest.write_text("path,start,end,caption\n" + "\n".join(lines) + "\n")
    index = Index.create(tmp_path / "index", FACTS)
    assert index.update(model, Rows.open(manifest), workers=0)["added"] == 2
    starts = [(path, round(start)) for path, start, _ in _windows(index)]
    assert starts == [("a.mp4", 0), ("a.mp4", 2), ("b.mp4", 0), ("b.mp4", 1), ("b.mp4", 2)]
    manifest.write_text("path,start,end,caption\n" + "\n".join([lines[0], lines[3]]) + "\n")
    counts = index.update(model, Rows.open(manifest), workers=0)
    assert (counts["changed"], counts["unchanged"]) == (1, 1)
    assert [window for window in _windows(index) if window[0] == "a.mp4"] == [("a.mp4", 0.0, 2.0)]


def test_a_long_recording_is_taken_in_by_parts_with_the_same_windows(
    source: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips.write(source / "long.mp4", [k / 8 for k in range(101)])
    found = {}
    for most in (3, 32):
        monkeypatch.setattr("triptych.data.segments.SEGMENT", most)
        index = Index.create(tmp_path / f"by-{most}", FACTS)
        index.update(model, Rows.open(source), workers=0)
        found[most] = _windows(index)
    assert found[3] == found[32] and len([window for window in found[3] if window[0] == "long.mp4"]) == 12


def test_a_rare_stream_is_found_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    index = Index.create(tmp_path / "index", FACTS)
    for stream, count in (("video", 9_000), ("audio", 2)):
        paths = [f"{stream}-{n}.mp4" for n in range(count)]
        columns = {"path": paths, "start": np.zeros(count), "end": np.ones(count), "stream": [stream] * count}
        index.append("joint", rng.standard_normal((count, 4)).astype(np.float32), columns)
    index.finish()
    hits = index.search({"joint": np.ones(4, dtype=np.float32)}, 5, streams=["audio"])
    assert {hit.path for hit in hits} == {"audio-0.mp4", "audio-1.mp4"}


def test_neighbouring_windows_do_not_crowd_out_other_files(tmp_path: Path) -> None:
    """The best 400 windows are of one file: the others are still found."""
    index = Index.create(tmp_path / "index", FACTS)
    near = np.tile([1.0, 0.0], (400, 1)) + 0.001 * np.arange(400)[:, None]
    vectors = np.concatenate([near, [[0.5, 0.5], [0.4, 0.6], [0.0, 1.0]]]).astype(np.float32)
    columns = {
        "path": ["long.mp4"] * 400 + ["b.mp4", "c.mp4", "d.mp4"],
        "start": [0.01 * n for n in range(400)] + [0.0] * 3,
        "end": [5.0 + 0.01 * n for n in range(400)] + [2.0] * 3,
        "stream": ["video"] * 403,
    }
    index.append("joint", vectors, columns)
    index.finish()
    hits = index.search({"joint": np.array([1.0, 0.0], dtype=np.float32)}, 3)
    assert [hit.path for hit in hits] == ["long.mp4", "b.mp4", "c.mp4"]


def test_pictures_have_their_second(tmp_path: Path) -> None:
    index = Index.create(tmp_path / "index", FACTS)
    columns = {"path": ["a.jpg", "b.mp4"], "start": [0.0, 0.0], "end": [0.0, 2.0], "stream": ["video"] * 2}
    index.append("joint", np.eye(2, dtype=np.float32), columns)
    index.finish()
    query = {"joint": np.ones(2, dtype=np.float32)}
    assert {hit.path for hit in index.search(query, between=(0.0, 1.0))} == {"a.jpg", "b.mp4"}
    assert {hit.path for hit in index.search(query, between=(1.0, 3.0))} == {"b.mp4"}


def test_seconds_as_people_write_them() -> None:
    assert [clock(seconds) for seconds in (0, 59.96, 61.24, 3723.5)] == ["0:00.0", "1:00.0", "1:01.2", "1:02:03.5"]
