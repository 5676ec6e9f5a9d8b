"""Where the steps of a task are in a recording, from their names alone (CrossTask's protocol, zero-shot)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from triptych.embedding import EmbeddingTable, Looks, sweep
from triptych.errors import TriptychError, UsageError
from triptych.evaluation.evaluator import Score, Sweeper, Swept
from triptych.evaluation.metrics import bootstrap
from triptych.media.collection import Rows
from triptych.method import Metric
from triptych.recipe import Grid, Viewing
from triptych.search.query import embed_words

CHANCE = 20
"""Draws of random similarities that chance is the mean of."""
Kind = Literal["ordered", "over time", "over steps"]


@dataclass(frozen=True)
class Step:
    """A step of a task, and where it is in a recording: nowhere, or in some intervals."""

    name: str
    spans: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class StepLocalization:
    """Recall of steps that are placed by the similarity of their names with windows.

    All steps of a row are known, and their order; each is put at one window, in order, so that the sum of similarities
    is the largest; the rest is background. A step counts as found if its window's share of time meets one of its own
    intervals. A window's share reaches halfway to the next one's middle; those of the first and last reach to the ends.

    Told are ``recall`` (of each row, then of each group of rows, then over groups: HowTo100M, Everything at Once),
    ``pooled recall`` (of all steps of a group together: CrossTask's code), and ``recall`` of steps put at their best
    window without order (``over time``), and of windows given to their best step (``over steps``), of each row.
    """

    column: str
    """Steps of a row, in order: a JSON list of ``[name, start, end, start, end, ...]``, without seconds where it is
    not there."""
    streams: Sequence[str] | None = None
    """Streams of the windows; all but the text where None."""
    group: str | None = None
    """Column of the task; all rows are of one where None."""
    spaces: Mapping[str, Metric] = field(default_factory=dict)
    """How vectors of a space are compared; cosine where it is not named."""
    seconds: float | None = None
    """Length of a window; the model's own where None."""
    stride: float = 1.0
    """Seconds between windows."""
    seed: int = 0
    name: str = "steps"

    def run(self, model: Sweeper, train: Rows, test: Rows) -> dict[str, Score]:
        """Return the recalls of each stream, in percent (with the space before, if there are several).

        Raises:
            UsageError: If a cell of the column is no list of steps, or the model does not look through a grid.
            TriptychError: If a row has more steps than windows, or no row has any.
        """
        if not isinstance(model, Swept):
            raise UsageError(f"{model.name} knows no names of steps; a model with text does.")
        looks = model.sweeps.models[model.name]
        steps = [read_steps(cell, row["path"]) for cell, row in zip(test.column(self.column), test, strict=True)]
        words = {name: embed_words(looks, name) for name in sorted({step.name for row in steps for step in row})}
        groups = test.column(self.group) if self.group else [""] * len(test)
        tables = sweep(looks, test, self._viewing(looks), workers=model.sweeps.workers)
        scores: dict[str, Score] = {}
        for space, table in tables.items():
            prefix = f"{space}: " if len(tables) > 1 else ""
            for stream in sorted(set(table.streams.tolist())):
                if stream != "text" and (self.streams is None or stream in self.streams):
                    found = self._locate(table.select(stream), steps, {name: x[space] for name, x in words.items()})
                    scores |= {f"{prefix}{stream} {name}": x for name, x in self._score(found, groups).items()}
        if not scores:
            raise UsageError(
                f"No window of {test.source} has a vector of {' or '.join(self.streams or ['any stream'])}."
            )
        return scores

    def _viewing(self, looks: Looks) -> Viewing:
        seconds = self.seconds or looks.test.windows.seconds
        if seconds is None:
            raise UsageError("This model looks at whole recordings: say how long a window is: --seconds S.")
        return looks.test.model_copy(update={"windows": Grid(seconds=seconds, count=None, stride=self.stride)})

    def _locate(
        self, table: EmbeddingTable, steps: Sequence[Sequence[Step]], words: Mapping[str, Float[np.ndarray, " dim"]]
    ) -> dict[int, "Located"]:
        """Return what was found of each row that has steps and windows."""
        cosine = self.spaces.get(table.space, "cosine") == "cosine"
        found = {}
        for number in np.unique(table.numbers).tolist():
            if not steps[number]:
                continue
            windows = table.take(np.flatnonzero(table.numbers == number))
            names = np.stack([words[step.name] for step in steps[number]])
            pair = [x / np.linalg.norm(x, axis=1, keepdims=True) if cosine else x for x in (windows.vectors, names)]
            try:
                truth = mark(steps[number], (windows.starts + windows.ends) / 2)
                found[number] = Located.of(pair[0] @ pair[1].T, truth, self.seed)
            except TriptychError as error:
                raise TriptychError(f"{table.paths[number]}: {error} Give a smaller --stride.") from None
        if not found:
            raise TriptychError(f"No row has steps in the column '{self.column}'.")
        return found

    def _score(self, found: Mapping[int, "Located"], groups: Sequence[str]) -> dict[str, Score]:
        rows = list(found.values())
        group = np.unique([groups[number] for number in found], return_inverse=True)[1]
        present = np.array([row.present for row in rows])

        def score(hits: Float[np.ndarray, " rows"], chance: float | None, pooled: bool = False) -> Score:
            def of_rows(drawn: np.ndarray) -> float:
                return 100 * mean_recall(hits[drawn], present[drawn], group[drawn], pooled)

            everything = np.arange(len(rows))
            return Score(
                of_rows(everything), *bootstrap(of_rows, everything, seed=self.seed), int(present.sum()), chance
            )

        hits = {kind: np.array([row.hits[kind] for row in rows], dtype=np.float64) for kind in rows[0].hits}
        guessed = np.array([row.guessed for row in rows])
        return {
            "recall": score(hits["ordered"], 100 * mean_recall(guessed, present, group)),
            "pooled recall": score(
                hits["ordered"], 100 * mean_recall(guessed, present, group, pooled=True), pooled=True
            ),
            "recall over time": score(hits["over time"], None),
            "recall over steps": score(hits["over steps"], None),
        }


@dataclass(frozen=True)
class Located:
    """Steps of a row that are there, and how many of them were found."""

    present: int
    hits: dict[Kind, int]
    guessed: float
    """Found in order by random similarities, on average."""

    @classmethod
    def of(
        cls, scores: Float[np.ndarray, "windows steps"], truth: Bool[np.ndarray, "windows steps"], seed: int
    ) -> "Located":
        """Place the steps by their scores, in all ways, and see which were found."""
        hits: dict[Kind, int] = {
            "ordered": hits_at(truth, place_in_order(scores)),
            "over time": hits_at(truth, scores.argmax(axis=0)),
            "over steps": int(
                (truth & (scores.argmax(axis=1)[:, None] == np.arange(scores.shape[1]))).any(axis=0).sum()
            ),
        }
        dice = np.random.default_rng(seed)
        guessed = np.mean([hits_at(truth, place_in_order(dice.random(scores.shape))) for _ in range(CHANCE)])
        return cls(int(truth.any(axis=0).sum()), hits, float(guessed))


def read_steps(cell: str, path: str) -> tuple[Step, ...]:
    """Return the steps of a cell: none where it is empty.

    Raises:
        UsageError: If it is something else than a JSON list of ``[name, start, end, ...]``.
    """
    try:
        found: Any = json.loads(cell) if cell.strip() else []
        steps = []
        for entry in found:
            name, *seconds = entry
            spans = tuple((float(start), float(end)) for start, end in zip(seconds[::2], seconds[1::2], strict=True))
            if not isinstance(entry, list) or not isinstance(name, str) or any(start > end for start, end in spans):
                raise ValueError("a name, and spans that end after they begin")
            steps.append(Step(name, spans))
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path}: '{cell[:60]}' is no list of steps ([name, start, end, ...]): {error}.") from None
    return tuple(steps)


def place_in_order(scores: Float[np.ndarray, "windows steps"]) -> Int[np.ndarray, " steps"]:
    """Return the window of each step: t_1 < t_2 < ..., with the largest sum of scores (by dynamic programming).

    Raises:
        TriptychError: If there are fewer windows than steps, or a score is not a number.
    """
    windows, steps = scores.shape
    if windows < steps:
        raise TriptychError(f"{windows} windows are too few for {steps} steps.")
    if np.isnan(scores).any():
        raise TriptychError("Some similarities are not numbers.")
    best = np.full(windows, 0.0)  # of the steps so far, the last one anywhere before each window
    ends = []
    for step in range(steps):
        here = best + scores[:, step]
        ends.append(here)
        best = np.concatenate([[-np.inf], np.maximum.accumulate(here)[:-1]])
    places = np.empty(steps, dtype=np.int64)
    last = windows
    for step in reversed(range(steps)):
        last = places[step] = int(ends[step][:last].argmax())
    return places


def mark(steps: Sequence[Step], middles: Float[np.ndarray, " windows"]) -> Bool[np.ndarray, "windows steps"]:
    """Return which windows' shares of time meet which steps.

    Args:
        steps: With their intervals, in seconds.
        middles: Of the windows, increasing. With one window a second, the share of second i is [i, i + 1).
    """
    between = (middles[1:] + middles[:-1]) / 2
    starts, ends = np.concatenate([[-np.inf], between]), np.concatenate([between, [np.inf]])
    marks = np.zeros((len(middles), len(steps)), dtype=bool)
    for place, step in enumerate(steps):
        for start, end in step.spans:
            marks[:, place] |= (starts < end) & (ends > start)
    return marks


def hits_at(truth: Bool[np.ndarray, "windows steps"], places: Int[np.ndarray, " steps"]) -> int:
    """Return how many steps lie where they truly are."""
    return int(truth[places, np.arange(len(places))].sum())


def mean_recall(
    hits: Float[np.ndarray, " rows"],
    present: Int[np.ndarray, " rows"],
    group: Int[np.ndarray, " rows"],
    pooled: bool = False,
) -> float:
    """Return the mean over groups of the recall of their rows, or of all their steps together; in [0, 1].

    Rows without a step in their ground truth do not count.

    Args:
        hits: Steps found of each row.
        present: Steps that are there.
        group: Task of each row.
        pooled: Whether the steps of a group are pooled.
    """
    there = present > 0
    hits, present, group = hits[there], present[there], group[there]
    weights = present if pooled else np.ones(len(present))
    sums, totals = (np.bincount(group, weights=x) for x in (weights * hits / present, weights))
    return float(np.mean(sums[totals > 0] / totals[totals > 0])) if len(hits) else 0.0
