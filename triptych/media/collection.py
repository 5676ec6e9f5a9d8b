"""The rows of a data set: a manifest or a folder, opened in seconds and read row by row, without a Python object a row.

A manifest is CSV or JSON lines with a column ``path``; ``caption``, ``start``, ``end``, ``split``, ``audio`` and what
``prepare`` measured have a meaning, every other column is a label. Relative paths count from the manifest's folder.
"""

import csv
import hashlib
import io
import json
import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as Ordered
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from triptych.errors import TriptychError, UsageError
from triptych.files import replacing
from triptych.media.captions import Caption
from triptych.media.recording import Recording
from triptych.media.timeline import Extent, Probe, Timeline

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
MEASURED = ("seconds", "width", "height", "fps", "video_codec", "audio_rate", "channels", "audio_codec", "probe")
"""Columns that ``prepare`` writes; ``probe`` is JSON with all that is needed to skip opening the file."""
CHUNK = 1 << 24


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
            return float(text)
        except ValueError:
            raise UsageError(f"{self.path}: '{text}' in the column '{column}' is no number of seconds.") from None


class Rows:
    """Rows of a manifest, in order; selections share its text, and workers map the same file."""

    def __init__(
        self, text: "_Text", columns: tuple[str, ...], offsets: Int[Tensor, " ends"], root: Path, source: str
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
        return cls._parse(_Text(data=buffer.getvalue().encode()), root, source, json_lines=False)

    @classmethod
    def _folder(cls, folder: Path) -> "Rows":
        paths = list(find_media(folder))
        if not paths:
            raise UsageError(
                f"{folder} holds no media files ({', '.join(sorted(VIDEO)[:5])}, ... or sound or pictures)."
            )
        return cls.build(({"path": str(path.relative_to(folder))} for path in paths), folder, str(folder))

    @classmethod
    def _manifest(cls, path: Path) -> "Rows":
        return cls._parse(_Text(path=path), path.parent, str(path), json_lines=path.suffix.lower() != ".csv")

    @classmethod
    def _parse(cls, text: "_Text", root: Path, source: str, json_lines: bool) -> "Rows":
        offsets = _line_starts(text, quotes=not json_lines)
        if len(offsets) < 2:
            raise UsageError(f"{source} is empty; a manifest has a column 'path' and one row a recording.")
        if json_lines:
            columns: dict[str, None] = {}
            for number in range(min(len(offsets) - 1, 1000)):
                columns |= dict.fromkeys(_json_row(text, offsets, number, source))
            rows = cls(text, tuple(columns), offsets, root, source)
            rows._json = True
        else:
            header = next(csv.reader([text.slice(int(offsets[0]), int(offsets[1]), source).lstrip("\ufeff")]))
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
            fields = next(csv.reader(io.StringIO(raw)), [])
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
        return [row[name] for row in self]

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
        places = [
            number
            for number, row in enumerate(self)
            if all(row[column] == value for column, value in values.items()) and (keep is None or keep(row))
        ]
        return self.select(places)

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
        sequences = {
            name.removeprefix("stream:"): self.root / row[name]
            for name in self.columns
            if name.startswith("stream:") and row[name]
        }
        recording = Recording(row.path, audio=row.audio, sequences=sequences)
        if row["probe"]:
            recording.remember(*_remembered(row))
        _narrow(recording, row)
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


class _Text:
    """The bytes of a manifest: a mapped file, or shared memory; neither is copied to a worker."""

    def __init__(self, path: Path | None = None, data: bytes | None = None) -> None:
        self.path = path
        self._tensor = None if data is None else torch.frombuffer(bytearray(data), dtype=torch.uint8).share_memory_()
        self.data = self._map()

    def _map(self) -> memoryview:
        if self._tensor is not None:
            return memoryview(self._tensor.numpy())
        assert self.path is not None
        try:
            with self.path.open("rb") as file:
                if self.path.stat().st_size == 0:
                    return memoryview(b"")
                return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except OSError as error:
            raise UsageError(f"{self.path} cannot be read: {error.strerror}.") from error

    def slice(self, start: int, end: int, source: str) -> str:
        try:
            return str(self.data[start:end], "utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(f"{source} is no UTF-8 text near byte {start + error.start}; save it as UTF-8.") from None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_tensor": self._tensor}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.data = self._map()


def find_media(folder: Path) -> Iterator[Path]:
    """Yield the media files under a folder in a fixed order; hidden ones are passed over, links followed once."""
    seen: set[tuple[int, int]] = set()

    def walk(place: Path) -> Iterator[Path]:
        status = place.stat()
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        for path in sorted(place.iterdir()):
            if path.name.startswith("."):
                continue
            if path.is_dir():
                yield from walk(path)
            elif path.suffix.lower() in SUFFIXES and path.is_file():
                yield path

    yield from walk(folder)


def probe_columns(recording: Recording, moments: Ordered[float] = ()) -> dict[str, Any]:
    """Return what ``prepare`` keeps of a recording, by column."""
    probe, timeline = recording.probe, recording.timeline
    kept = {
        "streams": {name: [e.start, e.end, e.rate] for name, e in timeline.streams.items()},
        "captions": [[c.text, c.start, c.end, list(c.words)] for c in timeline.captions],
        "moments": [round(second, 3) for second in moments],
        "probe": {name: getattr(probe, name) for name in Probe.__dataclass_fields__},
    }
    return {
        "seconds": f"{timeline.end:.3f}",
        "width": probe.width or "",
        "height": probe.height or "",
        "fps": round(probe.fps, 3) or "",
        "video_codec": probe.video_codec,
        "audio_rate": probe.audio_rate or "",
        "channels": probe.channels or "",
        "audio_codec": probe.audio_codec,
        "probe": json.dumps(kept, ensure_ascii=False, separators=(",", ":")),
    }


def _remembered(row: Row) -> tuple[Probe, Timeline]:
    try:
        kept = json.loads(row["probe"])
        values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in kept["probe"].items()}
        probe = Probe(**values)
        return probe, Timeline(
            start=0.0,
            end=probe.duration,
            streams={name: Extent(*extent) for name, extent in kept["streams"].items()},
            captions=tuple(
                Caption(text, start, end, tuple((w, a, b) for w, a, b in words))
                for text, start, end, words in kept["captions"]
            ),
            moments=tuple(kept["moments"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise TriptychError(
            f"{row.path}: the column 'probe' is damaged ({error}); run `triptych prepare` again."
        ) from error


def _narrow(recording: Recording, row: Row) -> None:
    """Apply the row's own caption and span."""
    caption, start, end = row["caption"].strip(), row.number("start"), row.number("end")
    if "caption" in row.values or start is not None or end is not None:
        recording.narrow(caption if "caption" in row.values else None, start, end)


def _line_starts(text: _Text, quotes: bool) -> Int[Tensor, " ends"]:
    """Return where each line begins and where the last one ends; a newline in quotes ends no line."""
    size, inside, starts = len(text.data), 0, [np.zeros(1, dtype=np.int64)]
    for begin in range(0, size, CHUNK):
        block = np.frombuffer(text.data[begin : begin + CHUNK], dtype=np.uint8)
        breaks = np.flatnonzero(block == 10)
        if quotes:
            marks = np.flatnonzero(block == 34)
            breaks = breaks[(np.searchsorted(marks, breaks) + inside) % 2 == 0]
            inside += len(marks)
        starts.append(breaks + begin + 1)
    ends = np.concatenate(starts)
    if size and ends[-1] != size:
        ends = np.append(ends, size)
    while len(ends) > 1 and not bytes(text.data[ends[-2] : ends[-1]]).strip():  # blank lines at the end
        ends = ends[:-1]
    return torch.from_numpy(ends).share_memory_()


def _json_row(text: _Text, offsets: Tensor, line: int, source: str) -> dict[str, Any]:
    raw = text.slice(int(offsets[line]), int(offsets[line + 1]), source)
    try:
        values = json.loads(raw)
    except json.JSONDecodeError as error:
        raise UsageError(f"{source}, line {line + 1} is no JSON: {error}.") from error
    if not isinstance(values, dict):
        raise UsageError(f"{source}, line {line + 1}: a row is an object of columns and values.")
    return values


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
