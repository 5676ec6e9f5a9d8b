"""The index: windows of a folder's recordings as vectors in LanceDB, and their search."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from triptych.embedding import EmbeddingTable, Looks, sweep_parts
from triptych.errors import TriptychError, UsageError
from triptych.files import is_taken, replacing
from triptych.media.collection import Rows
from triptych.recipe import TextTransform
from triptych.search.hits import Hit, merge

FORMAT = 2
"""Version of an index's folder."""
FACTS = ("model", "fingerprint", "source", "root", "spaces", "windows", "files", "cells", "whole")
"""What ``index.json`` tells, besides who wrote it."""
FLAT = 20_000
"""Vectors of a space up to which every one is compared; beyond, IVF_FLAT cells are searched."""
BATCH_ROWS = 256
"""Rows written in one transaction: few large writes keep the table fast."""
SAMPLE = 2_000
"""Vectors of each stream kept to tell what similarity is common."""
KEPT = timedelta(minutes=1)
"""Age from which superseded versions of the tables are removed: searches that run meanwhile still find theirs."""


class Index:
    """An index on disk."""

    def __init__(self, folder: Path, meta: dict[str, Any], database: Any) -> None:
        self.folder = folder
        self.meta = meta
        self._database = database

    # ------------------------------------------------------------------------------------------------ opening

    @classmethod
    def open(cls, folder: str | Path) -> "Index":
        """Open an index.

        Raises:
            UsageError: If there is none.
            TriptychError: If it is of another format or damaged.
        """
        folder = Path(folder)
        path = folder / "index.json"
        if not path.is_file():
            raise UsageError(
                f"{folder} is no index (no index.json); make one with: triptych index MODEL SOURCE --out {folder}"
            )
        try:
            meta = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise TriptychError(f"{path} is damaged: {error}; build the index again.") from error
        found = meta.get("format") if isinstance(meta, dict) else None
        if found != FORMAT:
            raise TriptychError(
                f"{folder} has index format {found}; this version reads format {FORMAT}: build the index again."
            )
        missing = [name for name in FACTS if name not in meta]
        if missing:
            raise TriptychError(f"{path} is damaged: it lacks '{missing[0]}'; build the index again.")
        return cls(folder, meta, _lancedb().connect(str(folder / "vectors")))

    @classmethod
    def create(cls, folder: str | Path, facts: Mapping[str, Any]) -> "Index":
        """Make an empty index; ``facts`` tell what ``FACTS`` names of model, source and windows.

        Raises:
            UsageError: If the folder holds something else.
        """
        folder = Path(folder)
        if is_taken(folder):
            raise UsageError(f"{folder} holds something that is no index; choose an empty place.")
        lancedb = _lancedb()
        index = cls(folder, {"format": FORMAT, **facts, "files": 0, "cells": {}, "whole": True}, None)
        index.remember()
        index._database = lancedb.connect(str(folder / "vectors"))
        return index

    def remember(self, **facts: Any) -> None:
        """Write ``index.json`` anew, with these facts changed."""
        self.meta |= facts
        with replacing(self.folder / "index.json") as place:
            place.write_text(json.dumps(self.meta, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @property
    def spaces(self) -> list[str]:
        """Names of the joint spaces that hold vectors."""
        return [name.removeprefix("space_") for name in self._names() if name.startswith("space_")]

    def count(self, space: str) -> int:
        """Return the number of vectors of a space."""
        return int(self._table(space).count_rows())

    def files(self) -> dict[str, str]:
        """Return the stamp of every file that was taken in: what tells whether it has changed."""
        if "files" not in self._names():
            return {}
        with self._told():
            found = self._database.open_table("files").to_arrow()
        return dict(zip(found["path"].to_pylist(), found["stamp"].to_pylist(), strict=True))

    def info(self) -> dict[str, Any]:
        """Return what the index is: model, source, spaces with their vectors, files, bytes on disk."""
        size = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        return {**self.meta, "vectors": {space: self.count(space) for space in self.spaces}, "bytes": size}

    # ------------------------------------------------------------------------------------------------ filling

    def update(
        self,
        model: Looks,
        rows: Rows,
        workers: int | None = None,
        progress: bool = True,
        problems: list[tuple[str, str]] | None = None,
    ) -> dict[str, int]:
        """Take in what is new or changed and drop what is gone.

        An interruption loses at most the recordings of the current batch; run it again.

        Args:
            model: The model that the index was made with; it looks through a grid of windows.
            rows: The source's recordings as they are now; several rows may be parts of one file.
            workers: Decoding processes.
            progress: Whether to show a bar.
            problems: Takes path and reason of the files that could not be read.

        Returns:
            Numbers of files ``added``, ``changed``, ``removed``, ``unchanged`` and ``unreadable``.
        """
        known, now = self.files(), _files(rows)
        gone = [path for path in known if path not in now]
        changed = [path for path, (_, stamp) in now.items() if path in known and known[path] != stamp]
        new = [path for path in now if path not in known]
        todo = [*new, *changed]
        whole = self.meta["whole"] and self._has_sample()
        unreadable: list[tuple[str, str]] = []
        if todo or gone or not whole:
            self.remember(whole=False)
            # After an interruption there may be vectors of files that are not in the list yet.
            self._drop([*gone, *(changed if whole else todo)])
            unreadable = self._take_in(model, rows, {path: now[path] for path in todo}, workers, progress)
            self.finish()
            self.remember(whole=True, files=len(now))
        if problems is not None:
            problems += unreadable
        return {
            "added": len(new),
            "changed": len(changed),
            "removed": len(gone),
            "unchanged": len(now) - len(todo),
            "unreadable": len(unreadable),
        }

    def _take_in(
        self,
        model: Looks,
        rows: Rows,
        files: Mapping[str, tuple[list[int], str]],
        workers: int | None,
        progress: bool,
    ) -> list[tuple[str, str]]:
        """Embed files and write their vectors; return path and reason of those that cannot be read."""
        if not files:
            return []
        numbers = [(path, number) for path, (rows_of, _) in files.items() for number in rows_of]
        parts = [numbers[first : first + BATCH_ROWS] for first in range(0, len(numbers), BATCH_ROWS)]
        last = dict(numbers)
        seen = model.test.views[0]
        view = {stream: spec for stream, spec in seen.items() if not isinstance(spec.transform, TextTransform)}
        viewing = model.test.model_copy(update={"views": (view,)})
        ranges = [[number for _, number in part] for part in parts]
        swept = sweep_parts([model], rows, ranges, viewing, ("embed",), workers, progress, "index")
        unreadable: dict[str, str] = {}
        for part, made in zip(parts, swept, strict=True):
            for space, table in made.tables[0].items():
                self.append(space, np.asarray(table.vectors), _columns(table))
            unreadable |= dict(made.problems)
            self._register({path: files[path][1] for path, number in part if last[path] == number})
        return list(unreadable.items())

    def append(self, space: str, vectors: Float[np.ndarray, "rows dim"], columns: Mapping[str, Any]) -> None:
        """Write vectors of a space with their ``path``, ``start``, ``end`` and ``stream``, in one transaction."""
        if not len(vectors):
            return
        import pyarrow

        flat = pyarrow.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
        listed = pyarrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        self._write(f"space_{space}", pyarrow.table({"vector": listed, **columns}))

    def _register(self, stamps: Mapping[str, str]) -> None:
        if stamps:
            import pyarrow

            self._write("files", pyarrow.table({"path": list(stamps), "stamp": list(stamps.values())}))

    def _write(self, name: str, rows: Any) -> None:
        with self._told():
            if name in self._names():
                self._database.open_table(name).add(rows)
            else:
                self._database.create_table(name, rows)

    def _drop(self, paths: Sequence[str]) -> None:
        for first in range(0, len(paths), 500):
            listed = ", ".join(_quoted(path) for path in paths[first : first + 500])
            with self._told():
                for name in self._names():
                    self._database.open_table(name).delete(f"path IN ({listed})")

    def finish(self) -> None:
        """Compact the tables, build cells where there are many vectors, and sample each stream's vectors."""
        with self._told():
            arrays = self._settle()
        with replacing(self.folder / "sample.safetensors") as place:
            save_file(arrays, place)
        self.__dict__.pop("_sample", None)

    def _settle(self) -> dict[str, np.ndarray]:
        """Compact, build cells and return the sample."""
        arrays: dict[str, np.ndarray] = {}
        generator = np.random.default_rng(0)
        for name in self._names():
            self._database.open_table(name).optimize(cleanup_older_than=KEPT)
        for space in self.spaces:
            self._build_cells(space)
            table = self._table(space)
            streams = np.array(
                table.search().select(["stream"]).limit(None).to_arrow()["stream"].to_pylist(), dtype=str
            )
            for stream in np.unique(streams):
                places = generator.permutation(np.flatnonzero(streams == stream))[:SAMPLE]
                found = table.take_offsets(np.sort(places).tolist()).select(["vector"]).to_arrow()["vector"]
                arrays[f"{space}/{stream}"] = np.array(found.to_pylist(), dtype=np.float32)
        return arrays

    def _build_cells(self, space: str) -> None:
        """Build IVF_FLAT over a large table, anew where it has doubled since; small ones are compared whole."""
        from lancedb.index import Bitmap, IvfFlat

        table = self._table(space)
        rows, cells = table.count_rows(), self.meta["cells"]
        if rows <= FLAT or (space in cells and rows < 2 * cells[space]["rows"]):
            return  # ``optimize`` has put new vectors into the cells that there are
        partitions = round(math.sqrt(rows))
        kind: Literal["cosine", "dot"] = "cosine" if self._metric(space) == "cosine" else "dot"
        config = IvfFlat(distance_type=kind, num_partitions=partitions, sample_rate=64)
        table.create_index("vector", config=config, replace=True)
        table.create_index("stream", config=Bitmap(), replace=True)
        self.remember(cells=cells | {space: {"rows": rows, "partitions": partitions}})

    # ------------------------------------------------------------------------------------------------ searching

    def search(
        self,
        query: Mapping[str, Float[np.ndarray, " dim"]],
        k: int = 10,
        path: str | None = None,
        between: tuple[float, float] | None = None,
        streams: Sequence[str] | None = None,
    ) -> list[Hit]:
        """Return the best hits, overlapping ones of a file merged to the best.

        Args:
            query: A vector in each space, see ``triptych.search.query``.
            k: Hits at most.
            path: Only files whose path matches this pattern (``*``, ``?``, ``[...]``).
            between: Only windows that overlap these seconds.
            streams: Only these streams.

        Raises:
            UsageError: If a pattern or a span makes no sense, or the index lacks the stream.
            TriptychError: If the index is damaged, or holds no vectors of the query's spaces.
        """
        conditions = []
        if path is not None:
            conditions.append(f"regexp_match(path, {_quoted(glob_to_regex(path))})")
        if between is not None:
            start, end = between
            if end <= start:
                raise UsageError(f"--between {start:g} {end:g}: the end must come after the start.")
            # The window of a picture has no length.
            conditions.append(f"`start` < {end!r} AND (`end` > {start!r} OR (`end` = `start` AND `end` = {start!r}))")
        with self._told():
            there = {space: self._streams(space) for space in query if space in self.spaces}
        if not there:
            raise TriptychError(f"{self.folder} holds no vectors to compare with; run `triptych index` again.")
        unknown = sorted(set(streams or ()) - {stream for found in there.values() for stream in found})
        if unknown:
            names = ", ".join(sorted({stream for found in there.values() for stream in found})) or "none"
            raise UsageError(f"The index has no stream '{unknown[0]}'; it has {names}.")
        hits: list[Hit] = []
        for space, found in there.items():
            for stream in found:
                if streams is None or stream in streams:
                    with self._told():
                        hits += self._search_stream(space, stream, query[space], k, conditions)
        return merge(hits)[:k]

    def _search_stream(
        self, space: str, stream: str, vector: Float[np.ndarray, " dim"], k: int, conditions: Sequence[str]
    ) -> list[Hit]:
        """Return the best hits of a stream, more of them than ``k`` where neighbouring windows are merged."""
        metric = self._metric(space)
        where = " AND ".join([f"stream = {_quoted(stream)}", *conditions])
        search = (
            self._table(space)
            .search(np.asarray(vector, dtype=np.float32))
            .distance_type(metric)
            .where(where, prefilter=True)
            .select(["path", "start", "end", "_distance"])
        )
        if space in self.meta["cells"]:
            search = search.nprobes(num_probes(self.meta["cells"][space]["partitions"]))
        usual = self._sample[f"{space}/{stream}"] @ vector
        mean, deviation = float(usual.mean()), max(float(usual.std()), 1e-6)
        wanted = 5 * k
        while True:
            found = search.limit(wanted).to_arrow().to_pylist()
            hits = []
            for row in found:
                similarity = 1 - row["_distance"]
                score = (similarity - mean) / deviation
                hits.append(Hit(row["path"], row["start"], row["end"], score, similarity, stream, space))
            if len(found) < wanted or len(merge(hits)) >= k:
                return hits
            wanted *= 4

    @cached_property
    def _sample(self) -> dict[str, Float[np.ndarray, "rows dim"]]:
        """Some vectors of each stream, by ``space/stream``."""
        try:
            return load_file(self.folder / "sample.safetensors")
        except (OSError, SafetensorError) as error:
            raise TriptychError(f"{self.folder} is not whole ({error}); run `triptych index` again.") from error

    def _has_sample(self) -> bool:
        try:
            return bool(self._sample)
        except TriptychError:
            return False

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn errors of the database into sentences."""
        try:
            yield
        except (OSError, RuntimeError, ValueError) as error:
            text = str(error)
            if "os error 28" in text or "No space left" in text:
                why = "the disk is full; make room and run `triptych index` again, it goes on"
            else:
                why = f"its files are damaged or cannot be read or written ({text.splitlines()[0]}); build it again"
            raise TriptychError(f"{self.folder}: {why}.") from error

    def _streams(self, space: str) -> list[str]:
        return sorted(name.split("/", 1)[1] for name in self._sample if name.split("/", 1)[0] == space)

    def _metric(self, space: str) -> Literal["cosine", "dot"]:
        return "dot" if self.meta["spaces"].get(space) == "dot" else "cosine"

    def _table(self, space: str) -> Any:
        return self._database.open_table(f"space_{space}")

    def _names(self) -> list[str]:
        """Return the tables; what a full disk left of one that never came to be is none."""
        place = self.folder / "vectors"
        names = self._database.list_tables().tables
        return [name for name in names if any((place / f"{name}.lance" / "_versions").glob("*.manifest"))]


def num_probes(partitions: int) -> int:
    """Return how many of an index's cells are searched."""
    return max(16, partitions // 16)


# ---------------------------------------------------------------------------------------------------- what is indexed


def _files(rows: Rows) -> dict[str, tuple[list[int], str]]:
    """Return, by path, the rows that are different parts of the file, and what tells whether it has changed."""
    parts: dict[str, dict[str, int]] = {}
    for number, row in enumerate(rows):
        span = ",".join(row[column] for column in ("start", "end", "audio"))
        parts.setdefault(row["path"], {}).setdefault(span, number)
    found = {}
    for path, spans in parts.items():
        row = rows.row(min(spans.values()))
        stamps = [_stamp(file) for file in (row.path, row.audio) if file is not None]
        found[path] = list(spans.values()), " ".join([*stamps, *sorted(span for span in spans if span != ",,")])
    return found


def _stamp(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return "missing"
    return f"{status.st_size} {status.st_mtime_ns}"


def _columns(table: EmbeddingTable) -> dict[str, Any]:
    paths = [table.paths[number] for number in table.numbers.tolist()]
    return {"path": paths, "start": table.starts, "end": table.ends, "stream": table.streams.tolist()}


# ---------------------------------------------------------------------------------------------------- conditions


def glob_to_regex(pattern: str) -> str:
    """Return a pattern for paths as a regular expression of the whole path.

    Raises:
        UsageError: If a bracket is not closed.
    """
    result, place = "", 0
    while place < len(pattern):
        character = pattern[place]
        place += 1
        if character == "[":
            end = pattern.find("]", place + 1)
            if end < 0:
                raise UsageError(f"--path {pattern}: the bracket is not closed; write [[] for a bracket itself.")
            inside = pattern[place:end]
            inverse = inside.startswith("!") and len(inside) > 1
            letters = inside[1:] if inverse else inside
            result += f"[{'^' if inverse else ''}{''.join(_escaped(one, keep='-') for one in letters)}]"
            place = end + 1
        else:
            result += {"*": ".*", "?": "."}.get(character) or _escaped(character)
    return f"^{result}$"


def _escaped(character: str, keep: str = "") -> str:
    plain = character.isalnum() or character in "/_ " + keep or ord(character) > 127
    return character if plain else "\\" + character


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _lancedb() -> Any:
    try:
        import lancedb
    except ImportError as error:
        raise TriptychError("The index is a LanceDB database: pip install 'triptych[search]'.") from error
    return lancedb
