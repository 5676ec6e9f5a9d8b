"""The rows of a data set: a manifest or a folder, opened in seconds and read row by row, without a Python object a row.

A manifest is CSV or JSON lines with a column ``path``; ``caption``, ``start``, ``end``, ``split``, ``audio`` and what
``prepare`` measured have a meaning, every other column is a label. Relative paths count from the manifest's folder.
"""

import csv
import hashlib
import io
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as Ordered
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from triptych.errors import UsageError
from triptych.files import replacing
from triptych.media.lines import Text, line_starts
from triptych.media.measured import SEQUENCE, remembered
from triptych.media.recording import Recording

csv.field_size_limit(sys.maxsize)  # the captions of a film are more than the 128 KiB that the module allows
VIDEO = {
    ".mp4",
    ".m4v",
    ".mov",
    ".mkv",
    ".webm",
    ".avi",
    ".mpg",
    ".mpeg",
    ".ts",
    ".mts",
    ".wmv",
    ".flv",
    ".3gp",
    ".ogv",
}
SOUND = {".wav", ".mp3", ".m4a", ".aac", ".flac", ".ogg", ".oga", ".opus", ".wma", ".aif", ".aiff"}
PICTURES = {".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff"}
SUFFIXES = VIDEO | SOUND | PICTURES
"""Files of a folder that are taken for media."""


class Row:
    """One row: the values of its columns as text, empty where it has none."""

    def __init__(self, values: Mapping[str, str], root: Path) -> None:
        self.values = values
        self.root = root

    @property
    def path(self) -> Path:
        """Where the file lies."""
        return self.root / self.values["path"]

    @property
    def audio(self) -> Path | None:
        """A separate sound file, if the row names one."""
        return self.root / self.values["audio"] if self.values.get("audio") else None

    @property
    def sequences(self) -> dict[str, Path]:
        """Files of precomputed vectors by stream."""
        return {
            name.removeprefix(SEQUENCE): self.root / value
            for name, value in self.values.items()
            if name.startswith(SEQUENCE) and value
        }

    def whole_file(self) -> Recording:
        """Return the recording of the file, whatever part of it the row is, as if nothing were known of it."""
        return Recording(self.path, audio=self.audio, sequences=self.sequences)

    def __getitem__(self, column: str) -> str:
        """Return the value of a column."""
        return self.values.get(column, "")

    def number(self, column: str) -> float | None:
        """Return a number, None where the column is empty.

        Raises:
            UsageError: If it is no number.
        """
        text = self[column].strip()
        if not text:
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise UsageError(f"{self.path}: '{text}' in the column '{column}' is no number of seconds.")
        return value


class Rows:
    """Rows of a manifest, in order; selections share its text, and workers map the same file."""

    def __init__(
        self, text: Text, columns: tuple[str, ...], offsets: Int[Tensor, " ends"], root: Path, source: str
    ) -> None:
        """Hold a manifest; use ``Rows.open``.

        Args:
            text: Its bytes.
            columns: Names of its columns.
            offsets: Where each row begins, and where the last one ends.
            root: Folder that relative paths count from.
            source: What messages call it.
        """
        self.columns = columns
        self.root = root
        self.source = source
        self._text = text
        self._offsets = offsets
        self._index = torch.arange(len(offsets) - 1)

    # ------------------------------------------------------------------------------------------------ opening

    @classmethod
    def open(cls, source: str | Path) -> "Rows":
        """Open a folder (walked recursively), a CSV or JSON-lines manifest, or a single media file.

        A folder that ``prepare`` wrote is opened by its ``manifest.csv``.

        Raises:
            UsageError: If there is nothing there, no media in the folder, or no column ``path`` in the manifest.
        """
        source = Path(source)
        if source.is_dir():
            prepared = source / "collection.json"
            return cls._manifest(source / "manifest.csv") if prepared.is_file() else cls._folder(source)
        if not source.exists():
            raise UsageError(f"{source}: there is no such file or folder.")
        if source.suffix.lower() in (".csv", ".jsonl", ".json"):
            return cls._manifest(source)
        if source.suffix.lower() in SUFFIXES:
            return cls.build([{"path": source.name}], source.parent, str(source))
        raise UsageError(f"{source} is neither a folder, a media file, nor a manifest (.csv or .jsonl).")

    @classmethod
    def build(cls, rows: Iterable[Mapping[str, Any]], root: Path, source: str) -> "Rows":
        """Return rows from mappings of columns to values."""
        rows = list(rows)
        columns = tuple(dict.fromkeys(name for row in rows for name in row))
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return cls._parse(Text(data=buffer.getvalue().encode()), root, source, json_lines=False)

    @classmethod
    def _folder(cls, folder: Path) -> "Rows":
        paths = list(find_media(folder))
        if not paths:
            raise UsageError(
                f"{folder} holds no media files ({', '.join(sorted(VIDEO)[:5])}, ... or sound or pictures)."
            )
        names = [str(path.relative_to(folder)) for path in paths]
        for name in names:
            if not _is_text(name):
                raise UsageError(f"{folder}: the name {name!r} is no UTF-8; give the file another name.")
        return cls.build(({"path": name} for name in names), folder, str(folder))

    @classmethod
    def _manifest(cls, path: Path) -> "Rows":
        return cls._parse(Text(path=path), path.parent, str(path), json_lines=path.suffix.lower() != ".csv")

    @classmethod
    def _parse(cls, text: Text, root: Path, source: str, json_lines: bool) -> "Rows":
        offsets = line_starts(text, quotes=not json_lines)
        if len(offsets) < 2:
            raise UsageError(f"{source} is empty; a manifest has a column 'path' and one row a recording.")
        if json_lines:
            columns: dict[str, None] = {}
            for number in range(min(len(offsets) - 1, 1000)):
                columns |= dict.fromkeys(_json_row(text, offsets, number, source))
            rows = cls(text, tuple(columns), offsets, root, source)
            rows._json = True
        else:
            header = _csv_row(text.slice(int(offsets[0]), int(offsets[1]), source).lstrip("\ufeff"), source, 0)
            rows = cls(text, tuple(name.strip() for name in header), offsets[1:], root, source)
            if len(rows) == 0:
                raise UsageError(f"{source} has a header and no rows.")
        if "path" not in rows.columns:
            raise UsageError(f"{source} has no column 'path'; it has {', '.join(rows.columns)}.")
        return rows

    _json = False

    # ------------------------------------------------------------------------------------------------ reading

    def __len__(self) -> int:
        return len(self._index)

    def row(self, number: int) -> Row:
        """Return a row.

        Raises:
            UsageError: If its line cannot be parsed, or its path is empty; names the line.
        """
        line = int(self._index[number])
        if self._json:
            values = {key: _as_text(value) for key, value in self._json_values(line).items()}
        else:
            raw = self._text.slice(int(self._offsets[line]), int(self._offsets[line + 1]), self.source)
            fields = _csv_row(raw, self.source, line + 1)
            if len(fields) > len(self.columns):
                raise UsageError(
                    f"{self.source}, row {line + 1}: {len(fields)} values for {len(self.columns)} columns; "
                    "a comma in a value needs quotes round it."
                )
            values = dict(zip(self.columns, fields, strict=False))
        if not values.get("path"):
            raise UsageError(f"{self.source}, row {line + 1}: the path is empty.")
        return Row(values, self.root)

    def _json_values(self, line: int) -> dict[str, Any]:
        return _json_row(self._text, self._offsets, line, self.source)

    def __iter__(self) -> Iterator[Row]:
        for number in range(len(self)):
            yield self.row(number)

    def column(self, name: str) -> list[str]:
        """Return the values of a column as text, empty where a row has none.

        Raises:
            UsageError: If there is no such column; it names those there are.
        """
        if name not in self.columns:
            raise UsageError(f"{self.source} has no column '{name}'; it has {', '.join(self.columns)}.")
        if self._json:
            return [row[name] for row in self]
        at = self.columns.index(name)
        return [fields[at] if at < len(fields) else "" for fields in self._fields()]

    def _fields(self) -> Iterator[list[str]]:
        """Yield the fields of every row of a CSV manifest: all rows in a few seconds, where ``row`` takes many."""
        starts, ends = self._offsets[self._index].tolist(), self._offsets[self._index + 1].tolist()
        path = self.columns.index("path")
        lines = (self._text.slice(start, end, self.source) for start, end in zip(starts, ends, strict=True))
        number = 0
        try:
            for fields in csv.reader(lines):
                if len(fields) > len(self.columns) or len(fields) <= path or not fields[path]:
                    self.row(number)  # says what is wrong
                yield fields
                number += 1
        except csv.Error:
            self.row(number)
            raise

    def select(self, chosen: Int[Tensor, " rows"] | Ordered[int]) -> "Rows":
        """Return the rows at these places, in this order."""
        other = object.__new__(Rows)
        other.__dict__.update(self.__dict__)
        other._index = self._index[torch.as_tensor(chosen, dtype=torch.long)]
        return other

    @property
    def places(self) -> Int[Tensor, " rows"]:
        """Places of these rows in the manifest that they were selected from."""
        return self._index

    def where(self, keep: Callable[[Row], bool] | None = None, **values: str) -> "Rows":
        """Return the rows whose columns have these values, or that ``keep`` accepts."""
        chosen = torch.ones(len(self), dtype=torch.bool)
        for column, value in values.items():
            found = self.column(column) if column in self.columns else [""] * len(self)
            chosen &= torch.tensor([one == value for one in found], dtype=torch.bool)
        some = self.select(chosen.nonzero()[:, 0])
        return some if keep is None else some.select([number for number, row in enumerate(some) if keep(row)])

    @property
    def splits(self) -> tuple[str, ...]:
        """Values of the column ``split``, if it has ``train`` among them; else it is no split, and there are none."""
        if "split" not in self.columns:
            return ()
        values = tuple(dict.fromkeys(self.column("split")))
        return values if "train" in values else ()

    def split(self, name: str) -> "Rows":
        """Return the rows of a split; all rows where there are no splits.

        Raises:
            UsageError: If there are splits, but not this one.
        """
        splits = self.splits
        if not splits:
            return self
        if name not in splits:
            raise UsageError(f"{self.source} has no split '{name}'; it has {', '.join(splits)}.")
        return self.where(split=name)

    @property
    def fingerprint(self) -> str:
        """Hash of the rows' values and order."""
        digest = hashlib.sha256()
        for line in self._index.tolist():
            digest.update(self._text.data[int(self._offsets[line]) : int(self._offsets[line + 1])])
        return digest.hexdigest()

    def captions(self) -> list[str]:
        """Return all captions of all rows: of the column, or of sidecars and subtitle streams."""
        if "caption" in self.columns:
            return [text for text in self.column("caption") if text.strip()]
        found: list[str] = []
        for number in range(len(self)):
            with self.recording(number) as recording:
                found += [caption.text for caption in recording.timeline.captions]
        return found

    def recording(self, number: int) -> Recording:
        """Return the recording of a row; what ``prepare`` measured is not measured again."""
        row = self.row(number)
        recording = row.whole_file()
        if row["probe"]:
            recording.remember(*remembered(row.path, row["probe"]))
        caption, start, end = row["caption"].strip(), row.number("start"), row.number("end")
        if "caption" in row.values or start is not None or end is not None:
            recording.narrow(caption if "caption" in row.values else None, start, end)
        return recording

    def save(self, path: str | Path) -> Path:
        """Write the rows as a CSV manifest; paths stay as they are, so it belongs where they count from."""
        path = Path(path)
        with replacing(path) as place, place.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(row.values for row in self)
        return path

    def with_columns(self, columns: Mapping[str, Ordered[Any]]) -> "Rows":
        """Return the rows with further columns, in memory."""
        merged = []
        for number, row in enumerate(self):
            merged.append({**row.values, **{name: values[number] for name, values in columns.items()}})
        return Rows.build(merged, self.root, self.source)


def find_media(folder: Path) -> Iterator[Path]:
    """Yield the media files under a folder in a fixed order; hidden ones are passed over, links followed once.

    Raises:
        UsageError: If a folder may not be read.
    """
    seen: set[tuple[int, int]] = set()

    def walk(place: Path) -> Iterator[Path]:
        status = place.stat()
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        try:
            paths = sorted(place.iterdir())
        except OSError as error:
            raise UsageError(f"{place} cannot be read: {error.strerror}.") from error
        for path in paths:
            if path.name.startswith("."):
                continue
            if path.is_dir():
                yield from walk(path)
            elif path.suffix.lower() in SUFFIXES and path.is_file():
                yield path

    yield from walk(folder)


def _csv_row(raw: str, source: str, number: int) -> list[str]:
    try:
        return next(csv.reader([raw]), [])
    except csv.Error as error:
        where = f"row {number}" if number else "the header"
        raise UsageError(f"{source}, {where} is no CSV ({error}); lines end with a newline.") from error


def _json_row(text: Text, offsets: Tensor, line: int, source: str) -> dict[str, Any]:
    raw = text.slice(int(offsets[line]), int(offsets[line + 1]), source)
    try:
        values = json.loads(raw)
    except json.JSONDecodeError as error:
        raise UsageError(f"{source}, line {line + 1} is no JSON: {error}.") from error
    if not isinstance(values, dict):
        raise UsageError(f"{source}, line {line + 1}: a row is an object of columns and values.")
    return values


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
