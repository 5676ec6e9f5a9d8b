"""Probes of frozen features: k nearest neighbours and a linear classifier."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from triptych.embedding import EmbeddingTable
from triptych.errors import TriptychError
from triptych.evaluation import metrics
from triptych.evaluation.evaluator import Score, Sweeper, gather_streams, read_labels
from triptych.media.collection import Rows

PENALTIES = tuple(10.0**power for power in range(-6, 2))
"""Weights of the squared norm that are tried."""


@dataclass(frozen=True)
class KNN:
    """Weighted vote of the nearest training recordings by cosine (Wu et al. 2018: k = 20 to 200, temperature 0.07)."""

    label: str
    streams: Sequence[str] | None = None
    k: int = 20
    temperature: float = 0.07
    group: str | None = None
    seed: int = 0
    name: str = "knn"

    def run(self, model: Sweeper, train: Rows, test: Rows) -> dict[str, Score]:
        """Return the accuracy in percent of each stream."""
        scores = {}
        for stream, data in _pairs(model, train, test, self.label, self.streams, self.group).items():
            x, y = _means(data.train), _means(data.test)
            near = torch.from_numpy(_unit(y.x) @ _unit(x.x).T)
            weights, places = near.topk(min(self.k, near.shape[1]), dim=1)
            votes = torch.zeros(len(near), len(data.classes))
            votes.scatter_add_(1, torch.from_numpy(x.labels)[places], (weights / self.temperature).exp())
            scores[stream] = _score(votes.numpy(), y, len(data.classes), self.seed)
        return scores


@dataclass(frozen=True)
class LinearProbe:
    """Multinomial logistic regression on standardised features of windows, its penalty chosen on held-out recordings.

    A fifth of the training recordings is held out for the choice; then all are used. Scores of a recording's windows
    are averaged before the class is taken (``average``), and over the rows of a group.
    """

    label: str
    streams: Sequence[str] | None = None
    average: Literal["logits", "softmax"] = "logits"
    group: str | None = None
    seed: int = 0
    name: str = "probe"

    def run(self, model: Sweeper, train: Rows, test: Rows) -> dict[str, Score]:
        """Return the accuracy in percent of each stream (mAP, in percent, where rows have several labels)."""
        scores = {}
        pairs = _pairs(model, train, test, self.label, self.streams, self.group)
        for stream, data in tqdm(pairs.items(), desc=f"probe {self.label}", delay=2, disable=None):
            logits, penalty = self._classify(data)
            if self.average == "softmax":
                logits = torch.from_numpy(logits).softmax(dim=1).numpy()
            x = _Windows(logits, data.test.labels, data.test.numbers, data.test.groups)
            score = _score(_means(x).x, _means(x), len(data.classes), self.seed)
            scores[stream] = Score(score.value, score.low, score.high, score.n, score.chance, f"penalty {penalty:g}")
        return scores

    def _classify(self, data: "_Data") -> tuple[Float[np.ndarray, "rows classes"], float]:
        mean, std = data.train.x.mean(axis=0), data.train.x.std(axis=0) + 1e-6
        x, y = (torch.from_numpy(((part.x - mean) / std).astype(np.float32)) for part in (data.train, data.test))
        labels = torch.from_numpy(data.train.labels)
        recordings = np.unique(data.train.numbers)
        held = np.random.default_rng(self.seed).permutation(recordings)[: max(len(recordings) // 5, 1)]
        apart = torch.from_numpy(np.isin(data.train.numbers, held))
        best, chosen, start = -1.0, PENALTIES[0], None
        if 0 < int(apart.sum()) < len(apart):
            for penalty in reversed(PENALTIES):  # from strong to weak, each beginning where the last ended
                start = fit_logistic(x[~apart], labels[~apart], len(data.classes), penalty, start)
                right = (_apply(x[apart], start).argmax(dim=1) == labels[apart]).float().mean()
                if float(right) > best:
                    best, chosen = float(right), penalty
        weights = fit_logistic(x, labels, len(data.classes), chosen)
        return _apply(y, weights).numpy(), chosen


def fit_logistic(
    x: Float[Tensor, "rows dim"],
    labels: Int[Tensor, " rows"],
    classes: int,
    penalty: float,
    start: Float[Tensor, "inputs classes"] | None = None,
    steps: int = 100,
) -> Float[Tensor, "inputs classes"]:
    """Return weights and (last row) biases that minimise mean cross entropy + penalty / 2 times the squared weights.

    L-BFGS with a strong Wolfe line search; the problem is convex, so the result does not depend on ``start``.
    """
    inputs = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
    weights = torch.zeros(inputs.shape[1], classes) if start is None else start.clone()
    weights.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=steps, tolerance_grad=1e-5, history_size=10, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = functional.cross_entropy(inputs @ weights, labels) + penalty / 2 * weights[:-1].square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weights.detach()


def _apply(x: Tensor, weights: Tensor) -> Tensor:
    return x @ weights[:-1] + weights[-1]


@dataclass
class _Windows:
    """Vectors of windows with the label, the row and the group of each."""

    x: Float[np.ndarray, "windows dim"]
    labels: Int[np.ndarray, " windows"]
    numbers: Int[np.ndarray, " windows"]
    groups: np.ndarray


@dataclass
class _Data:
    train: _Windows
    test: _Windows
    classes: list[str]


def _pairs(
    model: Sweeper, train: Rows, test: Rows, label: str, streams: Sequence[str] | None, group: str | None
) -> dict[str, _Data]:
    known, asked = read_labels(train, label), read_labels(test, label)
    classes = sorted({value for value in known if value})
    unknown = {value for value in asked if value} - set(classes)
    if unknown:
        raise TriptychError(
            f"The test rows have the label '{sorted(unknown)[0]}' in '{label}', which no training row has."
        )
    before = gather_streams(model.tables(train), streams)
    after = gather_streams(model.tables(test), streams)
    groups = test.column(group) if group else [str(number) for number in range(len(test))]
    own = [str(number) for number in range(len(train))]
    found = {}
    for stream in before:
        if stream in after:
            pair = _windows(before[stream], known, classes, own), _windows(after[stream], asked, classes, groups)
            found[stream] = _Data(*pair, classes)
    if len(found) > 1:
        found["+".join(sorted(found))] = _joined(found)
    return found


def _windows(table: EmbeddingTable, labels: list[str], classes: list[str], groups: list[str]) -> _Windows:
    place = {name: number for number, name in enumerate(classes)}
    values = np.array([place.get(label, -1) for label in labels])[table.numbers]
    chosen = values >= 0  # rows without a label are left out
    numbers = table.numbers[chosen]
    return _Windows(np.asarray(table.vectors)[chosen], values[chosen], numbers, np.array(groups, dtype=str)[numbers])


def _joined(found: dict[str, _Data]) -> _Data:
    """Return the streams side by side, for recordings that have all of them, by their means."""
    parts = list(found.values())
    sides = []
    for side in ("train", "test"):
        means = [_means(getattr(part, side)) for part in parts]
        common = sorted(set.intersection(*(set(mean.numbers.tolist()) for mean in means)))
        rows = [np.searchsorted(mean.numbers, common) for mean in means]
        first = means[0]
        x = np.concatenate([mean.x[row] for mean, row in zip(means, rows, strict=True)], axis=1)
        sides.append(_Windows(x, first.labels[rows[0]], first.numbers[rows[0]], first.groups[rows[0]]))
    return _Data(sides[0], sides[1], parts[0].classes)


def _means(windows: _Windows) -> _Windows:
    """Return the mean of each recording's windows."""
    numbers, first, places = np.unique(windows.numbers, return_index=True, return_inverse=True)
    sums = np.zeros((len(numbers), windows.x.shape[1]))
    np.add.at(sums, places, windows.x)
    means = (sums / np.bincount(places)[:, None]).astype(np.float32)
    return _Windows(means, windows.labels[first], numbers, windows.groups[first])


def _unit(x: Float[np.ndarray, "rows dim"]) -> Float[np.ndarray, "rows dim"]:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _score(votes: Float[np.ndarray, "rows classes"], rows: _Windows, classes: int, seed: int) -> Score:
    """Return the accuracy over groups, whose scores are averaged first."""
    _, first, places = np.unique(rows.groups, return_index=True, return_inverse=True)
    sums = np.zeros((len(first), votes.shape[1]))
    np.add.at(sums, places, votes)
    labels = rows.labels[first]
    hits = 100 * metrics.accuracy(sums, labels)
    low, high = metrics.bootstrap(lambda chosen: float(hits[chosen].mean()), np.arange(len(hits)), seed=seed)
    return Score(float(hits.mean()), low, high, len(hits), 100 / classes)
