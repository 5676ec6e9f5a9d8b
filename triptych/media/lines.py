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
    """Return where each line begins that is not blank, and where the last one ends.

    Args:
        text: The manifest.
        quotes: Whether a newline inside a quoted CSV field ends no line.
    """
    size = len(text.data)
    breaks, odd = [np.zeros(1, dtype=np.int64)], []
    marks = 0  # quotes so far
    for begin in range(0, size, CHUNK):
        block = np.frombuffer(text.data[begin : begin + CHUNK], dtype=np.uint8)
        ends = np.flatnonzero(block == NEWLINE)
        breaks.append(ends + begin + 1)
        if quotes:
            places = np.flatnonzero(block == QUOTE)
            odd.append((np.searchsorted(places, ends) + marks) % 2)
            marks += len(places)
    starts = np.concatenate(breaks)
    if quotes and marks:
        parity = np.concatenate([[0], *odd])  # of the quotes before each line
        torn = np.flatnonzero(parity[1:] != parity[:-1])  # lines with an odd number of quotes
        if marks % 2 != parity[-1]:
            torn = np.append(torn, len(starts) - 1)
        starts = np.delete(starts, _continued(text.data, np.append(starts, size), torn))
    blank = np.zeros(len(starts), dtype=bool)
    following = np.append(starts[1:], size)
    for place in np.flatnonzero(following - starts <= 2):
        blank[place] = not bytes(text.data[starts[place] : following[place]]).strip()
    return torch.from_numpy(np.append(starts[~blank], size)).share_memory_()


def _continued(data: memoryview, starts: np.ndarray, torn: np.ndarray) -> list[int]:
    """Return the lines that begin inside a quoted field.

    Only lines with an odd number of quotes can open one and leave it open, or close it. A quote that does not stand at
    the beginning of a field opens none: it is a letter, as of 5" screens.
    """
    continued: list[int] = []
    opened: int | None = None
    for line in torn.tolist():
        inside = _ends_inside(bytes(data[starts[line] : starts[line + 1]]), opened is not None)
        if opened is not None and not inside:
            continued += range(opened + 1, line + 1)
            opened = None
        elif opened is None and inside:
            opened = line
    if opened is not None:
        continued += range(opened + 1, len(starts) - 1)
    return continued


def _ends_inside(line: bytes, inside: bool) -> bool:
    """Return whether the end of a line of CSV lies in a quoted field."""
    begins = True  # a field may begin here
    for byte in line:
        if inside:
            inside = byte != QUOTE  # a doubled quote closes and opens again
            begins = byte == QUOTE
        else:
            inside = begins and byte == QUOTE
            begins = byte == COMMA
    return inside
