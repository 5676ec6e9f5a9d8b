"""The index: windows of a folder's recordings as vectors in LanceDB, and their search."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from triptych.data.loader import Loader
from triptych.embedding import Looks, embed_batch
from triptych.errors import TriptychError, UsageError
from triptych.files import replacing
from triptych.media.collection import Rows

FORMAT = 1
"""Version of an index's folder."""
FLAT = 20_000
"""Vectors of a space up to which every one is compared; beyond, IVF_FLAT cells are searched."""
BATCH_FILES = 256
"""Recordings written in one transaction: few large writes keep the table fast."""
SAMPLE = 2_000
"""Vectors of each stream kept to tell what similarity is common."""


@dataclass(frozen=True)
class Hit:
    """An answer: where to look."""

    path: str
    """Relative to the source."""
    start: float
    end: float
    score: float
    """Standard deviations above this query's usual similarity with the stream's windows: comparable over streams."""
    similarity: float
    stream: str
    space: str


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
        if meta.get("format") != FORMAT:
            raise TriptychError(f"{folder} has index format {meta.get('format')}; this version reads {FORMAT}.")
        return cls(folder, meta, _lancedb().connect(str(folder / "vectors")))

    @classmethod
    def create(cls, folder: str | Path, facts: Mapping[str, Any]) -> "Index":
        """Make an empty index; ``facts`` tell model, source and spaces.

        Raises:
            TriptychError: If the folder holds something else.
        """
        folder = Path(folder)
        if folder.exists() and any(folder.iterdir()):
            raise TriptychError(f"{folder} holds something that is no index; choose an empty place.")
        lancedb = _lancedb()
        folder.mkdir(parents=True, exist_ok=True)
        meta = {"format": FORMAT, **facts, "files": 0}
        index = cls(folder, meta, lancedb.connect(str(folder / "vectors")))
        index._write_meta()
        return index

    def _write_meta(self) -> None:
        with replacing(self.folder / "index.json") as place:
            place.write_text(json.dumps(self.meta, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @property
    def spaces(self) -> list[str]:
        """Names of the joint spaces that hold vectors."""
        return [name.removeprefix("space_") for name in _names(self._database) if name.startswith("space_")]

    def count(self, space: str) -> int:
        """Return the number of vectors of a space."""
        return int(self._table(space).count_rows())

    def files(self) -> dict[str, dict[str, Any]]:
        """Return what is known of every file: its stamp and the seconds indexed."""
        if "files" not in _names(self._database):
            return {}
        rows = self._database.open_table("files").to_arrow().to_pylist()
        return {row["path"]: row for row in rows}

    # ------------------------------------------------------------------------------------------------ filling

    def update(self, model: Looks, rows: Rows, workers: int | None = None, progress: bool = True) -> dict[str, int]:
        """Take in what is new or changed and drop what is gone.

        An interruption loses at most the recordings of the current batch; run it again.

        Args:
            model: The model that the index was made with.
            rows: The source's recordings as they are now.
            workers: Decoding processes.
            progress: Whether to show a bar.

        Returns:
            Numbers of files ``added``, ``changed``, ``removed``, ``unchanged`` and ``unreadable``.
        """
        known = self.files()
        now = {row["path"]: (number, _stamp(row.path)) for number, row in enumerate(rows)}
        gone = [path for path in known if path not in now]
        changed = [path for path, (_, stamp) in now.items() if path in known and known[path]["stamp"] != stamp]
        new = [path for path in now if path not in known]
        self._drop([*gone, *changed])
        todo = [now[path][0] for path in [*new, *changed]]
        unreadable: list[tuple[str, str]] = []
        device = next(model.method.parameters()).device
        with (
            Loader(rows, model.test, tokenizer=model.tokenizer, workers=workers, device=device) as loader,
            tqdm(total=len(todo), desc="index", unit="file", delay=2, disable=None if progress else True) as bar,
        ):
            for first in range(0, len(todo), BATCH_FILES):
                part = todo[first : first + BATCH_FILES]
                before = len(loader.problems)
                crops = getattr(model.test.windows, "crops", 1)
                batches = loader.sweep(part, batch_rows=16)
                pieces = (piece for batch in batches for piece in embed_batch(model.method, batch, ("embed",), crops))
                self._add(pieces, rows)
                unreadable += loader.problems[before:]
                bad = {path for path, _ in loader.problems[before:]}
                self._register(
                    {"path": rows.row(number)["path"], "stamp": _stamp(rows.row(number).path), "readable": ok}
                    for number in part
                    for ok in [str(rows.row(number).path) not in bad]
                )
                bar.update(len(part))
        self.meta["files"] = len(now)
        if todo or gone:
            self.finish()
        self._write_meta()
        return {
            "added": len(new),
            "changed": len(changed),
            "removed": len(gone),
            "unchanged": len(now) - len(new) - len(changed),
            "unreadable": len(unreadable),
        }

    def _add(self, pieces: Any, rows: Rows) -> None:
        by_space: dict[str, list[dict[str, Any]]] = {}
        for piece in pieces:
            if piece["stream"] != "text" and len(piece["numbers"]):
                by_space.setdefault(piece["space"], []).append(piece)
        for space, found in by_space.items():
            columns: dict[str, Any] = {
                "path": [rows.row(int(number))["path"] for piece in found for number in piece["numbers"]],
                "start": np.concatenate([piece["spans"][:, 0] for piece in found]).astype(np.float64),
                "end": np.concatenate([piece["spans"][:, 1] for piece in found]).astype(np.float64),
                "stream": [piece["stream"] for piece in found for _ in piece["numbers"]],
            }
            self.append(space, np.concatenate([piece["vectors"] for piece in found]), columns)

    def append(self, space: str, vectors: Float[np.ndarray, "rows dim"], columns: Mapping[str, Any]) -> None:
        """Write vectors of a space with their ``path``, ``start``, ``end`` and ``stream``, in one transaction."""
        import pyarrow

        flat = pyarrow.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
        listed = pyarrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        table = pyarrow.table({"vector": listed, **columns})
        name = f"space_{space}"
        if name in _names(self._database):
            self._database.open_table(name).add(table)
        else:
            self._database.create_table(name, table)

    def _register(self, files: Any) -> None:
        import pyarrow

        table = pyarrow.Table.from_pylist(list(files))
        if "files" in _names(self._database):
            self._database.open_table("files").add(table)
        else:
            self._database.create_table("files", table)

    def _drop(self, paths: Sequence[str]) -> None:
        for first in range(0, len(paths), 500):
            listed = ", ".join(_quoted(path) for path in paths[first : first + 500])
            for name in _names(self._database):
                self._database.open_table(name).delete(f"path IN ({listed})")

    def finish(self) -> None:
        """Build cells where there are many vectors, and keep a sample of each stream's vectors."""
        sample: dict[str, dict[str, list[list[float]]]] = {}
        for space in self.spaces:
            table = self._table(space)
            if table.count_rows() == 0:
                continue
            build_cells(table, self.meta["spaces"].get(space, "cosine"))
            generator = np.random.default_rng(0)
            picked = np.sort(generator.permutation(table.count_rows())[: 4 * SAMPLE])
            found = table.take_offsets(picked.tolist()).select(["vector", "stream"]).to_arrow()
            for stream in set(found["stream"].to_pylist()):
                chosen = found.filter(_equals(found["stream"], stream))
                sample.setdefault(space, {})[stream] = chosen["vector"].to_pylist()[:SAMPLE]
        arrays = {
            f"{space}/{stream}": np.array(vectors, dtype=np.float32)
            for space, streams in sample.items()
            for stream, vectors in streams.items()
        }
        with replacing(self.folder / "sample.safetensors") as place:
            save_file(arrays, place)

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
            UsageError: If a pattern or a span makes no sense, or the index lacks the space or the stream.
        """
        if between is not None and between[1] <= between[0]:
            raise UsageError(f"--between {between[0]:g} {between[1]:g}: the end must come after the start.")
        hits: list[Hit] = []
        for space, vector in query.items():
            if space not in self.spaces:
                continue
            there = sorted(self._background(space))
            for stream in streams or there:
                if stream not in there:
                    raise UsageError(f"The index has no stream '{stream}'; it has {', '.join(there)}.")
                hits += self._search_stream(space, stream, vector, k, path, between)
        return merge(sorted(hits, key=lambda hit: -hit.score))[:k]

    def _search_stream(
        self,
        space: str,
        stream: str,
        vector: Float[np.ndarray, " dim"],
        k: int,
        path: str | None,
        between: tuple[float, float] | None,
    ) -> list[Hit]:
        conditions = [f"stream = {_quoted(stream)}"]
        if path is not None:
            conditions.append(f"regexp_match(path, {_quoted(glob_to_regex(path))})")
        if between is not None:
            conditions.append(f"`end` > {float(between[0])!r} AND `start` < {float(between[1])!r}")
        metric = self.meta["spaces"].get(space, "cosine")
        table = self._table(space)
        # Neighbouring windows are merged, so more are fetched than are wanted.
        search = (
            table.search(np.asarray(vector, dtype=np.float32))
            .distance_type("cosine" if metric == "cosine" else "dot")
            .where(" AND ".join(conditions), prefilter=True)
            .select(["path", "start", "end", "_distance"])
            .limit(5 * k)
        )
        probes = num_probes(table.count_rows())
        found = search.nprobes(probes).to_arrow().to_pylist() if probes else search.to_arrow().to_pylist()
        usual = self._background(space)[stream] @ vector
        mean, deviation = float(usual.mean()), max(float(usual.std()), 1e-6)
        hits = []
        for row in found:
            similarity = 1 - row["_distance"]
            score = (similarity - mean) / deviation
            hits.append(Hit(row["path"], row["start"], row["end"], score, similarity, stream, space))
        return hits

    def _background(self, space: str) -> dict[str, Float[np.ndarray, "rows dim"]]:
        try:
            arrays = load_file(self.folder / "sample.safetensors")
        except (OSError, SafetensorError) as error:
            raise TriptychError(f"{self.folder} is not whole ({error}); run `triptych index` again.") from error
        return {name.split("/")[1]: vectors for name, vectors in arrays.items() if name.split("/")[0] == space}

    def _table(self, space: str) -> Any:
        return self._database.open_table(f"space_{space}")

    def info(self) -> dict[str, Any]:
        """Return what the index is: model, source, spaces with their vectors, files, bytes on disk."""
        size = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        vectors = {space: self.count(space) for space in self.spaces}
        return {**self.meta, "vectors": vectors, "bytes": size}


def merge(hits: Sequence[Hit]) -> list[Hit]:
    """Return hits, best first, without those that overlap or touch a better one of the same file."""
    kept: list[Hit] = []
    for hit in hits:
        if not any(hit.path == other.path and hit.start <= other.end and other.start <= hit.end for other in kept):
            kept.append(hit)
    return kept


def build_cells(table: Any, metric: str) -> None:
    """Build IVF_FLAT over a large table; small ones are compared whole."""
    rows = table.count_rows()
    if rows <= FLAT:
        return
    partitions = max(16, round(math.sqrt(rows)))
    from lancedb.index import IvfFlat

    kind: Literal["cosine", "dot"] = "cosine" if metric == "cosine" else "dot"
    table.create_index("vector", config=IvfFlat(distance_type=kind, num_partitions=partitions), replace=True)


def num_probes(rows: int) -> int:
    """Return the cells searched of a table of this size; 0 where there are none."""
    return 0 if rows <= FLAT else max(16, round(math.sqrt(rows) / 16))


def glob_to_regex(pattern: str) -> str:
    """Return a pattern for paths as a regular expression of the whole path.

    Raises:
        UsageError: If a bracket is not closed.
    """
    result, place = "", 0
    while place < len(pattern):
        character = pattern[place]
        place += 1
        if character == "*":
            result += ".*"
        elif character == "?":
            result += "."
        elif character == "[":
            end = pattern.find("]", place + 1)
            if end < 0:
                raise UsageError(f"--path {pattern}: the bracket is not closed; write [[] for a bracket itself.")
            inside = pattern[place:end].replace("\\", "\\\\")
            inside = "^" + inside[1:] if inside.startswith("!") else inside
            result += f"[{inside.replace('[', '[[]') if inside == '[' else inside}]" if inside != "[" else r"\["
            place = end + 1
        else:
            result += (
                character if character.isalnum() or character in "/_ -" or ord(character) > 127 else "\\" + character
            )
    return f"^{result}$"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _equals(column: Any, value: str) -> Any:
    import pyarrow.compute

    return pyarrow.compute.equal(column, value)


def _stamp(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return "missing"
    return f"{status.st_size} {status.st_mtime_ns}"


def _names(database: Any) -> list[str]:
    return list(database.list_tables().tables)


def _lancedb() -> Any:
    try:
        import lancedb
    except ImportError as error:
        raise TriptychError("The index is a LanceDB database: pip install 'triptych[search]'.") from error
    return lancedb
