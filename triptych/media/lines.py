"""The lines of a manifest: found in seconds, read one by one, and never copied to a worker."""

import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from triptych.errors import TriptychError, UsageError

CHUNK = 1 << 24
"""Bytes that are looked at in one go."""
QUOTE, COMMA, NEWLINE, RETURN = 34, 44, 10, 13
BEFORE, AFTER = np.zeros((2, 256), dtype=bool)
BEFORE[[COMMA, NEWLINE, QUOTE]] = True
AFTER[[COMMA, NEWLINE, RETURN, QUOTE]] = True
"""Bytes that may stand before a quote that opens a field, and after one that closes it."""


class Text:
    """The bytes of a manifest: a mapped file, or shared memory."""

    def __init__(self, path: Path | None = None, data: bytes | None = None) -> None:
        """Hold a file, or bytes."""
        self.path = path
        self._shared = None if data is None else torch.frombuffer(bytearray(data), dtype=torch.uint8).share_memory_()
        self._version: tuple[int, int] | None = None
        self.data = self._map()

    def _map(self) -> memoryview:
        if self._shared is not None:
            return memoryview(self._shared.numpy())
        assert self.path is not None
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                version = (status.st_size, status.st_mtime_ns)
                if self._version not in (None, version):
                    raise TriptychError(f"{self.path} was changed while it was in use; start again.")
                self._version = version
                return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if status.st_size else b"")
        except OSError as error:
            raise UsageError(f"{self.path} cannot be read: {error.strerror}.") from error

    def slice(self, start: int, end: int, source: str) -> str:
        """Return the text between two bytes.

        Raises:
            UsageError: If it is no UTF-8.
        """
        try:
            return str(self.data[start:end], "utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(f"{source} is no UTF-8 text near byte {start + error.start}; save it as UTF-8.") from None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_shared": self._shared, "_version": self._version}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.data = self._map()


def line_starts(text: Text, quotes: bool) -> Int[Tensor, " ends"]:
    """Return where each line begins that is not empty, and where the last one ends.

    Args:
        text: The manifest.
        quotes: Whether a newline inside a quoted CSV field ends no line.
    """
    data = np.frombuffer(text.data, dtype=np.uint8)
    breaks, doubtful = [np.zeros(1, dtype=np.int64)], []
    marks, before = 0, np.zeros(1, dtype=np.int64)  # quotes so far, and before the line that is not yet over
    for begin in range(0, len(data), CHUNK):
        block = data[begin : begin + CHUNK]
        ends = np.flatnonzero(block == NEWLINE)
        breaks.append(ends + begin + 1)
        if quotes:
            places = np.flatnonzero(block == QUOTE)
            before = np.append(before[-1:], np.searchsorted(places, ends) + marks)
            ordinal = marks + np.arange(len(places)) - before[np.searchsorted(ends, places)]
            doubtful.append(_misplaced(data, places + begin, ordinal % 2 == 0))
            odd = (before[1:] - before[:-1]) % 2 == 1
            doubtful.append(ends[odd] + begin)
            marks += len(places)
    starts = np.concatenate(breaks)
    if marks:
        places = np.concatenate(doubtful)
        if (marks - before[-1]) % 2:
            places = np.append(places, len(data) - 1)
        lines = np.unique(np.searchsorted(starts, places, side="right") - 1)
        starts = np.delete(starts, _continued(text.data, np.append(starts, len(data)), lines))
    following = np.append(starts[1:], len(data))
    empty = np.zeros(len(starts), dtype=bool)
    for line in np.flatnonzero(following - starts <= 2):
        empty[line] = not bytes(text.data[starts[line] : following[line]]).strip(b"\r\n")
    return torch.from_numpy(np.append(starts[~empty], len(data))).share_memory_()


def _misplaced(data: np.ndarray, places: np.ndarray, opening: np.ndarray) -> np.ndarray:
    """Return the quotes that cannot do what their turn says: open a field, close it, or stand doubled in it.

    Args:
        data: All bytes.
        places: Of the quotes.
        opening: Whether it is each one's turn to open a field, if those before it in its line did what was theirs.
    """
    fits = np.where(opening, BEFORE[data[places - 1]], AFTER[data[np.minimum(places + 1, len(data) - 1)]])
    if len(places) and places[0] == 0:
        fits[0] = True
    if len(places) and places[-1] == len(data) - 1:
        fits[-1] = not opening[-1] or BEFORE[data[-2:-1]].all()
    return places[~fits]


def _continued(data: memoryview, starts: np.ndarray, doubtful: np.ndarray) -> list[int]:
    """Return the lines that begin inside a quoted field.

    Only ``doubtful`` lines, with an odd number of quotes or with a misplaced one, can open a field and leave it open. A
    quote that does not stand at the beginning of a field opens none: it is a letter, as of 5" screens.
    """
    continued: list[int] = []
    done = -1
    for line in doubtful.tolist():
        if line <= done:
            continue
        done = line
        while _ends_inside(bytes(data[starts[done] : starts[done + 1]]), inside=done > line):
            if done == len(starts) - 2:
                break
            done += 1
            continued.append(done)
    return continued


def _ends_inside(line: bytes, inside: bool) -> bool:
    """Return whether the end of a line of CSV lies in a quoted field, if its beginning does or not."""
    begins = not inside  # a field may begin here
    for byte in line:
        if inside:
            inside = byte != QUOTE  # a doubled quote closes and opens again
            begins = byte == QUOTE
        else:
            inside = begins and byte == QUOTE
            begins = byte == COMMA
    return inside
