"""Retrieval between the streams of a joint space."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import permutations

import numpy as np
from jaxtyping import Bool, Float

from triptych.embedding import EmbeddingTable
from triptych.errors import TriptychError, UsageError
from triptych.evaluation import metrics
from triptych.evaluation.evaluator import Score, Sweeper
from triptych.media.collection import Rows


@dataclass(frozen=True)
class Retrieval:
    """Recall at 1, 5 and 10 and the median rank, between every ordered pair of streams of every space.

    A recording's vector is the mean of its windows'. Recordings with equal captions (or an equal value in ``group``)
    are one item: each of them answers. A recording that lacks one of the two streams takes no part.
    """

    query: str | None = None
    target: str | None = None
    group: str | None = None
    ties: metrics.Ties = "average"
    seed: int = 0
    name: str = "retrieval"

    def run(self, model: Sweeper, train: Rows, test: Rows) -> dict[str, Score]:
        """Return scores named ``text to video R@1`` and so on (with the space before, if there are several)."""
        tables = {space: table for space, table in model.tables(test).items() if not space.startswith("features:")}
        groups = group_rows(test, self.group)
        scores: dict[str, Score] = {}
        for space, table in tables.items():
            prefix = f"{space}: " if len(tables) > 1 else ""
            streams = sorted(set(table.streams.tolist()))
            for asked, answered in permutations(streams, 2):
                if self.query in (None, asked) and self.target in (None, answered):
                    found = self._measure(table, asked, answered, groups)
                    scores |= {f"{prefix}{asked} to {answered} {name}": score for name, score in found.items()}
        if not scores:
            spaces = {space: sorted(set(table.streams.tolist())) for space, table in tables.items()}
            raise UsageError(
                f"There is nothing to retrieve from {self.query} to {self.target}; the spaces are {spaces}."
            )
        return scores

    def _measure(self, table: EmbeddingTable, asked: str, answered: str, groups: np.ndarray) -> dict[str, Score]:
        similarity, correct, names = compare(table, asked, answered, groups)
        ranks = metrics.retrieval_ranks(similarity, correct, self.ties)
        scores = {}
        for k in (1, 5, 10):
            low, high = metrics.bootstrap(partial(_share, 100.0 * metrics.hits_at(ranks, k)), names, seed=self.seed)
            value = metrics.recall_at(ranks, k)
            scores[f"R@{k}"] = Score(value, low, high, len(names), metrics.chance_recall(correct, k))
        low, high = metrics.bootstrap(lambda chosen: metrics.median_rank(ranks[chosen]), names, seed=self.seed)
        middle = (correct.shape[1] + 1) / 2
        scores["MedR"] = Score(metrics.median_rank(ranks), low, high, len(names), middle)
        return scores


def _share(hits: np.ndarray, chosen: np.ndarray) -> float:
    return float(hits[chosen].mean())


def compare(
    table: EmbeddingTable, asked: str, answered: str, groups: np.ndarray
) -> tuple[Float[np.ndarray, "queries gallery"], Bool[np.ndarray, "queries gallery"], np.ndarray]:
    """Return similarities, which items are right, and the group of each query, of rows that have both streams.

    Raises:
        TriptychError: If no row has both.
    """
    query_rows, queries = table.select(asked).by_row()
    gallery_rows, gallery = table.select(answered).by_row()
    common = np.intersect1d(query_rows, gallery_rows)
    if not len(common):
        raise TriptychError(f"No recording has both {asked} and {answered}.")
    left = _unit(queries[np.searchsorted(query_rows, common)])
    right = _unit(gallery[np.searchsorted(gallery_rows, common)])
    names = groups[common]
    # Equal vectors must be exactly equal in similarity: one product in float64, nothing rounded.
    return left @ right.T, names[:, None] == names[None, :], names


def group_rows(rows: Rows, column: str | None) -> np.ndarray:
    """Return the group of each row: its value in ``column``, or its caption; a row without either is its own."""
    if column is None and "caption" not in rows.columns:
        return np.array([f"#{number}" for number in range(len(rows))])
    values = rows.column(column or "caption")
    return np.array([" ".join(value.lower().split()) or f"#{number}" for number, value in enumerate(values)])


def _unit(x: Float[np.ndarray, "rows dim"]) -> Float[np.ndarray, "rows dim"]:
    wide = x.astype(np.float64)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)


def flatten(scores: Mapping[str, Mapping[str, Score]]) -> dict[str, Score]:
    """Return scores of several tasks under one name each."""
    return {f"{task} {name}": score for task, found in scores.items() for name, score in found.items()}
