"""Retrieval between the streams of a joint space."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import permutations
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from triptych.embedding import EmbeddingTable
from triptych.errors import TriptychError, UsageError
from triptych.evaluation import metrics
from triptych.evaluation.evaluator import Score, Sweeper
from triptych.media.collection import Rows
from triptych.method import Metric

Missing = Literal["out", "failed"]
"""What queries count whose answer has no vector."""
BLOCK = 1024
"""Queries compared at once with the whole gallery."""


@dataclass(frozen=True)
class Retrieval:
    """Recall at 1, 5 and 10 and the median rank, between every ordered pair of streams of every space.

    A fused stream (``video+audio``) is one like any other; pairs that share a signal are left out unless they are asked
    for.

    An *item* is a part of a file, or all rows with one value in the column ``group``. Its picture and its sound are
    each one query and one answer, by the mean of their windows; each of its captions is one of its own
    (retrieval-and-tasks-common, section 1). Captions and items answer each other if they belong together; without
    ``group`` also if their captions are equal. An item that lacks one of the two streams takes no part, or its queries
    count as failures (``missing``).
    """

    query: str | None = None
    target: str | None = None
    group: str | None = None
    spaces: Mapping[str, Metric] = field(default_factory=dict)
    """How vectors of a space are compared; cosine where it is not named."""
    ties: metrics.Ties = "average"
    """What items with exactly equal similarity count."""
    missing: Missing = "out"
    """Queries whose answer has no vector take no part, or no recall finds them (median and mean rank are of the others
    all the same: AVLnet, Everything at Once)."""
    more: bool = False
    """Whether R@50, the mean rank and the geometric mean of R@1, R@5 and R@10 are told, too (MMT)."""
    seed: int = 0
    name: str = "retrieval"

    def run(self, model: Sweeper, train: Rows | None, test: Rows) -> dict[str, Score]:
        """Return scores named ``text to video R@1`` and so on (with the space before, if there are several)."""
        tables = {space: table for space, table in model.tables(test).items() if not space.startswith("features:")}
        items = Items.of(test, self.group)
        scores: dict[str, Score] = {}
        for space, table in tables.items():
            prefix = f"{space}: " if len(tables) > 1 else ""
            streams = sorted(set(table.streams.tolist()))
            for asked, answered in permutations(streams, 2):
                shared = set(asked.split("+")) & set(answered.split("+"))
                if shared and (self.query is None or self.target is None):
                    continue
                if self.query in (None, asked) and self.target in (None, answered):
                    found = self._measure(table, asked, answered, items)
                    scores |= {f"{prefix}{asked} to {answered} {name}": score for name, score in found.items()}
        if not scores:
            there = "; ".join(
                f"{space} has {', '.join(sorted(set(x.streams.tolist())))}" for space, x in tables.items()
            )
            wanted = "".join(f" {word} {name}" for word, name in (("from", self.query), ("to", self.target)) if name)
            raise UsageError(
                f"There is nothing to retrieve{wanted}; of the joint spaces, {there or 'none has vectors'}."
            )
        return scores

    def _measure(self, table: EmbeddingTable, asked: str, answered: str, items: "Items") -> dict[str, Score]:
        compared = compare(table, asked, answered, items, self.spaces.get(table.space, "cosine"))
        ranks, count = _entries(compared, self.ties)
        first = np.cumsum(count) - count
        right, size = compared.right, len(compared.gallery)
        share = len(compared.queries) / compared.asked if self.missing == "failed" else 1.0

        def score(statistic: Callable[[np.ndarray], float], chance: float, n: int) -> Score:
            def of_queries(drawn: np.ndarray) -> float:
                last = np.cumsum(count[drawn])
                return statistic(
                    ranks[np.arange(last[-1]) + np.repeat(first[drawn] - last + count[drawn], count[drawn])]
                )

            low, high = metrics.bootstrap(of_queries, compared.samples, seed=self.seed)
            return Score(statistic(ranks), low, high, n, chance)

        def recall(entries: np.ndarray, k: int) -> float:
            return share * metrics.recall_at(entries, k)

        def geometric(entries: np.ndarray) -> float:
            return metrics.geometric_mean([recall(entries, k) for k in (1, 5, 10)])

        at = (1, 5, 10, 50) if self.more else (1, 5, 10)
        by_chance = {k: share * metrics.chance_recall(right, size, k) for k in at}
        n = compared.asked if self.missing == "failed" else len(compared.queries)
        scores = {f"R@{k}": score(partial(recall, k=k), by_chance[k], n) for k in at}
        scores["MedR"] = score(metrics.median_rank, metrics.chance_median(right, size), len(compared.queries))
        if self.more:
            mean = float(np.mean((size + 1) / (right + 1)))  # of the first of some right ones in a random order
            scores["MeanR"] = score(metrics.mean_rank, mean, len(compared.queries))
            scores["GeoMean"] = score(geometric, metrics.geometric_mean([by_chance[k] for k in (1, 5, 10)]), n)
        return scores


def _entries(
    compared: "Comparison", ties: metrics.Ties
) -> tuple[Float[np.ndarray, " entries"], Int[np.ndarray, " queries"]]:
    """Return the ranks of all queries one after another, and how many each query has (several for tied positions)."""
    ranks, counts = [], []
    for similarity, correct in compared.blocks():
        ranks.append(metrics.retrieval_ranks(similarity, correct, ties))
        if ties == "howto100m":
            ends = (metrics.retrieval_ranks(similarity, correct, end) for end in ("optimistic", "pessimistic"))
            counts.append(np.subtract(*reversed(list(ends))).astype(np.int64) + 1)
        else:
            counts.append(np.ones(len(similarity), dtype=np.int64))
    return np.concatenate(ranks), np.concatenate(counts)


@dataclass(frozen=True)
class Items:
    """What belongs together among the rows of a data set."""

    item: Int[np.ndarray, " rows"]
    """Item of each row."""
    caption: list[str]
    """Caption of each row, without case and extra blanks; empty where equal captions do not count."""

    @classmethod
    def of(cls, rows: Rows, group: str | None) -> "Items":
        """Return the items of rows: by a column, or by the part of a file that a row is of."""
        groups = rows.column(group) if group else [""] * len(rows)
        captions = rows.column("caption") if "caption" in rows.columns else [""] * len(rows)
        known: dict[tuple[str, ...], int] = {}
        item = []
        for row, value in zip(rows, groups, strict=True):
            key = (value,) if value else (row["path"], row["start"], row["end"], row["audio"])
            item.append(known.setdefault(key, len(known)))
        folded = [" ".join(text.lower().split()) if group is None else "" for text in captions]
        return cls(np.array(item, dtype=np.int64), folded)


@dataclass(frozen=True)
class Side:
    """Queries or answers: vectors (unit ones for cosine), and of which item and with which captions each is."""

    vectors: Float[np.ndarray, "entries dim"]
    items: Int[np.ndarray, " entries"]
    captions: list[set[str]]

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True)
class Comparison:
    """Queries before a gallery."""

    queries: Side
    gallery: Side
    asked: int
    """Queries of all items, also of those that the gallery lacks."""
    answers: list[np.ndarray]
    """Entries of the gallery that answer each query."""
    samples: np.ndarray
    """What the intervals draw: queries of one item, and equal captions, come together."""

    @property
    def right(self) -> Int[np.ndarray, " queries"]:
        """Number of answers of each query."""
        return np.array([len(found) for found in self.answers])

    def blocks(
        self,
    ) -> Iterator[tuple[Float[np.ndarray, "queries gallery"], Bool[np.ndarray, "queries gallery"]]]:
        """Yield similarities of some queries with the whole gallery, and which answer them.

        Equal vectors of the gallery are compared once, so that their similarities are exactly equal (a matrix product
        may round equal columns differently).
        """
        different, place = np.unique(self.gallery.vectors, axis=0, return_inverse=True)
        for first in range(0, len(self.queries), BLOCK):
            similarity = (self.queries.vectors[first : first + BLOCK] @ different.T)[:, place]
            correct = np.zeros(similarity.shape, dtype=bool)
            for line, found in zip(correct, self.answers[first : first + BLOCK], strict=True):
                line[found] = True
            yield similarity, correct


def compare(table: EmbeddingTable, asked: str, answered: str, items: Items, metric: Metric = "cosine") -> Comparison:
    """Return what one stream asks and another answers, of the items that have both.

    Args:
        table: Vectors of a space.
        asked: Stream of the queries.
        answered: Stream of the gallery.
        items: What belongs together.
        metric: How vectors are compared.

    Raises:
        TriptychError: If no item has both.
    """
    parts = [table.select(stream) for stream in (asked, answered)]
    common = np.intersect1d(*(items.item[part.numbers] for part in parts))
    if not len(common):
        raise TriptychError(f"No recording has both {asked} and {answered}.")
    queries, gallery = (
        _side(part.take(np.isin(items.item[part.numbers], common)), stream, items, metric)
        for part, stream in zip(parts, (asked, answered), strict=True)
    )
    by_item, by_caption = defaultdict(list), defaultdict(list)
    for place, (item, captions) in enumerate(zip(gallery.items.tolist(), gallery.captions, strict=True)):
        by_item[item].append(place)
        for caption in captions:
            by_caption[caption].append(place)
    answers = []
    for item, captions in zip(queries.items.tolist(), queries.captions, strict=True):
        answers.append(np.unique([*by_item[item], *(place for caption in captions for place in by_caption[caption])]))
    whole = len(queries) + len(np.setdiff1d(items.item[parts[0].numbers], common))
    if asked == "text":
        whole = len(parts[0])
    return Comparison(queries, gallery, whole, answers, _samples(queries, items))


def _side(part: EmbeddingTable, stream: str, items: Items, metric: Metric) -> Side:
    told: dict[int, set[str]] = defaultdict(set)
    for item, caption in zip(items.item.tolist(), items.caption, strict=True):
        if caption:
            told[item].add(caption)
    if stream == "text":
        of = items.item[part.numbers]
        own = [{items.caption[number]} - {""} for number in part.numbers.tolist()]
        return Side(_scaled(np.asarray(part.vectors, dtype=np.float64), metric), of, own)
    of, places = np.unique(items.item[part.numbers], return_inverse=True)
    sums = np.zeros((len(of), part.vectors.shape[1]))
    np.add.at(sums, places, part.vectors)
    return Side(_scaled(sums / np.bincount(places)[:, None], metric), of, [told[item] for item in of.tolist()])


def _samples(queries: Side, items: Items) -> np.ndarray:
    rows = Counter(items.item.tolist())
    names = []
    for item, captions in zip(queries.items.tolist(), queries.captions, strict=True):
        names.append(min(captions) if captions and rows[item] == 1 else f"#{item}")
    return np.array(names)


def _scaled(x: Float[np.ndarray, "rows dim"], metric: Metric) -> Float[np.ndarray, "rows dim"]:
    return x if metric == "dot" else x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
