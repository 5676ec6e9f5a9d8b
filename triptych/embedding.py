"""One sweep over recordings makes vectors; probes, retrieval scores, search and clustering all read them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from triptych.batch import Batch, Clip, View
from triptych.data.loader import Loader
from triptych.data.text import Tokenizer
from triptych.errors import TriptychError
from triptych.files import new_folder
from triptych.media.collection import Rows
from triptych.method import Method
from triptych.recipe import Viewing

FORMAT = 1
"""Version of a table's folder."""


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

    def by_row(self) -> tuple[Int[np.ndarray, " rows"], Float[np.ndarray, "rows dim"]]:
        """Return the data set's rows that occur, increasing, and the mean vector of each over windows and crops."""
        numbers, places = np.unique(self.numbers, return_inverse=True)
        sums = np.zeros((len(numbers), self.vectors.shape[1]))
        np.add.at(sums, places, self.vectors)
        return numbers, (sums / np.bincount(places, minlength=len(numbers))[:, None]).astype(np.float32)

    def save(self, folder: str | Path, facts: Mapping[str, Any] | None = None) -> Path:
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
            meta = {"format": FORMAT, "space": self.space, "rows": len(self), **(facts or {})}
            (place / "table.json").write_text(json.dumps(meta, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "EmbeddingTable":
        """Read a table.

        Raises:
            TriptychError: If there is none, or it is damaged or of another format.
        """
        folder = Path(folder)
        try:
            meta = json.loads((folder / "table.json").read_text(encoding="utf-8"))
            if meta["format"] != FORMAT:
                raise TriptychError(f"{folder} has table format {meta['format']}; this version reads {FORMAT}.")
            vectors = load_file(folder / "vectors.safetensors")["vectors"]
            rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError, KeyError, SafetensorError) as error:
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


def fold(view: View, crops: int) -> tuple[View, Int[Tensor, " items"], Int[Tensor, " items"]]:
    """Fold candidates (windows and crops) into the batch.

    Args:
        view: Clips with or without an axis of candidates; those without are repeated.
        crops: Crops of a window, which follow each other among the candidates.

    Returns:
        The view without candidates, and for each item its row of the batch and its crop.
    """
    counts = {clip.length.shape[1] for clip in view.values() if clip.length.ndim == 2}
    size = len(next(iter(view.values())).length)
    if not counts:
        return view, torch.arange(size), torch.zeros(size, dtype=torch.long)
    count = max(counts)
    folded = {}
    for stream, clip in view.items():
        if clip.length.ndim == 1:
            repeated = [None if x is None else x.repeat_interleave(count, dim=0) for x in _fields(clip)]
            folded[stream] = Clip(*repeated)  # type: ignore[arg-type]
        else:
            times = count // clip.length.shape[1]
            flat = [None if x is None else x.repeat_interleave(times, dim=1).flatten(0, 1) for x in _fields(clip)]
            folded[stream] = Clip(*flat)  # type: ignore[arg-type]
    rows = torch.arange(size).repeat_interleave(count)
    return folded, rows, torch.arange(count).remainder(crops).repeat(size)


def _fields(clip: Clip) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    return clip.data, clip.length, clip.span, clip.times


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


def embed_batch(method: Method, batch: Batch, kinds: Sequence[str], crops: int) -> Iterator[dict[str, Any]]:
    """Yield pieces of tables from a batch: space, stream, vectors, rows, spans and crops."""
    view, places, crop = fold(batch.views[0], crops)
    firsts = torch.cat([torch.ones(1, dtype=torch.bool), places[1:] != places[:-1]])
    for kind in kinds:
        for space, streams in vectors_of(method.eval(), view, kind).items():
            for stream, vectors in streams.items():
                parts = [view[name] for name in stream.split("+")]
                there = torch.stack([clip.present for clip in parts]).all(dim=0).cpu()
                if all(batch.views[0][name].length.ndim == 1 for name in stream.split("+")):
                    there &= firsts  # it has no windows of its own: once a row is enough
                yield {
                    "space": space,
                    "stream": stream,
                    "vectors": vectors.cpu()[there].numpy(),
                    "numbers": batch.rows.cpu()[places][there].numpy(),
                    "spans": parts[0].span.cpu()[there].numpy(),
                    "crops": crop[there].numpy(),
                }


def sweep(model: Looks, rows: Rows, *args: Any, **options: Any) -> dict[str, EmbeddingTable]:
    """Return the tables of one model; see ``sweep_all``."""
    return sweep_all([model], rows, *args, **options)[0]


def sweep_all(
    models: Sequence[Looks],
    rows: Rows,
    viewing: Viewing | None = None,
    kinds: Sequence[str] = ("embed",),
    batch_rows: int = 16,
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
        batch_rows: Recordings decoded together.
        workers: Decoding processes.
        progress: Whether to show a bar.
        problems: Takes path and reason of the rows that could not be read.

    Raises:
        TriptychError: If no row could be read.
    """
    first = models[0]
    viewing = viewing or first.test
    crops = getattr(viewing.windows, "crops", 1)
    device = next(first.method.parameters()).device
    pieces: list[dict[str, list[dict[str, Any]]]] = [{} for _ in models]
    with (
        Loader(rows, viewing, tokenizer=first.tokenizer, workers=workers, device=device) as loader,
        tqdm(total=len(rows), desc="embed", unit="file", delay=2, disable=None if progress else True) as bar,
    ):
        for batch in loader.sweep(batch_rows=batch_rows):
            for model, found in zip(models, pieces, strict=True):
                for piece in embed_batch(model.method, batch, kinds, crops):
                    found.setdefault(piece["space"], []).append(piece)
            bar.update(len(batch))
        if problems is not None:
            problems += loader.problems
        if not any(pieces) and len(rows):
            reason = loader.problems[0][1] if loader.problems else f"{rows.source} has nothing to embed"
            raise TriptychError(f"None of the {len(rows)} recordings could be embedded; the first: {reason}")
    paths = [row["path"] for row in rows]
    return [{space: join(space, parts, paths) for space, parts in found.items()} for found in pieces]


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
