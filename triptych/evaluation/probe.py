"""Probes of frozen features: k nearest neighbours and a linear classifier."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from triptych.data.targets import read_labels
from triptych.embedding import EmbeddingTable
from triptych.errors import TriptychError
from triptych.evaluation import metrics
from triptych.evaluation.evaluator import Score, Sweeper, gather_streams
from triptych.media.collection import Rows

PENALTIES = tuple(10.0**power for power in range(1, -7, -1))
"""Weights of the squared norm that are tried, from strong to weak."""
COSTS = tuple(10.0**power for power in range(-5, 1))
"""Weights of the errors of a support vector machine that are tried, from weak to strong (XKD: 1e-5 to 1)."""
DRAWS = 200
"""Samples of the interval of a multi-label score (each is a sum over all classes)."""


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
        """Return the scores of each stream, see ``LinearProbe.run``."""
        task = Task.read(train, test, self.label, self.group)
        scores: dict[str, Score] = {}
        for stream, before, after in task.pairs(model, self.streams):
            x, y = before.by(before.numbers), after.by(after.numbers)
            near = torch.from_numpy(_unit(y.x) @ _unit(x.x).T)
            weights, places = near.topk(min(self.k, near.shape[1]), dim=1)
            weights = (weights / self.temperature).softmax(dim=1)
            votes = torch.einsum("rk,rkc->rc", weights, torch.from_numpy(x.labels).float()[places])
            scores |= task.score(stream, y.scored(votes.numpy()), self.seed)
        return scores


@dataclass(frozen=True)
class LinearProbe:
    """Logistic regression on standardised features of windows, its penalty chosen on held-out recordings.

    Multinomial where rows have one label, one-against-rest where they have several. A fifth of the training items
    (rows, or groups of them) is held out for the choice; then all are used. Scores of a recording's windows are
    averaged before they are judged (``average``), and over the rows of a group.
    """

    label: str
    streams: Sequence[str] | None = None
    average: Literal["logits", "probabilities"] = "logits"
    group: str | None = None
    seed: int = 0
    name: str = "probe"
    strengths: ClassVar[tuple[float, ...]] = PENALTIES
    """What is chosen among, each fit beginning where the last ended."""
    strength: ClassVar[str] = "penalty"
    """What it is called."""

    def run(self, model: Sweeper, train: Rows, test: Rows) -> dict[str, Score]:
        """Return the accuracy in percent of each stream; mAP in percent and d' where rows have several labels.

        Raises:
            UsageError: If there is no such column or stream.
            TriptychError: If there are fewer than two classes, or no row to learn on or to test.
        """
        task = Task.read(train, test, self.label, self.group)
        scores: dict[str, Score] = {}
        for stream, before, after in tqdm(list(task.pairs(model, self.streams)), "probe", delay=2, disable=None):
            logits, chosen = self._classify(task, before, after)
            scores |= task.score(stream, after.scored(logits), self.seed, f"{self.strength} {chosen:g}")
        return scores

    def prepare(self, train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return features as the classifier reads them: each with mean 0 and deviation 1 over the training windows."""
        mean, std = train.mean(axis=0), train.std(axis=0) + 1e-6
        return (train - mean) / std, (test - mean) / std

    def fit(self, x: Tensor, labels: Tensor, strength: float, several: bool, start: Tensor | None = None) -> Tensor:
        """Return weights and, in the last row, biases."""
        return fit_logistic(x, labels, strength, several, start)

    def _classify(
        self, task: "Task", train: "Windows", test: "Windows"
    ) -> tuple[Float[np.ndarray, "rows classes"], float]:
        x, y = (torch.from_numpy(part.astype(np.float32)) for part in self.prepare(train.x, test.x))
        labels = torch.from_numpy(train.labels).float()
        items = np.unique(train.groups)
        held = np.random.default_rng(self.seed).permutation(items)[: max(len(items) // 5, 1)]
        apart = np.isin(train.groups, held)
        best, chosen, weights = -math.inf, self.strengths[-1], None
        if 0 < int(apart.sum()) < len(apart):
            judged = train.take(apart)
            for strength in self.strengths:
                weights = self.fit(x[~apart], labels[~apart], strength, task.several, weights)
                found = judged.scored(self._scores(task, x[apart], weights))
                value = task.judge(found)
                if value > best:
                    best, chosen = value, strength
        return self._scores(task, y, self.fit(x, labels, chosen, task.several)), chosen

    def _scores(self, task: "Task", x: Tensor, weights: Tensor) -> Float[np.ndarray, "rows classes"]:
        logits = x @ weights[:-1] + weights[-1]
        if self.average == "probabilities":
            logits = logits.sigmoid() if task.several else logits.softmax(dim=1)
        found: Float[np.ndarray, "rows classes"] = logits.numpy()
        return found


@dataclass(frozen=True)
class LinearSVM(LinearProbe):
    """A linear support vector machine for each class against the rest, on features as they are (XDC, XKD, CrissCross).

    Its cost is chosen on held-out recordings, as the penalty of ``LinearProbe`` is; released code often chose it on the
    test rows. Decision values of a recording's windows are averaged.
    """

    name: str = "svm"
    unit: bool = False
    """Whether each feature vector is divided by its length first."""
    strengths: ClassVar[tuple[float, ...]] = COSTS
    strength: ClassVar[str] = "C"

    def prepare(self, train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return features as they are, or of unit length."""
        return (_unit(train), _unit(test)) if self.unit else (train, test)

    def fit(self, x: Tensor, labels: Tensor, strength: float, several: bool, start: Tensor | None = None) -> Tensor:
        """Return weights and, in the last row, biases."""
        return fit_svm(x, labels, strength, start)


def fit_svm(
    x: Float[Tensor, "rows dim"],
    labels: Float[Tensor, "rows classes"],
    cost: float,
    start: Float[Tensor, "inputs classes"] | None = None,
    steps: int = 1000,
) -> Float[Tensor, "inputs classes"]:
    """Return weights and (last row) biases that minimise half their squares + cost times the sum of squared hinges.

    This is scikit-learn's ``LinearSVC`` with its defaults (the bias is a weight of a constant 1 and counts with the
    others), solved by L-BFGS in float64.

    Args:
        x: Features.
        labels: 1 for the classes of a row: each class is a problem of its own.
        cost: Of the errors (``C``).
        start: Where to begin; zeros where None.
        steps: Iterations at most.
    """
    inputs = torch.cat([x, x.new_ones(len(x), 1)], dim=1).double()
    signs = 2 * labels.double() - 1

    def loss(weights: Tensor) -> Tensor:
        hinge = (1 - signs * (inputs @ weights)).clamp(min=0)
        return weights.square().sum() / 2 + cost * hinge.square().sum()

    first = torch.zeros(inputs.shape[1], labels.shape[1]) if start is None else start
    return _minimise(loss, first.double(), steps, tolerance=1e-6).float()


def fit_logistic(
    x: Float[Tensor, "rows dim"],
    labels: Float[Tensor, "rows classes"],
    penalty: float,
    several: bool = False,
    start: Float[Tensor, "inputs classes"] | None = None,
    steps: int = 100,
) -> Float[Tensor, "inputs classes"]:
    """Return weights and (last row) biases that minimise mean cross entropy + penalty / 2 times the squared weights.

    L-BFGS with a strong Wolfe line search; the problem is convex, so the result does not depend on ``start``.

    Args:
        x: Features.
        labels: 1 for the classes of a row.
        penalty: Of the weights; biases have none.
        several: Whether a row may have several classes: then each class is a problem of its own.
        start: Where to begin; zeros where None.
        steps: Iterations at most.
    """
    inputs = torch.cat([x, x.new_ones(len(x), 1)], dim=1)

    def loss(weights: Tensor) -> Tensor:
        logits = inputs @ weights
        if several:
            entropy = functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / len(x)
        else:
            entropy = functional.cross_entropy(logits, labels)
        return entropy + penalty / 2 * weights[:-1].square().sum()

    first = torch.zeros(inputs.shape[1], labels.shape[1]) if start is None else start
    return _minimise(loss, first, steps, tolerance=1e-5)


def _minimise(loss: Callable[[Tensor], Tensor], start: Tensor, steps: int, tolerance: float) -> Tensor:
    weights = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=steps, tolerance_grad=tolerance, history_size=10, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(weights)
        value.backward()
        return value

    optimizer.step(closure)
    return weights.detach()


@dataclass(frozen=True)
class Windows:
    """Vectors (or class scores) of windows, with the labels, the row and the group of each."""

    x: Float[np.ndarray, "windows dim"]
    labels: Bool[np.ndarray, "windows classes"]
    numbers: Int[np.ndarray, " windows"]
    groups: Int[np.ndarray, " windows"]

    def take(self, chosen: np.ndarray) -> "Windows":
        """Return some of them."""
        return Windows(self.x[chosen], self.labels[chosen], self.numbers[chosen], self.groups[chosen])

    def by(self, items: Int[np.ndarray, " windows"]) -> "Windows":
        """Return the mean of the windows of each item."""
        _, first, places = np.unique(items, return_index=True, return_inverse=True)
        sums = np.zeros((len(first), self.x.shape[1]))
        np.add.at(sums, places, self.x)
        means = (sums / np.bincount(places)[:, None]).astype(np.float32)
        return Windows(means, self.labels[first], self.numbers[first], self.groups[first])

    def scored(self, scores: Float[np.ndarray, "windows classes"]) -> "Windows":
        """Return class scores of the groups: of the windows' mean, then of the rows' mean."""
        rows = Windows(scores, self.labels, self.numbers, self.groups).by(self.numbers)
        return rows.by(rows.groups)


@dataclass(frozen=True)
class Labelled:
    """Rows with the labels (None: unknown) and the group of each."""

    rows: Rows
    labels: list[tuple[str, ...] | None]
    groups: Int[np.ndarray, " rows"]

    @classmethod
    def read(cls, rows: Rows, column: str, group: str | None) -> "Labelled":
        """Read the labels.

        Raises:
            UsageError: If there is no such column.
            TriptychError: If rows of one group have different labels.
        """
        labels = read_labels(rows, column)
        if group is None:
            return cls(rows, labels, np.arange(len(rows)))
        known: dict[str, int] = {}
        said: dict[int, set[str]] = {}
        groups = []
        for number, (value, own) in enumerate(zip(rows.column(group), labels, strict=True)):
            groups.append(known.setdefault(value or f"#{number}", len(known)))
            if own is not None and said.setdefault(groups[-1], set(own)) != set(own):
                raise TriptychError(f"Rows with '{value}' in the column '{group}' have different labels in '{column}'.")
        return cls(rows, labels, np.array(groups, dtype=np.int64))

    @property
    def classes(self) -> set[str]:
        """Labels that any row has."""
        return {label for labels in self.labels for label in labels or ()}

    def windows(self, table: EmbeddingTable, classes: Sequence[str]) -> "Windows":
        """Return the vectors of the rows whose labels are known."""
        place = {name: number for number, name in enumerate(classes)}
        marks = np.zeros((len(self.labels), len(place)), dtype=bool)
        for line, found in zip(marks, self.labels, strict=True):
            line[[place[label] for label in found or ()]] = True
        known = np.array([found is not None for found in self.labels])[table.numbers]
        numbers = table.numbers[known]
        return Windows(np.asarray(table.vectors)[known], marks[numbers], numbers, self.groups[numbers])


@dataclass(frozen=True)
class Task:
    """What is to be told apart, and the rows to learn it on and to test it on."""

    classes: tuple[str, ...]
    several: bool
    """Whether a row may have several labels: mAP instead of accuracy."""
    train: Labelled
    test: Labelled

    @classmethod
    def read(cls, train: Rows, test: Rows, column: str, group: str | None) -> "Task":
        """Read the labels.

        Raises:
            UsageError: If there is no such column.
            TriptychError: If there are fewer than two classes, the test rows have a class that no training row has
                (one label a row), or rows of one group have different labels.
        """
        before, after = Labelled.read(train, column, group), Labelled.read(test, column, group)
        several = any(labels is not None and len(labels) != 1 for labels in [*before.labels, *after.labels])
        learnt, wanted = before.classes, after.classes
        if len(learnt) < 2:
            what = f"only the label '{next(iter(learnt))}'" if learnt else "no labels"
            raise TriptychError(
                f"The column '{column}' of {train.source} has {what}; a probe needs two classes or more."
            )
        if not wanted:
            raise TriptychError(f"The test rows of {test.source} have no labels in the column '{column}'.")
        if not several and wanted - learnt:
            unknown = sorted(wanted - learnt)[0]
            raise TriptychError(f"The test rows have the label '{unknown}' in '{column}', which no training row has.")
        return cls(tuple(sorted(learnt | wanted)), several, before, after)

    def pairs(self, model: Sweeper, streams: Sequence[str] | None) -> Iterator[tuple[str, Windows, Windows]]:
        """Yield each stream with its training and test windows, and all streams side by side.

        Raises:
            UsageError: If the model does not yield a stream that was asked for.
            TriptychError: If no stream has both training and test rows.
        """
        before = gather_streams(model.tables(self.train.rows), streams)
        after = gather_streams(model.tables(self.test.rows), streams)
        found = {}
        for stream in before:
            if stream in after:
                train = self.train.windows(before[stream], self.classes)
                test = self.test.windows(after[stream], self.classes)
                if len(train.x) and len(test.x):
                    found[stream] = (train, test)
                    yield stream, train, test
        if not found:
            raise TriptychError(f"No stream has features of both training and test rows of {self.test.rows.source}.")
        if len(found) > 1:
            train, test = (_side_by_side([pair[side] for pair in found.values()]) for side in (0, 1))
            if len(train.x) and len(test.x):
                yield "+".join(sorted(found)), train, test

    def judge(self, scored: Windows) -> float:
        """Return accuracy or mAP, in [0, 1], of class scores of whole items; -inf where no class has a positive."""
        if not self.several:
            return float(metrics.accuracy(scored.x, scored.labels.argmax(axis=1)).mean())
        return metrics.multi_label(scored.labels, scored.x).mean_ap if scored.labels.any() else -math.inf

    def score(self, stream: str, scored: Windows, seed: int, note: str = "") -> dict[str, Score]:
        """Return the scores of a stream by name, from class scores of whole items."""
        count = len(scored.x)
        if not self.several:
            hits = 100 * metrics.accuracy(scored.x, scored.labels.argmax(axis=1))
            low, high = metrics.bootstrap(lambda chosen: float(hits[chosen].mean()), np.arange(count), seed=seed)
            return {stream: Score(float(hits.mean()), low, high, count, 100 / len(self.classes), note)}
        scorer = metrics.MultiLabelScorer(scored.labels, scored.x)
        whole = scorer()
        weights = metrics.resample(count, DRAWS, seed)
        drawn = [scorer(weight) for weight in weights if scored.labels[weight > 0].any()]  # small sets may draw none
        left = f"{len(self.classes) - len(whole.excluded)} classes"
        if whole.excluded:
            left += f", {len(whole.excluded)} without a positive left out"
        prior = scored.labels.mean(axis=0)
        chance = 100 * float(prior[prior > 0].mean())
        mean_ap = [100 * one.mean_ap for one in drawn]
        areas = [100 * one.mean_auc for one in drawn]
        d_prime = [one.d_prime for one in drawn]
        note = ", ".join(filter(None, (note, left)))
        return {
            f"{stream} mAP": Score(100 * whole.mean_ap, *metrics.interval(mean_ap), count, chance, note),
            f"{stream} AUC": Score(100 * whole.mean_auc, *metrics.interval(areas), count, 50.0, note),
            f"{stream} d'": Score(whole.d_prime, *metrics.interval(d_prime), count, 0.0, note),
        }


def _side_by_side(parts: Sequence[Windows]) -> Windows:
    """Return the streams side by side, for recordings that have all of them, by their means."""
    means = [part.by(part.numbers) for part in parts]
    common = sorted(set.intersection(*(set(mean.numbers.tolist()) for mean in means)))
    rows = [np.searchsorted(mean.numbers, common) for mean in means]
    x = np.concatenate([mean.x[row] for mean, row in zip(means, rows, strict=True)], axis=1)
    first = means[0].take(rows[0])
    return Windows(x, first.labels, first.numbers, first.groups)


def _unit(x: Float[np.ndarray, "rows dim"]) -> Float[np.ndarray, "rows dim"]:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
