"""The index on vectors whose neighbours are known, and on a changing folder."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.media import clips
from triptych.errors import TriptychError, UsageError
from triptych.media.collection import Rows
from triptych.search.index import Hit, Index, glob_to_regex, merge

FACTS = {"spaces": {"joint": "cosine"}, "model": "m", "fingerprint": "f"}


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
    [("*.mp4", r"^.*\.mp4$"), ("a?c", "^a.c$"), ("[ab]*", "^[ab].*$"), ("[!a]", "^[^a]$"), ("a+(b)", r"^a\+\(b\)$")],
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
    with pytest.raises(TriptychError, match="holds something"):
        Index.create(tmp_path, FACTS)


@pytest.mark.slow
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


def test_a_folder_that_changes(tmp_path: Path) -> None:
    """New, changed and removed files; what is unchanged is not read again."""
    from tests.tiny import tiny_lava
    from triptych.model import random_model

    source = tmp_path / "source"
    source.mkdir()
    times = [k / 8 for k in range(32)]
    for name in ("a.mp4", "b.mp4"):
        clips.write(source / name, times)
    recipe, tokenizer = tiny_lava()
    model = random_model(recipe.method, recipe.config, recipe.test, tokenizer)
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
