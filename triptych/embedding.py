"""One sweep over recordings makes vectors; probes, retrieval scores, search and clustering all read them."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from safetensors.numpy import save_file
from torch import Tensor
from tqdm import tqdm

from triptych.batch import Batch, Clip, View
from triptych.data.loader import Loader
from triptych.data.segments import Segments, segment
from triptych.data.text import Tokenizer
from triptych.errors import TriptychError, UsageError
from triptych.files import is_taken, new_folder, replacing
from triptych.media.collection import Rows
from triptych.method import Method
from triptych.recipe import TextTransform, Viewing

FORMAT = 1
"""Version of a table's folder."""
SHARD = 1024
"""Recordings whose vectors are written together by ``sweep_to``."""


@runtime_checkable
class Looks(Protocol):
    """What a sweep needs of a model."""

    method: Method
    test: Viewing
    tokenizer: Tokenizer | None


@dataclass(frozen=True)
class Row:
    """What a vector is of."""

    path: str
    start: float
    end: float
    stream: str
    space: str
    crop: int
    number: int
    """Row of the data set."""


@dataclass
class EmbeddingTable:
    """Vectors of one space, and what each is of, by column."""

    space: str
    vectors: Float[np.ndarray, "rows dim"]
    paths: list[str]
    """Path of each row of the data set that occurs, by ``numbers``."""
    numbers: Int[np.ndarray, " rows"]
    starts: Float[np.ndarray, " rows"]
    ends: Float[np.ndarray, " rows"]
    crops: Int[np.ndarray, " rows"]
    streams: np.ndarray
    """Stream of each vector, as text."""

    def __len__(self) -> int:
        return len(self.vectors)

    def row(self, place: int) -> Row:
        """Return what the vector at ``place`` is of."""
        number = int(self.numbers[place])
        return Row(
            self.paths[number],
            float(self.starts[place]),
            float(self.ends[place]),
            str(self.streams[place]),
            self.space,
            int(self.crops[place]),
            number,
        )

    def take(self, chosen: np.ndarray) -> "EmbeddingTable":
        """Return the vectors at these places (numbers or a mask)."""
        return EmbeddingTable(
            self.space,
            self.vectors[chosen],
            self.paths,
            self.numbers[chosen],
            self.starts[chosen],
            self.ends[chosen],
            self.crops[chosen],
            self.streams[chosen],
        )

    def select(self, stream: str) -> "EmbeddingTable":
        """Return the vectors of a stream."""
        return self.take(np.flatnonzero(self.streams == stream))

    def of_rows(self, numbers: Int[np.ndarray, " chosen"]) -> "EmbeddingTable":
        """Return the vectors of these rows of the data set, numbered by their places in ``numbers``."""
        places = np.full(len(self.paths), -1)
        places[numbers] = np.arange(len(numbers))
        part = self.take(np.flatnonzero(places[self.numbers] >= 0))
        part.numbers = places[part.numbers]
        part.paths = [self.paths[number] for number in numbers]
        return part

    def by_row(self) -> tuple[Int[np.ndarray, " rows"], Float[np.ndarray, "rows dim"]]:
        """Return the data set's rows that occur, increasing, and the mean vector of each over windows and crops."""
        numbers, places = np.unique(self.numbers, return_inverse=True)
        sums = np.zeros((len(numbers), self.vectors.shape[1]))
        np.add.at(sums, places, self.vectors)
        return numbers, (sums / np.bincount(places, minlength=len(numbers))[:, None]).astype(np.float32)

    def save(self, folder: str | Path) -> Path:
        """Write the table as a folder, whole or not at all: ``vectors.safetensors``, ``rows.jsonl``, ``table.json``.

        Raises:
            TriptychError: If the folder exists or cannot be written.
        """
        folder = Path(folder)
        with new_folder(folder) as place:
            save_file({"vectors": np.ascontiguousarray(self.vectors)}, place / "vectors.safetensors")
            with (place / "rows.jsonl").open("w", encoding="utf-8") as file:
                for number in range(len(self)):
                    file.write(json.dumps(self.row(number).__dict__, ensure_ascii=False) + "\n")
            _write_meta(place, self.space, len(self), {})
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "EmbeddingTable":
        """Read a table; its vectors stay on disk, mapped.

        Raises:
            TriptychError: If there is none, or it is damaged or of another format.
        """
        folder = Path(folder)
        try:
            meta = json.loads((folder / "table.json").read_text(encoding="utf-8"))
            if meta["format"] != FORMAT:
                raise TriptychError(f"{folder} has table format {meta['format']}; this version reads {FORMAT}.")
            vectors = _map(folder / "vectors.safetensors")
            rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TriptychError(f"{folder} holds no whole table of vectors: {error}.") from error
        if len(rows) != len(vectors):
            raise TriptychError(f"{folder}: {len(vectors)} vectors and {len(rows)} rows; embed again.")
        paths = [""] * (max((row["number"] for row in rows), default=-1) + 1)
        for row in rows:
            paths[row["number"]] = row["path"]
        return cls(
            meta["space"],
            vectors,
            paths,
            np.array([row["number"] for row in rows], dtype=np.int64),
            np.array([row["start"] for row in rows]),
            np.array([row["end"] for row in rows]),
            np.array([row["crop"] for row in rows], dtype=np.int64),
            np.array([row["stream"] for row in rows], dtype=str),
        )


class _Folded(NamedTuple):
    """Clips without candidates; for each item its row of the batch, its crop, and whether it is no repetition."""

    view: View
    rows: Int[Tensor, " items"]
    crops: Int[Tensor, " items"]
    first: dict[str, Bool[Tensor, " items"]]


def fold(view: View, crops: int) -> _Folded:
    """Fold candidates (windows and crops, or the captions of a row) into the batch.

    Args:
        view: Clips that all have an axis of candidates, or all have none. Where a stream has fewer (sound has no crops)
            each of its candidates is repeated, so that streams stay side by side.
        crops: Crops of a window, which follow each other among the candidates.
    """
    size = len(next(iter(view.values())).length)
    counts = {stream: clip.length.shape[1] if clip.length.ndim == 2 else 1 for stream, clip in view.items()}
    count = max(counts.values())
    folded, first = {}, {}
    for stream, clip in view.items():
        times = count // counts[stream]
        if clip.length.ndim == 2:
            data, length, span = (_flat(x, times) for x in (clip.data, clip.length, clip.span))
            clip = Clip(data, length, span, None if clip.times is None else _flat(clip.times, times))
        folded[stream] = clip
        first[stream] = torch.arange(size * count).remainder(times) == 0
    places = torch.arange(size * count)
    return _Folded(folded, places // count, places.remainder(count).remainder(crops), first)


def _flat(x: Tensor, times: int) -> Tensor:
    return x.repeat_interleave(times, dim=1).flatten(0, 1)


@torch.inference_mode()
def vectors_of(method: Method, view: View, kind: str) -> dict[str, dict[str, Tensor]]:
    """Return space -> stream -> vectors of a view without candidates, in float32.

    Args:
        method: In evaluation mode.
        view: Clips.
        kind: ``embed`` for the joint spaces, ``features`` for what the encoders yield (space ``features:STREAM``).
    """
    device = next(method.parameters()).device
    half = device.type == "cuda" and torch.cuda.is_bf16_supported()
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        if kind == "embed":
            found = method.embed(view)
        else:
            found = {f"features:{stream}": {stream: out.pooled} for stream, out in method.features(view).items()}
    return {space: {stream: x.float() for stream, x in streams.items()} for space, streams in found.items()}


def embed_batch(method: Method, batch: Batch, viewing: Viewing, kinds: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield pieces of tables from a batch: space, stream, vectors, rows, spans and crops.

    The captions of a row are no windows: text is embedded apart from the other streams, a vector a caption.
    """
    method.eval()
    texts = {name for name, spec in viewing.views[0].items() if isinstance(spec.transform, TextTransform)}
    told = {name: clip for name, clip in batch.views[0].items() if name in texts}
    seen = {name: clip for name, clip in batch.views[0].items() if name not in texts}
    for view, crops in ((seen, getattr(viewing.windows, "crops", 1)), (told, 1)):
        if not view:
            continue
        folded = fold(view, crops)
        rows = batch.rows.cpu()[folded.rows]
        for kind in kinds:
            for space, streams in vectors_of(method, folded.view, kind).items():
                for stream, vectors in streams.items():
                    names = stream.split("+")
                    there = torch.stack([folded.view[name].present.cpu() for name in names]).all(dim=0)
                    there &= torch.stack([folded.first[name] for name in names]).any(dim=0)
                    yield {
                        "space": space,
                        "stream": stream,
                        "vectors": vectors.cpu()[there].numpy(),
                        "numbers": rows[there].numpy(),
                        "spans": folded.view[names[0]].span.cpu()[there].numpy(),
                        "crops": folded.crops[there].numpy(),
                    }


class Part(NamedTuple):
    """What a sweep made of some rows."""

    tables: list[dict[str, EmbeddingTable]]
    """For each model, a table a space."""
    problems: list[tuple[str, str]]
    """Path and reason of the rows that could not be read."""


def sweep_parts(
    models: Sequence[Looks],
    rows: Rows,
    parts: Iterable[Sequence[int]],
    viewing: Viewing,
    kinds: Sequence[str] = ("embed",),
    workers: int | None = None,
    progress: bool = True,
    title: str = "embed",
) -> Iterator[Part]:
    """Yield, for each part of the rows in turn, the vectors of all their windows; see ``sweep_all``.

    Args:
        models: Methods with one way to look at a recording and one tokenizer.
        rows: The recordings.
        parts: Numbers of the rows of each part.
        viewing: How to look at them.
        kinds: ``embed`` and/or ``features``.
        workers: Decoding processes.
        progress: Whether to show a bar.
        title: What the bar is called.
    """
    parts = [list(part) for part in parts]
    paths = [row["path"] for row in rows]
    viewing = viewing.model_copy(update={"views": viewing.views[:1]})  # others are what targets are computed from
    device = next(models[0].method.parameters()).device
    cut = segment(rows, [number for part in parts for number in part], viewing.windows, progress)
    ends = np.searchsorted(np.cumsum(cut.begins == -np.inf), np.cumsum([len(part) for part in parts]), side="right")
    with (
        Loader(cut.rows, viewing, tokenizer=models[0].tokenizer, workers=workers, device=device) as loader,
        tqdm(total=len(cut.rows), desc=title, unit="file", delay=2, disable=None if progress else True) as bar,
    ):
        for begin, end in zip([0, *ends], ends, strict=False):
            known = len(loader.problems)
            pieces: list[dict[str, list[dict[str, Any]]]] = [{} for _ in models]
            for batch in loader.sweep(range(begin, end), batch_rows=cut.together):
                for model, found in zip(models, pieces, strict=True):
                    for piece in embed_batch(model.method, batch, viewing, kinds):
                        found.setdefault(piece["space"], []).append(_of_rows(piece, cut))
                bar.update(len(batch))
            bar.update(int(end) - bar.n)  # those that could not be read count as well
            tables = [{space: join(space, found, paths) for space, found in one.items()} for one in pieces]
            yield Part(tables, list(dict(loader.problems[known:]).items()))


def _of_rows(piece: dict[str, Any], cut: Segments) -> dict[str, Any]:
    """Return a piece by the rows that its segments are of."""
    numbers, starts = piece["numbers"], piece["spans"][:, 0]
    kept = cut.first_told(numbers, starts) if piece["stream"] == "text" else np.ones(len(numbers), dtype=bool)
    arrays = {name: piece[name][kept] for name in ("vectors", "spans", "crops")}
    return {**piece, **arrays, "numbers": cut.of[numbers][kept]}


def sweep_all(
    models: Sequence[Looks],
    rows: Rows,
    viewing: Viewing | None = None,
    kinds: Sequence[str] = ("embed",),
    workers: int | None = None,
    progress: bool = True,
    problems: list[tuple[str, str]] | None = None,
) -> list[dict[str, EmbeddingTable]]:
    """Return, for each model, the vectors of all windows of all rows, one table a space; recordings are decoded once.

    A stream that a row lacks gives no vector; a row that cannot be read gives none at all and is told in ``problems``.

    Args:
        models: Methods with one way to look at a recording and one tokenizer.
        rows: The recordings.
        viewing: How to look at them; the models' own way where None.
        kinds: ``embed`` and/or ``features``.
        workers: Decoding processes.
        progress: Whether to show a bar.
        problems: Takes path and reason of the rows that could not be read.

    Raises:
        TriptychError: If no row could be read.
    """
    options = (viewing or models[0].test, kinds, workers, progress)
    (part,) = sweep_parts(models, rows, [range(len(rows))], *options)
    if problems is not None:
        problems += part.problems
    if not any(part.tables):
        raise _nothing(rows, part.problems)
    return part.tables


def _nothing(rows: Rows, problems: Sequence[tuple[str, str]]) -> TriptychError:
    reason = problems[0][1] if problems else f"{rows.source} has nothing to embed"
    return TriptychError(f"None of the {len(rows)} recordings could be embedded; the first: {reason}")


def sweep(model: Looks, rows: Rows, *args: Any, **options: Any) -> dict[str, EmbeddingTable]:
    """Return the tables of one model; see ``sweep_all``."""
    return sweep_all([model], rows, *args, **options)[0]


def sweep_to(
    model: Looks,
    rows: Rows,
    out: str | Path,
    facts: Mapping[str, Any],
    kinds: Sequence[str] = ("embed",),
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, EmbeddingTable]:
    """Write the vectors of all windows of all rows, a table a space in ``OUT/SPACE``, and return them by space.

    ``SHARD`` rows at a time are written to ``OUT/shards``; run again after an interruption, it goes on with what is
    missing. At the end the shards become the tables.

    Args:
        model: A method and how it looks at a recording.
        rows: The recordings.
        out: Folder; empty, or of a sweep with equal ``facts``.
        facts: What the vectors depend on, as values that JSON can hold; kept in ``OUT/embedding.json``.
        kinds: ``embed`` and/or ``features``.
        workers: Decoding processes.
        progress: Whether to show a bar.

    Raises:
        UsageError: If ``out`` holds something else.
        TriptychError: If no row could be read, or nothing can be written.
    """
    out = Path(out)
    _claim(out, {"format": FORMAT, **facts, "rows": len(rows)})
    shards = out / "shards"
    if shards.is_dir() or not list(out.glob("*/table.json")):
        places = [shards / f"{number:06d}" for number in range(-(-len(rows) // SHARD))]
        missing = [number for number, place in enumerate(places) if not place.is_dir()]
        parts = [range(number * SHARD, min((number + 1) * SHARD, len(rows))) for number in missing]
        swept = sweep_parts([model], rows, parts, model.test, kinds, workers, progress)
        for number, part in zip(missing, swept, strict=True):
            with new_folder(places[number]) as folder:
                for space, table in part.tables[0].items():
                    if len(table):
                        table.save(folder / space.replace(":", "-"))
                (folder / "problems.json").write_text(json.dumps(part.problems, ensure_ascii=False), encoding="utf-8")
        problems = [(path, why) for place in places for path, why in json.loads((place / "problems.json").read_bytes())]
        names = sorted({folder.parent.name for place in places for folder in place.glob("*/table.json")})
        if not names:
            shutil.rmtree(shards)
            raise _nothing(rows, problems)
        for name in names:
            if not (out / name).is_dir():
                found = [place / name for place in places if (place / name).is_dir()]
                _concatenate(found, out / name, {**facts, "unreadable": problems})
        os.rename(shards, out / "joined")  # from now on the tables are all there is
    shutil.rmtree(out / "joined", ignore_errors=True)
    tables = [EmbeddingTable.load(place.parent) for place in sorted(out.glob("*/table.json"))]
    return {table.space: table for table in tables}


def _claim(out: Path, facts: Mapping[str, Any]) -> None:
    """Make a folder that a sweep may write to, or go on with."""
    path = out / "embedding.json"
    if not path.is_file():
        if is_taken(out):
            raise UsageError(f"{out} holds something that is no table of vectors; choose another place.")
        with replacing(path) as place:
            place.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TriptychError(f"{path} is damaged: {error}; remove {out} and embed again.") from error
    for key, value in facts.items():
        if key not in ("model", "source") and known.get(key) != value:  # folders may move, what is in them may not
            raise UsageError(f"{out} was made with {key} {known.get(key)}, not {value}; choose another place.")


def _concatenate(places: Sequence[Path], out: Path, facts: Mapping[str, Any]) -> None:
    """Write the tables of some folders as one, whole or not at all."""
    tables = [EmbeddingTable.load(place) for place in places]
    count = sum(map(len, tables))
    with new_folder(out) as folder:
        vectors = _allocate(folder / "vectors.safetensors", (count, tables[0].vectors.shape[1]))
        with (folder / "rows.jsonl").open("wb") as file:
            at = 0
            for place, table in zip(places, tables, strict=True):
                vectors[at : at + len(table)] = table.vectors
                at += len(table)
                with (place / "rows.jsonl").open("rb") as part:
                    shutil.copyfileobj(part, file)
        vectors.flush()
        _write_meta(folder, tables[0].space, count, facts)


def _write_meta(folder: Path, space: str, rows: int, facts: Mapping[str, Any]) -> None:
    meta = {"format": FORMAT, "space": space, "rows": rows, **facts}
    (folder / "table.json").write_text(json.dumps(meta, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _allocate(path: Path, shape: tuple[int, int]) -> np.memmap[Any, np.dtype[np.float32]]:
    """Make a safetensors file of one tensor, ``vectors``, and return it mapped, to be filled."""
    size = 4 * shape[0] * shape[1]
    header = json.dumps({"vectors": {"dtype": "F32", "shape": list(shape), "data_offsets": [0, size]}}).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    return _map(path, "r+")


def _map(path: Path, mode: Literal["r", "r+"] = "r") -> np.memmap[Any, np.dtype[np.float32]]:
    """Return the ``vectors`` of a safetensors file, mapped and not read.

    Raises:
        ValueError: If the file is not whole or holds something else.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        tensor = json.loads(file.read(length))["vectors"]
    if tensor["dtype"] != "F32":
        raise ValueError(f"the vectors are {tensor['dtype']}, not F32")
    return np.memmap(path, np.float32, mode, 8 + length + tensor["data_offsets"][0], tuple(tensor["shape"]))


def embed_file(model: Looks, path: str | Path) -> dict[str, dict[str, Float[np.ndarray, "windows dim"]]]:
    """Return every vector of a file: space -> stream -> windows in order of time.

    Raises:
        UsageError: If there is no such file.
        TriptychError: If it cannot be read.
    """
    tables = sweep(model, Rows.open(path), workers=0, progress=False)
    return {
        space: {stream: table.select(stream).vectors for stream in sorted(set(table.streams.tolist()))}
        for space, table in tables.items()
    }


def join(space: str, pieces: list[dict[str, Any]], paths: list[str]) -> EmbeddingTable:
    """Return one table from the pieces of batches, in the order of rows, streams and windows."""
    numbers = np.concatenate([piece["numbers"] for piece in pieces])
    spans = np.concatenate([piece["spans"] for piece in pieces]).astype(np.float64)
    streams = np.concatenate([np.full(len(piece["numbers"]), piece["stream"]) for piece in pieces])
    order = np.lexsort((spans[:, 0], streams, numbers))
    return EmbeddingTable(
        space=space,
        vectors=np.concatenate([piece["vectors"] for piece in pieces])[order],
        paths=paths,
        numbers=numbers[order],
        starts=spans[order, 0],
        ends=spans[order, 1],
        crops=np.concatenate([piece["crops"] for piece in pieces])[order],
        streams=streams[order],
    )
