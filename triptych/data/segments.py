"""Long recordings in parts, so that a sweep over all their windows needs no more memory than one over short ones."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from tqdm import tqdm

from triptych.errors import TriptychError
from triptych.media.collection import Rows
from triptych.recipe import Grid, Windows

SEGMENT = 32
"""Windows of a long recording that are decoded together."""
TOGETHER = 128
"""Windows that are decoded and embedded together, about."""


@dataclass(frozen=True)
class Segments:
    """Rows, each a part of a row of a data set; together they have the windows of the whole rows."""

    rows: Rows
    of: Int[np.ndarray, " segments"]
    """Row that each is a part of."""
    begins: Float[np.ndarray, " segments"]
    """Second that each part but a row's first begins at; minus infinity for the first."""
    ends: Float[np.ndarray, " segments"]
    """Second that the next part begins at; infinity for the last (parts overlap where windows do)."""
    windows: int
    """Windows of the largest."""

    @property
    def together(self) -> int:
        """How many of them to decode together."""
        return min(max(TOGETHER // self.windows, 1), 32)

    def first_told(
        self, segments: Int[np.ndarray, " captions"], starts: Float[np.ndarray, " captions"]
    ) -> Bool[np.ndarray, " captions"]:
        """Return which captions a part is the first to tell: a row's own caption, and those that begin in the part.

        Args:
            segments: The part that tells each caption.
            starts: Second that each begins at, in float32 as spans are.
        """
        begins, ends = (x[segments].astype(np.float32) for x in (self.begins, self.ends))
        if "caption" in self.rows.columns:
            return np.isneginf(begins)
        return (begins <= starts) & (starts < ends)


def segment(rows: Rows, numbers: Sequence[int], windows: Windows, progress: bool = True) -> Segments:
    """Return some rows in parts of at most ``SEGMENT`` windows, where windows follow each other over the whole row.

    The windows are those of the whole: a part begins where the window after the last one's begins.

    Args:
        rows: The data set.
        numbers: Which of its rows.
        windows: How they are looked at; only a grid without a number of windows makes parts.
        progress: Whether to show a bar while rows are measured.
    """
    grid = windows if isinstance(windows, Grid) else None
    whole = rows.select(numbers)
    open_ends = np.full(len(whole), -np.inf), np.full(len(whole), np.inf)
    if grid is None or grid.count is not None or grid.seconds is None:
        count = 8 if grid is None else (grid.count or 1) * grid.crops
        return Segments(whole, np.asarray(numbers, dtype=np.int64), *open_ends, count)
    stride = grid.stride or grid.seconds
    parts: list[Mapping[str, Any]] = []
    of, begins, ends, most = [], [], [], 1
    for number in tqdm(numbers, "measure", unit="file", delay=2, disable=None if progress else True):
        row = rows.row(number)
        start, end = _extent(rows, number)
        count = max(math.ceil((end - start - grid.seconds) / stride - 1e-6), 0) + 1
        most = max(most, min(count, SEGMENT))
        for first in range(0, count, SEGMENT):
            begin = start + first * stride
            until = begin + (SEGMENT - 1) * stride + grid.seconds
            last = first + SEGMENT >= count
            span = {"start": repr(begin), "end": repr(end if last else until)}
            parts.append(row.values if count <= SEGMENT else {**row.values, **span})
            of.append(number)
            begins.append(begin if first else -math.inf)
            ends.append(math.inf if last else begin + SEGMENT * stride)
    if len(parts) == len(whole):
        return Segments(whole, np.array(of, dtype=np.int64), *open_ends, most * grid.crops)
    cut = Rows.build(parts, rows.root, rows.source)
    return Segments(cut, np.array(of), np.array(begins), np.array(ends), most * grid.crops)


def _extent(rows: Rows, number: int) -> tuple[float, float]:
    """Return the seconds of a row; none where its file cannot be read, which the sweep will tell."""
    try:
        with rows.recording(number) as recording:
            return recording.timeline.start, recording.timeline.end
    except (TriptychError, OSError):
        return 0.0, 0.0
