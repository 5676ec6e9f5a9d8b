"""Metrics as pure functions, each with its convention as an argument; float64."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
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


def chance_recall(correct: Bool[np.ndarray, "queries gallery"], k: int) -> float:
    """Return the expected recall at ``k`` of a random order, in percent."""
    size = correct.shape[1]
    right = correct.sum(axis=1)
    # Of items outside, none may be missing: 1 - C(size - right, k) / C(size, k), as a product.
    missed = np.ones(len(right))
    for place in range(min(k, size)):
        missed *= np.clip(size - right - place, 0, None) / (size - place)
    return 100 * float((1 - missed).mean())


def accuracy(
    scores: Float[np.ndarray, "rows classes"], labels: Int[np.ndarray, " rows"], k: int = 1
) -> Float[np.ndarray, " rows"]:
    """Return 1 for each row whose label is among its ``k`` best classes, else 0; ties in favour of lower classes."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    hits: Float[np.ndarray, " rows"] = (order == labels[:, None]).any(axis=1).astype(np.float64)
    return hits


def average_precision(labels: Bool[np.ndarray, " rows"], scores: Float[np.ndarray, " rows"]) -> float:
    """Return sum over distinct thresholds of (R_n - R_(n-1)) P_n, without interpolation (scikit-learn's)."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(labels[order])
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    recall = hits[ends] / max(hits[-1], 1)
    precision = hits[ends] / (ends + 1)
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def roc_auc(labels: Bool[np.ndarray, " rows"], scores: Float[np.ndarray, " rows"]) -> float:
    """Return P(positive > negative) + P(equal) / 2."""
    positive, negative = np.sort(scores[labels]), np.sort(scores[~labels])
    below = np.searchsorted(negative, positive, side="left")
    up_to = np.searchsorted(negative, positive, side="right")
    return float((below + up_to).sum() / (2 * len(positive) * len(negative)))


def d_prime(auc: float) -> float:
    """Return sqrt(2) times the normal quantile of ``auc`` (AudioSet: of the mean AUC)."""
    return math.sqrt(2) * NormalDist().inv_cdf(auc)


@dataclass(frozen=True)
class MultiLabel:
    """Scores of a multi-label task."""

    mean_ap: float
    mean_auc: float
    d_prime: float
    excluded: tuple[int, ...]
    """Classes without a positive (or without a negative), which are left out."""


def multi_label(labels: Bool[np.ndarray, "rows classes"], scores: Float[np.ndarray, "rows classes"]) -> MultiLabel:
    """Return the unweighted means over classes that have positives and negatives.

    Raises:
        TriptychError: If no class has both, or a score is not a number.
    """
    if np.isnan(scores).any():
        raise TriptychError("Some class scores are not numbers.")
    usable = labels.any(axis=0) & ~labels.all(axis=0)
    if not usable.any():
        raise TriptychError("No class has both rows with it and rows without it.")
    chosen = np.flatnonzero(usable)
    precision = float(np.mean([average_precision(labels[:, c], scores[:, c]) for c in chosen]))
    area = float(np.mean([roc_auc(labels[:, c], scores[:, c]) for c in chosen]))
    inside = min(max(area, 1e-9), 1 - 1e-9)
    return MultiLabel(precision, area, d_prime(inside), tuple(np.flatnonzero(~usable).tolist()))


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
    _, inverse = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    count = int(inverse.max()) + 1
    order = np.argsort(inverse, kind="stable")
    bounds = np.searchsorted(inverse[order], np.arange(count + 1))
    members = [order[a:b] for a, b in pairwise(bounds)]
    generator = np.random.default_rng(seed)
    single = count == len(inverse)
    values = []
    for _ in range(draws):
        drawn = generator.integers(count, size=count)
        places = order[drawn] if single else np.concatenate([members[group] for group in drawn])
        values.append(statistic(places))
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
