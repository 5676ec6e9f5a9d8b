"""From the cells of a label column to numbers: one label a row, several, one for each second, or a number.

Each kind has ``read``, which returns the targets of all rows, and, but for numbers, ``find``, which reads the names of
the classes from the data.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn import functional

from triptych.data.event_lists import BACKGROUND
from triptych.errors import TriptychError, UsageError
from triptych.media.collection import Rows

NO_LABEL = -100
"""Target where there is no label (what cross entropy ignores)."""


@runtime_checkable
class Target(Protocol):
    """How a column becomes ``Batch.targets``."""

    def read(self, rows: Rows, column: str) -> Shaped[Tensor, "rows ..."]:
        """Return the targets of all rows.

        Raises:
            UsageError: If there is no such column, or a cell is none of this kind.
            TriptychError: If a label is none of the classes.
        """
        ...

    def shares(self, targets: Shaped[Tensor, "rows ..."], column: str) -> Float[Tensor, "rows ..."]:
        """Return targets that ``read`` gave as numbers that can be mixed; NaN where there is none.

        Raises:
            UsageError: If they cannot be mixed.
        """
        ...


Targets = Mapping[str, Target]
"""By column."""


@dataclass(frozen=True)
class Number:
    """A number a row."""

    def read(self, rows: Rows, column: str) -> Float[Tensor, " rows"]:
        """Return the numbers; NaN where a cell is empty."""
        try:
            return torch.tensor([float(value) if value.strip() else math.nan for value in rows.column(column)])
        except ValueError as error:
            raise UsageError(f"The column '{column}' holds something that is no number: {error}.") from None

    def shares(self, targets: Float[Tensor, "rows ..."], column: str) -> Float[Tensor, "rows ..."]:
        """Return the targets as they are."""
        return targets


@dataclass(frozen=True)
class OneLabel:
    """One label a row: the whole cell."""

    classes: tuple[str, ...]
    """Names, in their order."""

    @classmethod
    def find(cls, rows: Rows, column: str) -> "OneLabel":
        """Return the labels of a column as classes, in alphabetical order."""
        return cls(tuple(sorted({value.strip() for value in rows.column(column)} - {""})))

    def read(self, rows: Rows, column: str) -> Int[Tensor, " rows"]:
        """Return the places among the classes; ``NO_LABEL`` where a cell is empty."""
        places = _places(self.classes, column, {value.strip() for value in rows.column(column)})
        return torch.tensor([places[value.strip()] for value in rows.column(column)])

    def shares(self, targets: Int[Tensor, " rows"], column: str) -> Float[Tensor, "rows classes"]:
        """Return 1 for the class of each row, else 0; NaN where there is none."""
        spread = functional.one_hot(targets.clamp(min=0), len(self.classes)).float()
        return spread.masked_fill(targets[:, None] < 0, math.nan)


@dataclass(frozen=True)
class SeveralLabels:
    """Any number of labels a row, see ``read_labels``."""

    classes: tuple[str, ...]
    """Names, in their order."""

    @classmethod
    def find(cls, rows: Rows, column: str) -> "SeveralLabels":
        """Return the labels of a column as classes, in alphabetical order."""
        return cls(tuple(sorted({label for labels in read_labels(rows, column) for label in labels or ()})))

    def read(self, rows: Rows, column: str) -> Float[Tensor, "rows classes"]:
        """Return 1 for the classes of each row, else 0; NaN where a cell is empty, whose labels are not known."""
        found = read_labels(rows, column)
        places = _places(self.classes, column, {label for labels in found for label in labels or ()})
        targets = torch.zeros(len(rows), len(self.classes))
        for line, labels in zip(targets, found, strict=True):
            if labels is None:
                line.fill_(math.nan)
            line[[places[label] for label in labels or ()]] = 1.0
        return targets

    def shares(self, targets: Float[Tensor, "rows ..."], column: str) -> Float[Tensor, "rows ..."]:
        """Return the targets as they are."""
        return targets


@dataclass(frozen=True)
class LabelsBySecond:
    """A JSON list of labels, one for each second of the row from its start on; an empty one is not known."""

    classes: tuple[str, ...]
    """Names, in their order."""

    @classmethod
    def find(cls, rows: Rows, column: str) -> "LabelsBySecond":
        """Return the labels of a column as classes, in alphabetical order, but for ``background``, which is last."""
        found = {label for labels in _lists(rows, column) for label in labels} - {""}
        return cls(tuple(sorted(found, key=lambda label: (label == BACKGROUND, label))))

    def read(self, rows: Rows, column: str) -> Int[Tensor, "rows seconds"]:
        """Return the places among the classes; ``NO_LABEL`` where there is no label, and beyond the end of a row."""
        found = _lists(rows, column)
        places = _places(self.classes, column, {label for labels in found for label in labels})
        targets = torch.full((len(rows), max(map(len, found), default=0)), NO_LABEL)
        for line, labels in zip(targets, found, strict=True):
            line[: len(labels)] = torch.tensor([places[label] for label in labels], dtype=torch.long)
        return targets

    def shares(self, targets: Int[Tensor, "rows seconds"], column: str) -> Float[Tensor, "rows ..."]:
        """Refuse: seconds of two rows are not mixed."""
        raise UsageError(f"Rows with a label for each second ('{column}') are not mixed: take `mixing` out.")


def read_labels(rows: Rows, column: str) -> list[tuple[str, ...] | None]:
    """Return the labels of each row, None where its cell is empty.

    A cell holds one label, or several: a JSON list (which may be empty), or labels between ``;`` or ``|``.

    Raises:
        UsageError: If there is no such column, or a cell begins like a JSON list and is none.
    """
    return [_labels(value.strip(), column) for value in rows.column(column)]


def _labels(cell: str, column: str) -> tuple[str, ...] | None:
    if not cell:
        return None
    if cell.startswith("["):
        return tuple(dict.fromkeys(_list(cell, column)))
    parts = (part.strip() for part in cell.replace("|", ";").split(";"))
    return tuple(dict.fromkeys(part for part in parts if part))


def _lists(rows: Rows, column: str) -> list[list[str]]:
    return [_list(cell.strip(), column) if cell.strip() else [] for cell in rows.column(column)]


def _list(cell: str, column: str) -> list[str]:
    try:
        found = json.loads(cell)
    except ValueError as error:
        raise UsageError(f"'{cell}' in the column '{column}' is no JSON list: {error}.") from None
    if not isinstance(found, list):
        raise UsageError(f"'{cell}' in the column '{column}' is no JSON list of labels.")
    return ["" if label is None else str(label) for label in found]


def _places(classes: tuple[str, ...], column: str, found: Iterable[str]) -> dict[str, int]:
    """Return the place of each class, and ``NO_LABEL`` of the empty one."""
    places = {name: place for place, name in enumerate(classes)} | {"": NO_LABEL}
    unknown = sorted(set(found) - set(places))
    if unknown:
        raise TriptychError(f"The column '{column}' holds '{unknown[0]}', which is none of the {len(classes)} classes.")
    return places
