"""What a fine-tuned model says, averaged over windows and crops, and its scores."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from triptych.errors import TriptychError, UsageError
from triptych.evaluation import classification
from triptych.evaluation.classification import Classification, Said, row_scores
from triptych.evaluation.evaluator import Sweeps
from triptych.media.collection import Rows
from triptych.recipe import Aligned, StreamSpec, VideoTransform, Viewing

VIEWING = Viewing(windows=Aligned(seconds=1.0), views=({"video": StreamSpec(transform=VideoTransform(size=8))},))


class Looks(SimpleNamespace):
    """A model that says what it was told to, of rows by their path."""

    method: Any = nn.Identity()
    tokenizer: Any = None
    test: Any = VIEWING

    def __init__(self, scores: dict[str, list[list[float]]]) -> None:
        super().__init__(scores=scores)


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    def say(model: Looks, rows: Rows, viewing: Viewing, workers: Any = None, title: str = "") -> Iterator[Said]:
        for number, path in enumerate(rows.column("path")):
            for window in model.scores[path]:  # a recording may come in parts
                one = torch.tensor([window])
                yield Said(torch.tensor([number]), torch.tensor([0]), torch.tensor([[0.0, 1.0]]), {"classes": one})

    monkeypatch.setattr(classification, "say", say)


def _logits(*shares: list[float]) -> list[list[float]]:
    return [np.log(np.clip(share, 1e-9, 1)).tolist() for share in shares]


def _rows(tmp_path: Path, **columns: list[str]) -> Rows:
    count = len(next(iter(columns.values())))
    rows = [{"path": f"{n}.mp4", **{name: cells[n] for name, cells in columns.items()}} for n in range(count)]
    return Rows.build(rows, tmp_path, "m.csv")


def _run(evaluator: Classification, scores: dict[str, list[list[float]]], rows: Rows) -> dict[str, Any]:
    sweeper = Sweeps({"it": Looks(scores)}, rows, VIEWING, progress=False).of("it")  # type: ignore[dict-item]
    return evaluator.run(sweeper, rows, rows)


def test_the_mean_comes_before_the_best_class(tmp_path: Path) -> None:
    # retrieval-and-tasks-common, section 4: a majority vote would give class 0.
    rows = _rows(tmp_path, kind=["b", "a"])
    scores = {"0.mp4": _logits([0.6, 0.4], [0.6, 0.4], [0.0, 1.0]), "1.mp4": _logits([0.9, 0.1])}
    found = row_scores(Looks(scores), rows, VIEWING)  # type: ignore[arg-type]
    np.testing.assert_allclose(found[0], [0.4, 0.6], atol=1e-6)
    assert _run(Classification(("a", "b"), "kind"), scores, rows)["accuracy"].value == 100
    # Of these the mean of the logits says otherwise than the mean of the probabilities.
    scores = {"0.mp4": [[0.0, 8.0], [3.0, 0.0], [3.0, 0.0]], "1.mp4": _logits([0.9, 0.1])}
    assert _run(Classification(("a", "b"), "kind"), scores, rows)["accuracy"].value == 50
    assert _run(Classification(("a", "b"), "kind", average="logits"), scores, rows)["accuracy"].value == 100


def test_rows_of_a_group_are_one_item(tmp_path: Path) -> None:
    rows = _rows(tmp_path, kind=["a", "a", "b", ""], clip=["x", "x", "y", "z"])
    scores = dict(zip(("0.mp4", "1.mp4", "2.mp4"), map(_logits, ([0.9, 0.1], [0.4, 0.6], [0.1, 0.9])), strict=True))
    apart = _run(Classification(("a", "b"), "kind"), scores, rows)["accuracy"]
    together = _run(Classification(("a", "b"), "kind", group="clip"), scores, rows)["accuracy"]
    assert (apart.value, apart.n, apart.chance) == (pytest.approx(200 / 3), 3, 50)
    assert (together.value, together.n) == (100, 2)


def test_several_labels_a_row(tmp_path: Path) -> None:
    rows = _rows(tmp_path, tags=["a;b", "b", "[]", ""])
    scores = {"0.mp4": [[2.0, 1.0, 0.0]], "1.mp4": [[1.0, 0.5, 0.0]], "2.mp4": [[0.0, 2.0, 0.0]]}
    found = _run(Classification(("a", "b", "c"), "tags", several=True), scores, rows)
    # Class a: the first of three; class b: second and third of three, so (1/2 + 2/3) / 2; class c has no positive.
    assert found["mAP"].value == pytest.approx(100 * (1 + (1 / 2 + 2 / 3) / 2) / 2)
    assert found["AUC"].value == pytest.approx(100 * (1 + 0) / 2) and found["d'"].value == pytest.approx(0)
    assert "1 without a positive left out" in found["mAP"].note and found["mAP"].n == 3


def test_labels_that_do_not_fit_are_told(tmp_path: Path) -> None:
    scores = {"0.mp4": _logits([0.9, 0.1]), "1.mp4": _logits([0.9, 0.1])}
    with pytest.raises(TriptychError, match="holds 'c', which is none of the model's 2 classes"):
        _run(Classification(("a", "b"), "kind"), scores, _rows(tmp_path, kind=["a", "c"]))
    with pytest.raises(TriptychError, match=r"No row of m.csv that is tested has a label in the column 'kind'"):
        _run(Classification(("a", "b"), "kind"), scores, _rows(tmp_path, kind=["", ""]))
    with pytest.raises(UsageError, match="several labels in 'kind'; the model was trained to name one"):
        _run(Classification(("a", "b"), "kind"), scores, _rows(tmp_path, kind=["a;b", "a"]))
    with pytest.raises(UsageError, match="no column 'sort'"):
        _run(Classification(("a", "b"), "sort"), scores, _rows(tmp_path, kind=["a", "b"]))
