"""Metrics as pure functions, each with its convention as an argument; float64."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from triptych.errors import TriptychError

Ties = Literal["average", "optimistic", "pessimistic", "howto100m"]
"""What other items with exactly equal similarity count: half, nothing, all, or one entry for every tied position."""


def retrieval_ranks(
    similarity: Float[np.ndarray, "queries gallery"],
    correct: Bool[np.ndarray, "queries gallery"] | None = None,
    ties: Ties = "average",
) -> Float[np.ndarray, " entries"]:
    """Return the rank of each query's best correct item, from 0 (retrieval-and-tasks-common, section 1).

    Args:
        similarity: The larger the nearer; NaN is an error. Equality is tested exactly.
        correct: Items that answer each query; the diagonal where None. With several, the best of them counts, and the
            other correct items do not stand in its way.
        ties: Convention; ``howto100m`` gives more entries than queries.

    Raises:
        TriptychError: If the input is empty or has NaN, or a query has no correct item.
    """
    similarity = np.asarray(similarity, dtype=np.float64)
    if not similarity.size:
        raise TriptychError("Retrieval needs at least one query and one item.")
    if np.isnan(similarity).any():
        raise TriptychError("Some similarities are not numbers: the model's vectors hold NaN.")
    if correct is None:
        correct = np.eye(*similarity.shape, dtype=bool)
    if not correct.any(axis=1).all():
        raise TriptychError("A query has no correct item in the gallery.")
    best = np.where(correct, similarity, -np.inf).max(axis=1, keepdims=True)
    ahead = ((similarity > best) & ~correct).sum(axis=1).astype(np.float64)
    tied = ((similarity == best) & ~correct).sum(axis=1)
    match ties:
        case "average":
            return ahead + tied / 2
        case "optimistic":
            return ahead
        case "pessimistic":
            return ahead + tied
        case _:
            return np.concatenate([r + np.arange(t + 1) for r, t in zip(ahead, tied, strict=True)])


def recall_at(ranks: Float[np.ndarray, " entries"], k: int, total: int | None = None) -> float:
    """Return the share of entries that are hits, in percent; of ``total`` where queries are missing."""
    return 100 * float(hits_at(ranks, k).sum()) / (total or len(ranks))


def hits_at(ranks: Float[np.ndarray, " entries"], k: int) -> Bool[np.ndarray, " entries"]:
    """Return which entries are hits: a rank below ``k``; for R@1 a rank of exactly 0, so that half a tie is no hit.

    This is what MMT's code does, and the specification's example demands (its formula alone would count 0.5 at k = 1).
    """
    return ranks == 0 if k == 1 else ranks < k


def median_rank(ranks: Float[np.ndarray, " entries"]) -> float:
    """Return the median rank, from 1; the mean of the two middle ones for an even number."""
    return float(np.median(ranks)) + 1


def mean_rank(ranks: Float[np.ndarray, " entries"]) -> float:
    """Return the mean rank, from 1."""
    return float(np.mean(ranks)) + 1


def geometric_mean(recalls: Sequence[float]) -> float:
    """Return the geometric mean of recalls, usually those at 1, 5 and 10 (MMT)."""
    return math.prod(recalls) ** (1 / len(recalls))


def chance_recall(right: Int[np.ndarray, " queries"], size: int, k: int) -> float:
    """Return the expected recall at ``k`` of a random order, in percent.

    Args:
        right: Items of the gallery that answer each query.
        size: Items of the gallery.
        k: Items looked at.
    """
    different, share = np.unique(right, return_counts=True)
    # Of the items looked at, none may be right: C(size - right, k) / C(size, k), as a product.
    place = np.arange(min(k, size))
    missed = np.prod(np.clip(size - different[:, None] - place, 0, None) / (size - place), axis=1)
    return 100 * float(np.average(1 - missed, weights=share))


def chance_median(right: Int[np.ndarray, " queries"], size: int) -> float:
    """Return the median rank (from 1) of a random order: the first ``k`` whose expected recall is 50 %."""
    low, high = 1, size
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if chance_recall(right, size, middle) >= 50 else (middle + 1, high)
    return float(low)


def accuracy(
    scores: Float[np.ndarray, "rows classes"], labels: Int[np.ndarray, " rows"], k: int = 1
) -> Float[np.ndarray, " rows"]:
    """Return 1 for each row whose label is among its ``k`` best classes, else 0; ties in favour of lower classes."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    hits: Float[np.ndarray, " rows"] = (order == labels[:, None]).any(axis=1).astype(np.float64)
    return hits


def average_precision(labels: Bool[np.ndarray, " rows"], scores: Float[np.ndarray, " rows"]) -> float:
    """Return sum over distinct thresholds of (R_n - R_(n-1)) P_n, without interpolation (scikit-learn's)."""
    return _average_precision(*_by_threshold(labels, _thresholds(scores)))


def roc_auc(labels: Bool[np.ndarray, " rows"], scores: Float[np.ndarray, " rows"]) -> float:
    """Return P(positive > negative) + P(equal) / 2."""
    return _roc_auc(*_by_threshold(labels, _thresholds(scores)))


def _thresholds(scores: Float[np.ndarray, " rows"]) -> Int[np.ndarray, " rows"]:
    """Return the place of each score among the distinct ones, from the highest on."""
    return np.unique(-scores, return_inverse=True)[1]


def _by_threshold(
    labels: Bool[np.ndarray, " rows"],
    places: Int[np.ndarray, " rows"],
    weight: Int[np.ndarray, " rows"] | None = None,
) -> tuple[Float[np.ndarray, " thresholds"], Float[np.ndarray, " thresholds"]]:
    """Return how many positives and how many negatives stand at each threshold."""
    total = np.ones(len(labels)) if weight is None else weight
    positive = np.bincount(places, weights=total * labels)
    return positive, np.bincount(places, weights=total) - positive


def _average_precision(positive: Float[np.ndarray, " thresholds"], negative: Float[np.ndarray, " thresholds"]) -> float:
    above = np.cumsum(positive)
    precision = above / np.maximum(above + np.cumsum(negative), 1)
    return float(np.sum(positive * precision) / max(above[-1], 1))


def _roc_auc(positive: Float[np.ndarray, " thresholds"], negative: Float[np.ndarray, " thresholds"]) -> float:
    below = negative.sum() - np.cumsum(negative)
    return float(np.sum(positive * (below + negative / 2)) / (positive.sum() * negative.sum()))


def d_prime(auc: float) -> float:
    """Return sqrt(2) times the normal quantile of ``auc`` (AudioSet: of the mean AUC)."""
    return math.sqrt(2) * NormalDist().inv_cdf(auc)


@dataclass(frozen=True)
class MultiLabel:
    """Scores of a multi-label task."""

    mean_ap: float
    """Over the classes that have a positive, in [0, 1]."""
    mean_auc: float
    """Over the classes that have a positive and a negative; NaN where there is none."""
    d_prime: float
    """Of the mean AUC (AudioSet's)."""
    excluded: tuple[int, ...]
    """Classes without a positive."""


class MultiLabelScorer:
    """Scores of a multi-label task, whole or on rows drawn with repeats: the scores are sorted once."""

    def __init__(self, labels: Bool[np.ndarray, "rows classes"], scores: Float[np.ndarray, "rows classes"]) -> None:
        """Sort the scores.

        Raises:
            TriptychError: If a score is not a number.
        """
        if np.isnan(scores).any():
            raise TriptychError("Some class scores are not numbers.")
        self._labels = labels.T
        self._places = [_thresholds(column) for column in scores.T]

    def __call__(self, weight: Int[np.ndarray, " rows"] | None = None) -> MultiLabel:
        """Return the unweighted means over classes.

        Args:
            weight: How often each row counts; once where None.

        Raises:
            TriptychError: If no class has a positive.
        """
        precisions, areas, excluded = [], [], []
        for number, (labels, places) in enumerate(zip(self._labels, self._places, strict=True)):
            positive, negative = _by_threshold(labels, places, weight)
            if not positive.any():
                excluded.append(number)
                continue
            precisions.append(_average_precision(positive, negative))
            if negative.any():
                areas.append(_roc_auc(positive, negative))
        if not precisions:
            raise TriptychError("No class has a row with it.")
        area = float(np.mean(areas)) if areas else math.nan
        inside = min(max(area, 1e-9), 1 - 1e-9)
        return MultiLabel(float(np.mean(precisions)), area, d_prime(inside) if areas else math.nan, tuple(excluded))


def multi_label(labels: Bool[np.ndarray, "rows classes"], scores: Float[np.ndarray, "rows classes"]) -> MultiLabel:
    """Return mAP, mean AUC and d' (retrieval-and-tasks-common, section 3).

    Raises:
        TriptychError: If no class has a positive, or a score is not a number.
    """
    return MultiLabelScorer(labels, scores)()


def edit_costs(reference: Sequence[object], hypothesis: Sequence[object]) -> Int[np.ndarray, "rows columns"]:
    """Return the edits (Levenshtein) from each beginning of the reference to each beginning of the hypothesis."""
    places = np.arange(len(hypothesis) + 1)
    said = np.array(list(hypothesis), dtype=object)
    costs = np.empty((len(reference) + 1, len(hypothesis) + 1), dtype=np.int64)
    costs[0] = places
    for number, symbol in enumerate(reference):
        before = costs[number]
        row = before + 1
        row[1:] = np.minimum(row[1:], before[:-1] + (said != symbol))
        costs[number + 1] = np.minimum.accumulate(row - places) + places  # insertions, one after the other
    return costs


def anticipation_errors(
    guesses: Int[np.ndarray, "rows steps candidates"], labels: Int[np.ndarray, "rows steps"]
) -> Float[np.ndarray, " steps"]:
    """Return ED@1, ED@2, ... (Ego4D): edits of the best candidate's first z actions over z, a mean over rows.

    The last is the benchmark's number; their mean by the trapezoid rule its area (retrieval-and-tasks-common, section
    10). Distances are Levenshtein's, as in the released code; its comment and the paper say Damerau's.
    """
    lengths = np.arange(1, labels.shape[1] + 1)
    curves = [
        np.min([edit_costs(truth.tolist(), one.tolist()).diagonal()[1:] / lengths for one in candidates.T], axis=0)
        for candidates, truth in zip(guesses, labels, strict=True)
    ]
    curve: Float[np.ndarray, " steps"] = np.mean(curves, axis=0)
    return curve


def highlight_precision(labels: Bool[np.ndarray, " clips"], scores: Float[np.ndarray, " clips"]) -> float:
    """Return the average precision of highlight detection, in [0, 1]; 0 where there is no highlight.

    Precision is interpolated linearly between hits, and begins at 1 (UMT; section 7): scikit-learn's is another number.
    """
    hits = np.cumsum(labels[np.argsort(-scores, kind="stable")])
    if not hits.size or not hits[-1]:
        return 0.0
    precision = np.concatenate([[1.0], hits / np.arange(1, len(hits) + 1)])
    recall = np.concatenate([[0.0], hits / hits[-1]])
    return float(np.sum(np.diff(recall) * (precision[:-1] + precision[1:]) / 2))


def summary_precision(
    votes: Shaped[np.ndarray, "clips people"], scores: Float[np.ndarray, " clips"], top: int = 5
) -> float:
    """Return TVSum's top-5 precision of a video: of the best clips alone, a mean over people, in [0, 1].

    A clip is a person's highlight if it got more than the person's lower median vote (section 7).
    """
    best = np.argsort(-scores, kind="stable")[:top]
    medians = np.sort(votes, axis=0)[(len(votes) - 1) // 2]
    return float(np.mean([highlight_precision(column[best], scores[best]) for column in (votes > medians).T]))


def mask_overlap(logits: Float[np.ndarray, "frames *pixels"], masks: Bool[np.ndarray, "frames *pixels"]) -> float:
    """Return the mean over frames of intersection over union (AVSBench; section 9).

    Of a frame without an object, it is the share of pixels that are rightly left out.
    """
    inner = tuple(range(1, masks.ndim))
    said = 1 / (1 + np.exp(-logits.astype(np.float64))) > 0.5
    empty = ~masks.any(axis=inner)
    common, either = (said & masks).sum(axis=inner), (said | masks).sum(axis=inner)
    left_out = (~said & ~masks).sum(axis=inner) / (masks[0].size + 1e-7)
    return float(np.where(empty, left_out, common / (either + 1e-7)).mean())


def mask_f_score(
    logits: Float[np.ndarray, "frames *pixels"], masks: Bool[np.ndarray, "frames *pixels"], beta2: float = 0.3
) -> float:
    """Return the largest over 255 thresholds of the mean F score over frames that have an object (AVSBench)."""
    frames = masks.reshape(len(masks), -1)
    kept = frames.any(axis=1)
    chances = (1 / (1 + np.exp(-logits.astype(np.float64)))).reshape(len(masks), -1)[kept]
    scores = []
    for threshold in np.linspace(0, 1 - 1e-10, 255):
        said = chances >= threshold
        right = (said & frames[kept]).sum(axis=1)
        precision, recall = right / (said.sum(axis=1) + 1e-20), right / (frames[kept].sum(axis=1) + 1e-20)
        below = beta2 * precision + recall
        scores.append(np.mean((1 + beta2) * precision * recall / np.where(below > 0, below, 1.0)))
    return float(max(scores))


def bootstrap(
    statistic: Callable[[Int[np.ndarray, " draws"]], float],
    groups: Sequence[object] | Shaped[np.ndarray, " rows"],
    draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the 95 % interval of a statistic by resampling whole groups of rows.

    Args:
        statistic: Of the rows at the given places (with repeats).
        groups: Group of each row; a row of its own for independent rows.
        draws: Samples.
        seed: Of the draws.
    """
    _, group = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    rows = np.arange(len(group))
    weights = resample(int(group.max()) + 1, draws, seed)
    return interval([statistic(rows.repeat(weight[group])) for weight in weights])


def resample(count: int, draws: int, seed: int) -> Iterator[Int[np.ndarray, " count"]]:
    """Yield how often each of ``count`` things is drawn when as many are drawn with repeats."""
    generator = np.random.default_rng(seed)
    for _ in range(draws):
        yield np.bincount(generator.integers(count, size=count), minlength=count)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 2.5th and the 97.5th percentile."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
