"""Reading the annotation files of public data sets: what every list has in common.

A list names files and what is said of each. ``class_lists`` and ``caption_lists`` turn the lists of one data set into
a ``Listing``; ``layouts`` finds the files on disk. Whatever is wrong in a file is one sentence with file and line.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from triptych.errors import TriptychError, UsageError

JOIN = "|"
"""Between the names in a cell that holds several (``labels``, ``targets``)."""


@dataclass(frozen=True)
class Entry:
    """One line of a list: a file and what is said of it.

    Attributes:
        path: The file as the data set distributes it, relative to the media root.
        fields: The other columns of the manifest's row.
        stems: File names without suffix that the same file goes by elsewhere, tried in this order after its own.
    """

    path: str
    fields: dict[str, object]
    stems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Listing:
    """All lines of the lists that were read.

    Attributes:
        entries: In the order of the files.
        classes: Class names; an entry's ``target`` is a position in it. Empty where there are no classes.
        notes: Sentences for the person who reads the layout.
    """

    entries: list[Entry]
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def seek(annotations: Path, names: Sequence[str], below: Sequence[str] = ()) -> Path | None:
    """Return the first of ``names`` that is in ``annotations`` or in its folders ``below``; None where none is."""
    for folder in (annotations, *(annotations / name for name in below)):
        for name in names:
            if (folder / name).is_file():
                return folder / name
    return None


def require(layout: str, annotations: Path, names: Sequence[str], below: Sequence[str] = ()) -> Path:
    """Return the file that ``seek`` finds.

    Raises:
        TriptychError: If there is none; the sentence says which names were looked for and where.
    """
    found = seek(annotations, names, below)
    if found is None:
        folders = " or ".join(str(folder) for folder in (annotations, *(annotations / name for name in below)))
        raise TriptychError(f"Layout {layout} needs {' or '.join(names)}, which is not in {folders}.")
    return found


def present(layout: str, annotations: Path, names: Mapping[str, Sequence[str]]) -> dict[str, Path]:
    """Return the files that are there, by part (``train``, ``test``), of data sets whose parts come one by one.

    Args:
        layout: Named in the error.
        annotations: The folder.
        names: By part, the names that its file goes by.

    Raises:
        TriptychError: If no part is there.
    """
    found = {part: file for part, options in names.items() if (file := seek(annotations, options)) is not None}
    if not found:
        require(layout, annotations, [name for options in names.values() for name in options])
    return found


def malformed(file: Path, line: int, why: str) -> TriptychError:
    """Return the error of one bad line (counted from 1)."""
    return TriptychError(f"{file}, line {line}: {why}.")


def read_text(file: Path) -> str:
    """Return the text of a file, without a byte order mark.

    Raises:
        TriptychError: If it cannot be read or is not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TriptychError(f"{file} is not UTF-8 text (byte {error.start}).") from error
    except OSError as error:
        raise TriptychError(f"{file} cannot be read: {error.strerror or error}.") from error


def lines(file: Path) -> Iterator[tuple[int, str]]:
    """Yield the number and the text of each line that is not blank, without the white space around it."""
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if line.strip():
            yield number, line.strip()


def table(file: Path, width: int | None = None, comments: bool = False) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the cells of each line of a CSV file that is not blank.

    Spaces after a comma are no part of a cell (AudioSet writes them). Where a quoted cell runs over several lines, the
    number is the last one's.

    Args:
        file: A CSV file without a header (for one with, ``records``).
        width: How many cells a line must have; None for any.
        comments: Whether lines that begin with ``#`` are skipped (file names may begin so too).

    Raises:
        TriptychError: On a line that is not CSV or has another number of cells.
    """
    reader = csv.reader(io.StringIO(read_text(file)), skipinitialspace=True, strict=True)
    try:
        for cells in tqdm(reader, desc=file.name, unit=" lines", delay=2, disable=None):
            if not cells or (comments and cells[0].startswith("#")):
                continue
            if width is not None and len(cells) != width:
                raise malformed(file, reader.line_num, f"{width} cells are expected, {len(cells)} are there")
            yield reader.line_num, cells
    except csv.Error as error:
        raise malformed(file, reader.line_num, f"this is not CSV ({error})") from error


def records(file: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the number and the cells by column of each line of a CSV file with a header.

    Args:
        file: The CSV file.
        columns: The columns that must be there; others may be.

    Raises:
        TriptychError: If a column is missing, or a line has another number of cells than the header.
    """
    rows = table(file)
    _, header = next(rows, (1, []))
    for column in columns:
        if column not in header:
            raise malformed(file, 1, f"the header has no column {column!r} (it has {', '.join(header) or 'nothing'})")
    for number, cells in rows:
        if len(cells) != len(header):
            raise malformed(file, number, f"{len(header)} cells are expected, {len(cells)} are there")
        yield number, dict(zip(header, cells, strict=True))


def read_json(file: Path) -> object:
    """Return what a JSON file holds.

    Raises:
        TriptychError: If it is not JSON, with the line.
    """
    try:
        parsed: object = json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise malformed(file, error.lineno, f"this is not JSON ({error.msg})") from error
    return parsed


def seconds(file: Path, line: int, text: str) -> float:
    """Return the seconds that a cell holds.

    Raises:
        TriptychError: If it is no number, negative or not finite.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise malformed(file, line, f"{text!r} is no time in seconds")
    return value


def whole(file: Path, line: int, text: str) -> int:
    """Return the whole number, from 0, that a cell holds.

    Raises:
        TriptychError: If it holds something else.
    """
    if not (text.isascii() and text.isdigit()):
        raise malformed(file, line, f"{text!r} is no whole number")
    return int(text)


def choose(layout: str, split: str | None, allowed: Sequence[str], default: str | None) -> str | None:
    """Return the split that is asked for, or ``default``.

    Raises:
        UsageError: If it is not one that the layout has.
    """
    if split is None:
        return default
    if split not in allowed:
        raise UsageError(f"Layout {layout} has no split {split!r}; choose {', '.join(allowed)}.")
    return split


def count_note(what: str, found: int, published: int) -> tuple[str, ...]:
    """Return a sentence where a number differs from the published one."""
    return () if found == published else (f"{found} {what} are listed; {published} were published.",)


def numbered(names: Iterable[str]) -> dict[str, int]:
    """Return the position of each name."""
    return {name: position for position, name in enumerate(names)}
