"""Probes and retrieval on vectors whose answer is known."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from triptych.embedding import EmbeddingTable
from triptych.errors import TriptychError, UsageError
from triptych.evaluation.evaluator import Score
from triptych.evaluation.probe import KNN, LinearProbe, fit_logistic
from triptych.evaluation.retrieval import Retrieval
from triptych.evaluation.table import Results, from_json
from triptych.media.collection import Rows


@dataclass
class Known:
    """A model whose vectors are given: two windows a row, each the row's vector with noise."""

    signal: float = 3.0
    name: str = "known"

    def tables(self, rows: Rows) -> Mapping[str, EmbeddingTable]:
        rng = np.random.default_rng(len(rows))
        kinds = np.array([int(row["kind"] or 0) for row in rows])
        found = {}
        for stream, strength in (("video", self.signal), ("audio", 0.0)):
            base = rng.standard_normal((len(rows), 8))
            base[np.arange(len(rows)), kinds] += strength
            found[f"features:{stream}"] = _table(f"features:{stream}", [(stream, base)], rng)
        item = rng.standard_normal((len(rows), 16))
        near = item + 0.1 * rng.standard_normal(item.shape)
        found["joint"] = _table("joint", [("video", item), ("text", near)], rng)
        return found


def _table(space: str, streams: list[tuple[str, np.ndarray]], rng: np.random.Generator) -> EmbeddingTable:
    count = len(streams[0][1])
    numbers = np.concatenate([np.repeat(np.arange(count), 2) for _ in streams])
    vectors = np.concatenate([np.repeat(x, 2, axis=0) for _, x in streams])
    vectors = vectors + 0.05 * rng.standard_normal(vectors.shape)
    names = np.concatenate([np.full(2 * count, stream) for stream, _ in streams])
    zeros = np.zeros(len(numbers))
    paths = [f"{n}.mp4" for n in range(count)]
    return EmbeddingTable(space, vectors.astype(np.float32), paths, numbers, zeros, zeros, zeros.astype(int), names)


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    lines = [f"{n}.mp4,{n % 4},thing {n // 2 if n < 20 else n},{'train' if n < 200 else 'test'}" for n in range(280)]
    (tmp_path / "m.csv").write_text("path,kind,caption,split\n" + "\n".join(lines) + "\n")
    return Rows.open(tmp_path / "m.csv")


@pytest.mark.parametrize("task", [LinearProbe("kind"), KNN("kind"), LinearProbe("kind", average="softmax")])
def test_probes_find_what_is_there_and_no_more(rows: Rows, task: LinearProbe | KNN) -> None:
    scores = task.run(Known(), rows.split("train"), rows.split("test"))
    assert set(scores) == {"video", "audio", "audio+video"}
    assert scores["video"].value > 80 and scores["video"].chance == 25 and scores["video"].n == 80
    assert scores["video"].low < scores["video"].value <= scores["video"].high
    assert scores["audio"].value < 45
    assert scores["audio+video"].value > 75


def test_logistic_regression_is_scikit_learns(rows: Rows) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((120, 5)).astype(np.float32), rng.integers(0, 3, 120)
    penalty = 0.02
    ours = fit_logistic(torch.from_numpy(x), torch.from_numpy(y), 3, penalty, steps=500)
    theirs = LogisticRegression(C=1 / (penalty * 120), tol=1e-8, max_iter=1000).fit(x, y)
    np.testing.assert_allclose(ours[:-1].T.numpy(), theirs.coef_, atol=2e-3)


def test_rows_of_a_group_are_one_item(rows: Rows, tmp_path: Path) -> None:
    test = rows.split("test").with_columns({"video_id": [str(n // 2) for n in range(80)]})
    score = LinearProbe("kind", streams=["video"], group="video_id").run(Known(), rows.split("train"), test)["video"]
    assert score.n == 40


def test_labels_must_be_there_and_differ(rows: Rows) -> None:
    train, test = rows.split("train"), rows.split("test")
    with pytest.raises(UsageError, match="no column 'colour'; it has path, kind"):
        LinearProbe("colour").run(Known(), train, test)
    with pytest.raises(TriptychError, match="only the label 'train'"):
        LinearProbe("split").run(Known(), train, test)
    with pytest.raises(UsageError, match="no features of the stream 'smell'"):
        LinearProbe("kind", streams=["smell"]).run(Known(), train, test)


def test_a_class_that_was_never_trained_is_told(rows: Rows) -> None:
    train = rows.split("train").where(lambda row: row["kind"] != "3")
    with pytest.raises(TriptychError, match="label '3' in 'kind', which no training row has"):
        LinearProbe("kind").run(Known(), train, rows.split("test"))


def test_retrieval_in_both_directions(rows: Rows) -> None:
    scores = Retrieval().run(Known(), rows, rows)
    assert scores["text to video R@1"].value > 95 and scores["video to text R@1"].value > 95
    assert scores["text to video R@1"].n == 280
    assert scores["text to video R@1"].chance == pytest.approx(100 * (260 + 20 * 2) / 280 / 280)
    only = Retrieval(query="text", target="video").run(Known(), rows, rows)
    assert set(only) == {f"text to video {name}" for name in ("R@1", "R@5", "R@10", "MedR")}
    with pytest.raises(UsageError, match="nothing to retrieve from smell"):
        Retrieval(query="smell").run(Known(), rows, rows)


def test_a_table_shows_everybody_and_survives_json() -> None:
    score = Score(50.0, 40.0, 60.0, 10, 25.0)
    results = Results("run", "toy", 7, {"run": {"probe video": score}, "random:lava": {"probe video": score}})
    text = results.render()
    assert "random:lava" in text and "50.0 [40.0, 60.0]" in text and "seed 7" in text and "25.0" in text
    assert from_json(results.to_json()).render() == text
    assert results.to_markdown().splitlines()[0] == "|  | run | random:lava | chance | n |"
