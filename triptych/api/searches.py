"""Verbs over vectors: the table of all of them, the index, and its search."""

import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from triptych import catalog
from triptych.api.sources import open_model, open_source
from triptych.embedding import EmbeddingTable, sweep_to
from triptych.errors import TriptychError, UsageError
from triptych.evaluation.splits import choose_split
from triptych.files import replacing
from triptych.media.collection import Rows
from triptych.media.measured import SEQUENCE
from triptych.media.write import cut
from triptych.model import Model
from triptych.recipe import Grid
from triptych.search.hits import Hits
from triptych.search.index import Index
from triptych.search.query import embed_file, embed_words


def embed(
    model: str | Path | Model,
    source: str | Path | Rows,
    out: str | Path,
    features: bool = False,
    split: str | None = None,
    device: str | None = None,
    workers: int | None = None,
) -> dict[str, EmbeddingTable]:
    """Write the vectors of all windows, a table a space in ``OUT/SPACE``, and return them.

    Run again after an interruption, it goes on.

    Args:
        model: A model, or its name.
        source: Recordings.
        out: Folder; empty, or of the same model and source.
        features: Write what the encoders yield instead of the vectors of the joint spaces, and besides a sequence a
            recording and stream, with ``OUT/manifest.csv`` that names them as streams of the recordings. Captions are
            no windows, and make no sequence.
        split: Only these rows.
        device: Where.
        workers: Decoding processes.

    Raises:
        UsageError: If ``out`` holds something else, or the model has no joint space.
    """
    rows = choose_split(open_source(source), split)
    found = model if isinstance(model, Model) else open_model(model, rows, device)
    if not features and not found.method.spaces:
        raise UsageError(f"{found.method_name} has no joint space; give --features for what its encoders yield.")
    facts = {
        "model": found.name,
        "fingerprint": found.fingerprint,
        "source": rows.source,
        "data": rows.fingerprint,
        "kind": "features" if features else "embed",
    }
    tables = sweep_to(found, rows, out, facts, (facts["kind"],), workers)
    if features:
        _write_sequences(tables, rows, Path(out))
    for table in tables.values():
        folder = Path(out) / table.space.replace(":", "-")
        print(f"{folder}: {len(table)} vectors of {table.vectors.shape[1]} dimensions")
    return tables


def _write_sequences(tables: Mapping[str, EmbeddingTable], rows: Rows, out: Path) -> None:
    """Write the vectors of each recording in order of time, and a manifest whose rows carry them as streams."""
    columns: dict[str, list[str]] = {}
    for space, table in tables.items():
        stream = space.removeprefix("features:")
        if stream == "text":
            continue
        names = columns.setdefault(f"{SEQUENCE}{stream}-features", [""] * len(rows))
        by_row = np.flatnonzero(np.diff(table.numbers, prepend=-1, append=len(rows)))
        for first, last in pairwise(by_row.tolist()):
            number = int(table.numbers[first])
            names[number] = f"sequences/{stream}/{number:06d}.safetensors"
            with replacing(out / names[number]) as place:
                save_file(_sequence(table.take(np.arange(first, last))), place)
    paths: dict[str, list[str]] = {
        column: [row[column] and os.path.relpath(rows.root / row[column], out) for row in rows]
        for column in ("path", "audio")
        if column in rows.columns
    }
    rows.with_columns({**paths, **columns}).save(out / "manifest.csv")


def _sequence(part: EmbeddingTable) -> dict[str, np.ndarray]:
    """Return the vectors of a row's windows, means over crops, and the stretch that each stands for.

    Windows overlap and stretches do not: one gives way to the next halfway between the middles of their windows.
    """
    starts, first, places = np.unique(part.starts, return_index=True, return_inverse=True)
    sums = np.zeros((len(starts), part.vectors.shape[1]))
    np.add.at(sums, places, part.vectors)
    middles = (starts + part.ends[first]) / 2
    times = [starts[:1], (middles[1:] + middles[:-1]) / 2, part.ends[first][-1:]]
    vectors = (sums / np.bincount(places)[:, None]).astype(np.float32)
    return {"vectors": vectors, "times": np.concatenate(times).astype(np.float32)}


def index(
    model: str | Path,
    source: str | Path,
    out: str | Path,
    seconds: float | None = None,
    stride: float | None = None,
    device: str | None = None,
    workers: int | None = None,
) -> Index:
    """Index a source, or bring an index up to date.

    Args:
        model: A model's name; an index remembers its own and refuses another.
        source: Recordings; files that were taken in already are not opened again unless they have changed.
        out: Folder of the index.
        seconds: Length of a window.
        stride: Seconds between windows.
        device: Where.
        workers: Decoding processes.

    Raises:
        UsageError: If the index was made with another model, source or windows.
    """
    out, rows, name = Path(out), Rows.open(source), str(model)
    what = name.removeprefix("random:")
    if what != name and (what in catalog.CATALOG or ":" in what):
        raise UsageError(f"An index remembers its model, and {name} is nowhere on disk; give a run: random:RUN.")
    found = open_model(model, rows, device)
    if not found.method.spaces:
        raise UsageError(f"{found.method_name} has no joint space to search in.")
    places = {
        "model": name[: len(name) - len(what)] + str(Path(what).resolve()),
        "source": str(Path(source).resolve()),
        "root": str(rows.root.resolve()),
    }
    if (out / "index.json").is_file():
        made = Index.open(out)
        if made.meta["fingerprint"] != found.fingerprint:
            raise UsageError(f"{out} was made with {made.meta['model']}, whose weights differ from {model}'s.")
        grid = Grid.model_validate(made.meta["windows"])
        if (seconds and seconds != grid.seconds) or (stride and stride != grid.stride):
            raise UsageError(f"{out} has windows of {grid.seconds:g} s every {grid.stride:g} s; make another index.")
        known = made.files()
        if known and not any(row["path"] in known for row in rows):
            raise UsageError(f"{source} holds none of the files of {made.meta['source']}; make another index for it.")
        made.remember(**places)
    else:
        length = seconds or found.test.windows.seconds or 2.0
        grid = Grid(seconds=length, count=None, stride=stride or length)
        facts = {
            "triptych": version("triptych"),
            **places,
            "method": found.method_name,
            "fingerprint": found.fingerprint,
            "spaces": found.method.spaces,
            "windows": grid.model_dump(mode="json"),
        }
        made = Index.create(out, facts)
    found.test = found.test.model_copy(update={"windows": grid})
    problems: list[tuple[str, str]] = []
    counts = made.update(found, rows, workers, problems=problems)
    if not made.spaces:
        why = f"; the first: {problems[0][1]}" if problems else "; see the reasons when they were first tried"
        raise TriptychError(f"None of the {len(rows)} recordings of {source} could be indexed{why}")
    spaces = ", ".join(f"{made.count(space)} vectors in {space}" for space in made.spaces)
    print(f"{out}: " + ", ".join(f"{value} {word}" for word, value in counts.items()) + f"; {spaces}")
    return made


def search(
    index: str | Path,
    words: str | None = None,
    audio: str | Path | None = None,
    video: str | Path | None = None,
    image: str | Path | None = None,
    k: int = 10,
    path: str | None = None,
    between: tuple[float, float] | None = None,
    streams: Sequence[str] | None = None,
    save: str | Path | None = None,
    source: str | Path | None = None,
    model: str | Path | Model | None = None,
) -> Hits:
    """Search an index by words, a sound, a clip or a picture.

    Args:
        index: Folder of the index.
        words: What to look for.
        audio: A file whose sound to look for.
        video: A file whose picture to look for.
        image: A still picture to look for.
        k: Hits at most.
        path: Pattern that the hits' paths match.
        between: Seconds that the hits overlap.
        streams: Streams to look in.
        save: Folder to cut the hits out to, as mp4.
        source: Where the recordings lie now, if they were moved.
        model: The index's model: loaded already, or where it lies now, if it was moved.

    Raises:
        UsageError: If not exactly one query is given, or the model or (for ``save``) the recordings are not there.
        TriptychError: If the model is not the index's, or the query has nothing to look for.
    """
    files = [file for file in (audio, video, image) if file is not None]
    if len(files) + (words is not None) != 1:
        raise UsageError("Give one query: words, --audio FILE, --video FILE or --image FILE.")
    opened = Index.open(index)
    root = _root(opened, source) if save is not None else None
    if save is not None and Path(save).exists() and not Path(save).is_dir():
        raise UsageError(f"{save} is no folder to cut hits out to.")
    found = model if isinstance(model, Model) else _model_of(opened, model)
    if found.fingerprint != opened.meta["fingerprint"]:
        raise TriptychError(f"{model or opened.meta['model']} is not the model that {index} was made with.")
    query = (
        embed_words(found, words) if words is not None else embed_file(found, files[0], "audio" if audio else "video")
    )
    hits = opened.search(query, k, path, between, streams)
    saved, failed = [], []
    if save is not None and root is not None:
        for place, hit in enumerate(hits, 1):
            out = Path(save) / f"{place:02d}-{Path(hit.path).stem}-{hit.start:.1f}.mp4"
            try:
                saved.append(str(cut(root / hit.path, hit.start, hit.end, out)))
            except TriptychError as error:  # the hits can still be told
                failed.append(str(error))
    return Hits(words if words is not None else str(files[0]), hits, saved, failed)


def _root(opened: Index, source: str | Path | None) -> Path:
    root = Path(opened.meta["root"]) if source is None else Path(source)
    root = root.parent if root.is_file() else root
    if not root.is_dir():
        raise UsageError(f"The recordings are not at {root}; say where they are: --source DIR.")
    return root


def _model_of(opened: Index, model: str | Path | None) -> Model:
    name = str(model or opened.meta["model"])
    if model is None and not Path(name.removeprefix("random:")).exists():
        raise UsageError(f"The model of {opened.folder} is no longer at {name}; say where it is: --model MODEL.")
    return open_model(name)
