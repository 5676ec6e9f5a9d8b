"""Opening what verbs are given: models, recipes and sources."""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from triptych import catalog
from triptych.batch import Stream
from triptych.data.text import Tokenizer
from triptych.errors import TriptychError, UsageError
from triptych.media.collection import Rows
from triptych.media.measured import SEQUENCE
from triptych.media.prepare import probe_rows
from triptych.media.sequences import read_sequence
from triptych.method import Facts
from triptych.model import Model, random_model, read_model
from triptych.recipe import Recipe, SequenceTransform, read_recipe, validate

RECIPES = ("small", "base", "paper")
"""What a module of methods offers, by the name of the function."""


def load(model: str | Path, device: str | None = None) -> Model:
    """Return a model, ready to embed.

    >>> triptych.load("run").embed("clip.mp4")["joint"]["video"].shape
    (1, 128)

    Args:
        model: A model folder or a run.
        device: cpu, cuda, ...; a GPU if there is one, where None.

    Raises:
        UsageError: If there is no such model.
        TriptychError: If it is damaged or of another format.
    """
    return read_model(model, choose_device(device))


def choose_device(device: str | None = None) -> torch.device:
    """Return the device asked for, or a GPU if there is one.

    Raises:
        UsageError: If the device is unknown or not there.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"There is no device '{device}' here: {str(error).splitlines()[0]}") from error
    return chosen


def open_model(name: str | Path, rows: Rows | None = None, device: str | None = None) -> Model:
    """Return a model folder's or run's model, or one with random weights: ``random:METHOD`` or ``random:RUN``.

    Args:
        name: The model.
        rows: Where the tokenizer of ``random:METHOD`` learns its words.
        device: As in ``load``.
    """
    text = str(name)
    if not text.startswith("random:"):
        return load(name, device)
    what = text.removeprefix("random:")
    if what in catalog.CATALOG or ":" in what:
        if rows is None:
            raise UsageError(f"{text} has no tokenizer of its own; give a run: random:RUN.")
        recipe, tokenizer = complete(named_recipe(what, "small"), rows)
        model = random_model(recipe.method, recipe.config, recipe.test, tokenizer, recipe.seed)
    else:
        like = read_model(what)
        model = random_model(like.method_name, like.method.config, like.test, like.tokenizer)
    model.method.to(choose_device(device))
    return model


def named_recipe(method: str, recipe: str | None) -> Recipe:
    """Return a recipe of a method by name, or from a file.

    Raises:
        UsageError: If the method has no such recipe and there is no such file.
    """
    if recipe is not None and recipe not in RECIPES:
        found = read_recipe(recipe)
        if found.method != method:
            raise UsageError(f"{recipe} is a recipe of {found.method}, not of {method}.")
        return found
    name = recipe or ("base" if torch.cuda.is_available() else "small")
    kind = catalog.resolve(method)
    maker = getattr(sys.modules[kind.__module__], name, None)
    if maker is None:
        raise UsageError(f"{method} has no recipe '{name}'; give a file with --recipe.")
    made: Recipe = maker()
    return made if made.method == method else validate(Recipe, made.model_dump() | {"method": method}, method)


def complete(recipe: Recipe, rows: Rows, classes: tuple[str, ...] = ()) -> tuple[Recipe, Tokenizer | None]:
    """Return the recipe with what only the data can say, and the tokenizer trained on the rows' captions.

    Raises:
        UsageError: If a view reads precomputed vectors that no row has.
        TriptychError: If there are no captions to train on, or a file of vectors cannot be read.
    """
    widths = _vector_widths(recipe, rows)
    tokenizer = None
    if recipe.tokenizer is not None:
        tokenizer = Tokenizer.train([] if recipe.tokenizer.file else rows.captions(), recipe.tokenizer)
        if tokenizer.vectors is not None:
            widths["text"] = tokenizer.vectors.shape[1]
    facts = Facts(vocabulary=tokenizer.vocabulary if tokenizer else None, classes=classes, widths=widths)
    completed: Recipe = catalog.resolve(recipe.method).complete(recipe, facts)
    return completed, tokenizer


def _vector_widths(recipe: Recipe, rows: Rows) -> dict[Stream, int]:
    """Return the width of each stream of precomputed vectors that the recipe reads, from the first row that has it."""
    views = [view for viewing in (recipe.train, recipe.test) for view in viewing.views]
    read = {name for view in views for name, spec in view.items() if isinstance(spec.transform, SequenceTransform)}
    widths = {}
    for stream in sorted(read):
        column = f"{SEQUENCE}{stream}"
        files = filter(None, rows.column(column)) if column in rows.columns else iter(())
        first = next(files, None)
        if first is None:
            raise UsageError(
                f"{recipe.method} reads the stream '{stream}' of precomputed vectors, and no row of {rows.source} has "
                f"a file in a column '{column}'. `triptych embed MODEL SOURCE --features --out DIR` writes such "
                "vectors, and DIR/manifest.csv, which names them; see docs/features.md."
            )
        widths[stream] = read_sequence(rows.root / first).vectors.shape[1]
    return widths


def open_source(source: str | Path | Rows) -> Rows:
    """Return the rows of a source, each probed once, now, unless ``prepare`` has done it.

    Files that cannot be read are left out, and told.
    """
    rows = source if isinstance(source, Rows) else Rows.open(source)
    if "probe" in rows.columns:
        return rows
    probed, bad = probe_rows(rows)
    for path, reason in bad[:5]:
        print(f"left out: {reason if path in reason else f'{path}: {reason}'}", file=sys.stderr)
    if len(bad) > 5:
        print(f"left out: {len(bad) - 5} more", file=sys.stderr)
    return probed


def read_run(run: Path) -> tuple[Recipe, dict[str, Any]]:
    """Return the resolved recipe of a run, and what else it knows of itself.

    Raises:
        UsageError: If ``run`` is no run.
    """
    path = run / "recipe.json"
    if not path.is_file():
        raise UsageError(
            f"{run} is no run (no recipe.json); start one with: triptych pretrain SOURCE --method NAME --out {run}"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TriptychError(f"{path} is damaged: {error}.") from error
    return validate(Recipe, content["recipe"], str(path)), content
