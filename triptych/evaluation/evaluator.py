"""What an evaluator is, and the sweeps that evaluators share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from triptych.embedding import EmbeddingTable, Looks, sweep_all
from triptych.errors import TriptychError, UsageError
from triptych.media.collection import Rows
from triptych.recipe import Grid, Viewing


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
    """Models that look alike at recordings, which are decoded once for all of them; each sweep is made once."""

    def __init__(
        self,
        models: Mapping[str, Looks],
        viewing: Viewing,
        workers: int | None = None,
        progress: bool = True,
    ) -> None:
        """Hold the models by name; ``viewing`` is how they look at a recording."""
        self.models = dict(models)
        self.viewing = viewing
        self.workers = workers
        self.progress = progress
        self.problems: list[tuple[str, str]] = []
        """Path and reason of what could not be read."""
        self._made: dict[str, list[dict[str, EmbeddingTable]]] = {}

    def of(self, name: str) -> "Swept":
        """Return one of the models as a sweeper."""
        return Swept(name, self)

    def tables(self, name: str, rows: Rows) -> Mapping[str, EmbeddingTable]:
        """Return joint spaces and features of the rows, by one model."""
        key = rows.fingerprint
        if key not in self._made:
            models = list(self.models.values())
            kinds = ("embed", "features") if models[0].method.spaces else ("features",)
            options = (self.viewing, kinds, 16, self.workers, self.progress, self.problems)
            self._made[key] = sweep_all(models, rows, *options)
        return self._made[key][list(self.models).index(name)]


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


def with_windows(viewing: Viewing, windows: int | None) -> Viewing:
    """Return a viewing with so many evenly spaced windows a recording; unchanged where None.

    Raises:
        UsageError: If the viewing has no grid of windows.
    """
    if windows is None:
        return viewing
    if not isinstance(viewing.windows, Grid):
        raise UsageError(f"--windows needs a model that looks through a grid; this one uses {viewing.windows.kind}.")
    grid = viewing.windows.model_copy(update={"count": windows, "stride": None})
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


def read_labels(rows: Rows, column: str) -> list[str]:
    """Return the labels of a column, empty where a row has none.

    Raises:
        UsageError: If there is no such column; it names those there are.
        TriptychError: If all rows have the same label, or none.
    """
    values = [value.strip() for value in rows.column(column)]
    different = {value for value in values if value}
    if len(different) < 2:
        what = f"only the label '{next(iter(different))}'" if different else "no labels"
        raise TriptychError(f"The column '{column}' of {rows.source} has {what}; a probe needs two classes or more.")
    return values


def as_json(score: Score) -> dict[str, Any]:
    """Return a score as numbers that JSON can hold."""
    return {k: (None if isinstance(v, float) and np.isnan(v) else v) for k, v in score.__dict__.items()}
