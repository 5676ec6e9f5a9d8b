"""What an evaluator is, and the sweeps that evaluators share."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from triptych.embedding import EmbeddingTable, Looks, sweep_all
from triptych.errors import UsageError
from triptych.media.collection import Rows
from triptych.recipe import Grid, Viewing, validate


@dataclass(frozen=True)
class Score:
    """One measured number."""

    value: float
    low: float
    high: float
    """95 % interval, from resampling the test rows (or their groups)."""
    n: int
    """Test rows (queries, for retrieval) that it was measured on."""
    chance: float | None = None
    """What guessing scores."""
    note: str = ""


@runtime_checkable
class Sweeper(Protocol):
    """Gives the tables of a model's vectors on some rows."""

    @property
    def name(self) -> str:
        """What tables call it."""
        ...

    def tables(self, rows: Rows) -> Mapping[str, EmbeddingTable]:
        """Return a table a space, ``features:STREAM`` for what the encoders yield."""
        ...


class Sweeps:
    """Models that look alike at recordings, each of which is decoded once for all models and folds."""

    def __init__(
        self,
        models: Mapping[str, Looks],
        rows: Rows,
        viewing: Viewing,
        workers: int | None = None,
        progress: bool = True,
    ) -> None:
        """Hold the models by name.

        Args:
            models: Methods with one way to look at a recording.
            rows: All rows that will be asked for; selections of them are cut from one sweep.
            viewing: How the models look at a recording.
            workers: Decoding processes.
            progress: Whether to show a bar.
        """
        self.models = dict(models)
        self.rows = rows
        self.viewing = viewing
        self.workers = workers
        self.progress = progress
        self.problems: list[tuple[str, str]] = []
        """Path and reason of what could not be read."""
        self._made: list[dict[str, EmbeddingTable]] = []

    def of(self, name: str) -> "Swept":
        """Return one of the models as a sweeper."""
        return Swept(name, self)

    def tables(self, name: str, rows: Rows) -> Mapping[str, EmbeddingTable]:
        """Return joint spaces and features of some of the rows, by one model."""
        if not self._made:
            models = list(self.models.values())
            kinds = ("embed", "features") if models[0].method.spaces else ("features",)
            options = (self.viewing, kinds, self.workers, self.progress, self.problems)
            self._made = sweep_all(models, self.rows, *options)
        chosen = places_among(rows, self.rows)
        found = self._made[list(self.models).index(name)]
        return {space: table.of_rows(chosen) for space, table in found.items()}


def places_among(rows: Rows, everything: Rows) -> Int[np.ndarray, " rows"]:
    """Return where rows stand among others that were selected from the same manifest and hold all of them."""
    known = {place: number for number, place in enumerate(everything.places.tolist())}
    return np.array([known[place] for place in rows.places.tolist()], dtype=np.int64)


@dataclass(frozen=True)
class Swept:
    """One model of shared sweeps."""

    name: str
    sweeps: Sweeps

    def tables(self, rows: Rows) -> Mapping[str, EmbeddingTable]:
        """Return a table a space."""
        return self.sweeps.tables(self.name, rows)


@runtime_checkable
class Evaluator(Protocol):
    """A protocol of the field."""

    @property
    def name(self) -> str:
        """Name of the task."""
        ...

    def run(self, model: Sweeper, train: Rows, test: Rows) -> dict[str, Score]:
        """Return named scores of the model on ``test``; what is learned for it is learned on ``train``."""
        ...


def with_windows(viewing: Viewing, windows: int | None, crops: int | None = None) -> Viewing:
    """Return a viewing with so many evenly spaced windows a recording, and crops of each; unchanged where None.

    Raises:
        UsageError: If the viewing has no grid of windows, or there are not 1 or 3 crops.
    """
    if windows is None and crops is None:
        return viewing
    if not isinstance(viewing.windows, Grid):
        what = "--crops" if windows is None else "--windows"
        raise UsageError(f"{what} needs a model that looks through a grid; this one uses {viewing.windows.kind}.")
    changes: dict[str, int | None] = {} if windows is None else {"count": windows, "stride": None}
    changes |= {} if crops is None else {"crops": crops}
    grid = validate(Grid, viewing.windows.model_dump() | changes, "--crops")
    return viewing.model_copy(update={"windows": grid})


def gather_streams(tables: Mapping[str, EmbeddingTable], streams: Sequence[str] | None) -> dict[str, EmbeddingTable]:
    """Return the features by stream; those asked for.

    Raises:
        UsageError: If the model does not yield a stream that was asked for.
    """
    found = {space.removeprefix("features:"): table for space, table in tables.items() if space.startswith("features:")}
    if streams is None:
        return {stream: table for stream, table in found.items() if stream != "text"}
    for stream in streams:
        if stream not in found:
            raise UsageError(f"There are no features of the stream '{stream}'; there are {', '.join(found) or 'none'}.")
    return {stream: found[stream] for stream in streams}


def mean_score(scores: Sequence[Score]) -> Score:
    """Return the mean over folds; its interval treats the folds' intervals as independent."""
    if len(scores) == 1:
        return scores[0]
    value = sum(score.value for score in scores) / len(scores)
    half = math.sqrt(sum(((score.high - score.low) / 2) ** 2 for score in scores)) / len(scores)
    total = sum(score.n for score in scores)
    by_fold = "folds " + ", ".join(f"{score.value:.1f}" for score in scores)
    return Score(value, value - half, value + half, total, scores[0].chance, by_fold)


def as_json(score: Score) -> dict[str, Any]:
    """Return a score as numbers that JSON can hold."""
    return {k: (None if isinstance(v, float) and np.isnan(v) else v) for k, v in score.__dict__.items()}
