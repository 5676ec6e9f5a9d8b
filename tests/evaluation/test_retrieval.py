"""Conventions of retrieval: ties, queries without an answer, further scores, fused streams."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from triptych.embedding import EmbeddingTable
from triptych.evaluation.metrics import Ties, geometric_mean
from triptych.evaluation.retrieval import Retrieval
from triptych.media.collection import Rows

SIMILARITY = np.array([[0.9, 0.9, 0.1], [0.2, 0.5, 0.3], [0.4, 0.4, 0.4]])
"""The example of retrieval-and-tasks-common, section 1."""


@dataclass
class Given:
    """A model whose vectors are given."""

    table: EmbeddingTable
    name: str = "given"

    def tables(self, rows: Rows) -> Mapping[str, EmbeddingTable]:
        return {"joint": self.table}


def _given(streams: Mapping[str, np.ndarray]) -> Given:
    """Return vectors by stream, of the first rows."""
    numbers = np.concatenate([np.arange(len(x)) for x in streams.values()])
    names = np.concatenate([np.full(len(x), stream) for stream, x in streams.items()])
    zeros = np.zeros(len(numbers))
    paths = [f"{n}.mp4" for n in range(int(numbers.max()) + 1)]
    vectors = np.concatenate(list(streams.values())).astype(np.float64)
    return Given(EmbeddingTable("joint", vectors, paths, numbers, zeros, zeros, zeros.astype(int), names))


def _rows(count: int, tmp_path: Path) -> Rows:
    return Rows.build([{"path": f"{n}.mp4"} for n in range(count)], tmp_path, "m")


@pytest.mark.parametrize(
    ("ties", "r1", "median", "mean"),
    [("average", 33.3333, 1.5, 1.5), ("optimistic", 100, 1, 1), ("howto100m", 50, 1.5, 1.66667)],
)
def test_ties_by_hand(tmp_path: Path, ties: Ties, r1: float, median: float, mean: float) -> None:
    # Under `dot`, unit vectors of the gallery make the similarities the queries themselves.
    model = _given({"text": SIMILARITY, "video": np.eye(3)})
    task = Retrieval("text", "video", spaces={"joint": "dot"}, ties=ties, more=True)
    scores = {name.split()[-1]: score for name, score in task.run(model, None, _rows(3, tmp_path)).items()}
    assert scores["R@1"].value == pytest.approx(r1, abs=1e-4) and scores["R@5"].value == 100
    assert scores["MedR"].value == median and scores["MeanR"].value == pytest.approx(mean, abs=1e-5)
    assert scores["MeanR"].chance == 2.0 and scores["R@50"].value == 100
    assert scores["GeoMean"].value == pytest.approx(geometric_mean([r1, 100, 100]), abs=1e-3)
    assert all(score.low <= score.value + 1e-9 and score.value <= score.high + 1e-9 for score in scores.values())


def test_queries_without_an_answer_are_failures(tmp_path: Path) -> None:
    """Three of four clips have sound: with N = 4, R@1 is 25 and R@5 is 75; the ranks are of the three."""
    text = np.concatenate([SIMILARITY, [[1.0, 0.0, 0.0]]])
    model, rows = _given({"text": text, "video+audio": np.eye(3)}), _rows(4, tmp_path)
    counted = Retrieval("text", spaces={"joint": "dot"}, missing="failed").run(model, None, rows)
    assert {name.split()[-1]: score.value for name, score in counted.items()} == {
        "R@1": 25.0, "R@5": 75.0, "R@10": 75.0, "MedR": 1.5
    }  # fmt: skip
    assert counted["text to video+audio R@1"].n == 4 and counted["text to video+audio MedR"].n == 3
    assert counted["text to video+audio R@1"].chance == pytest.approx(25.0)
    out = Retrieval("text", spaces={"joint": "dot"}).run(model, None, rows)
    assert out["text to video+audio R@1"].value == pytest.approx(33.3333, abs=1e-4)
    assert out["text to video+audio R@1"].n == 3
    # The other way the gallery has all that is asked.
    back = Retrieval("video+audio", spaces={"joint": "dot"}, missing="failed").run(model, None, rows)
    assert back["video+audio to text R@5"].n == 3


def test_a_fused_stream_does_not_look_for_its_own_parts(tmp_path: Path) -> None:
    model, rows = _given({"text": np.eye(3), "video": np.eye(3), "audio": np.eye(3), "video+audio": np.eye(3)}), None
    rows = _rows(3, tmp_path)
    pairs = {name.rpartition(" ")[0] for name in Retrieval().run(model, None, rows)}
    assert pairs == {
        "text to video", "text to audio", "text to video+audio", "video to text", "video to audio",
        "audio to text", "audio to video", "video+audio to text",
    }  # fmt: skip
    asked = Retrieval("audio", "video+audio").run(model, None, rows)
    assert asked["audio to video+audio R@1"].value == 100
