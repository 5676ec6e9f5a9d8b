"""Verbs that tell: the methods, what a folder is, the page of a run."""

import json
import sys
from pathlib import Path
from typing import Any

from triptych import catalog, report
from triptych.api.finetuning import finetunings
from triptych.api.sources import RECIPES, named_recipe, open_source, read_run
from triptych.embedding import EmbeddingTable, sweep
from triptych.errors import TriptychError, UsageError
from triptych.media.collection import Rows
from triptych.model import read_model
from triptych.search.index import Index
from triptych.weights.sources import sources_for


def list_methods() -> dict[str, catalog.Entry]:
    """Return the catalogue: name -> entry."""
    return dict(catalog.CATALOG)


def describe_methods(name: str | None = None, recipe: str | None = None, as_json: bool = False) -> str:
    """Return the table of methods, the docstring of one, or one of its recipes as YAML."""
    if name is None:
        if recipe is not None:
            raise UsageError("--recipe needs the name of a method.")
        if as_json:
            return json.dumps({key: entry.__dict__ for key, entry in catalog.CATALOG.items()}, ensure_ascii=False)
        width = max(map(len, catalog.CATALOG))
        return "\n".join(
            f"{key.ljust(width)}  {'+'.join(entry.streams).ljust(16)}  {entry.paper}"
            for key, entry in catalog.CATALOG.items()
        )
    if recipe is not None:
        made = named_recipe(name, recipe)
        return made.to_json() if as_json else made.to_yaml()
    kind = catalog.resolve(name)
    page = (sys.modules[kind.__module__].__doc__ or "").strip()
    made_by = [which for which in RECIPES if hasattr(sys.modules[kind.__module__], which)]
    how = f"{', '.join(made_by)} (triptych methods {name} --recipe {made_by[0]})" if made_by else "none"
    tuned = ", ".join(finetunings(name)) or "none published"
    known = sources_for(name)
    weights = [f"  {key}: {source.what}. {source.licence}" for key, source in known.items()]
    command = f" (triptych import {next(iter(known))} CHECKPOINT --out MODEL)" if known else " none are known"
    return "\n".join([page, "", f"recipes: {how}", f"fine-tuning: {tuned}", f"weights:{command}", *weights])


def info(path: str | Path, as_json: bool = False) -> str:
    """Return what a folder is: a model, run, index, table or collection.

    Raises:
        UsageError: If it is none of these.
        TriptychError: If it is damaged.
    """
    path = Path(path)
    kinds = {
        "index.json": _about_index,
        "embedding.json": _about_embedding,
        "table.json": _about_table,
        "collection.json": _about_collection,
        "recipe.json": _about_run,
    }
    about = next((tell for name, tell in kinds.items() if (path / name).is_file()), _about_model)
    facts = about(path)
    if as_json:
        return json.dumps({"path": str(path), **facts}, ensure_ascii=False)
    width = max(map(len, facts))
    return "\n".join(f"{key.ljust(width)}  {value}" for key, value in facts.items())


def _about_index(path: Path) -> dict[str, Any]:
    return {"kind": "index", **Index.open(path).info()}


def _about_embedding(path: Path) -> dict[str, Any]:
    tables = {place.parent.name: len(EmbeddingTable.load(place.parent)) for place in sorted(path.glob("*/table.json"))}
    try:
        facts = json.loads((path / "embedding.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise TriptychError(f"{path / 'embedding.json'} is damaged: {error}; embed again.") from error
    return {"kind": "tables of vectors", "tables": tables or "none yet: run the same command again to go on", **facts}


def _about_table(path: Path) -> dict[str, Any]:
    table = EmbeddingTable.load(path)
    meta = json.loads((path / "table.json").read_text(encoding="utf-8"))
    return {"kind": "table of vectors", "dimensions": table.vectors.shape[1], **meta}


def _about_collection(path: Path) -> dict[str, Any]:
    rows = Rows.open(path)
    total = sum(float(seconds or 0) for seconds in rows.column("seconds"))
    return {
        "kind": "collection",
        "recordings": len(rows),
        "hours": round(total / 3600, 3),
        "columns": ", ".join(rows.columns),
    }


def _about_run(path: Path) -> dict[str, Any]:
    recipe, content = read_run(path)
    lines = report.read_lines(path / "log.jsonl") if (path / "log.jsonl").is_file() else []
    return {
        "kind": "run",
        "method": recipe.method,
        "steps": max((line["step"] for line in lines), default=0),
        "finished": (path / "model").is_dir(),
        "seed": recipe.seed,
        **{key: value for key, value in content.items() if key != "recipe"},
    }


def _about_model(path: Path) -> dict[str, Any]:
    model = read_model(path)
    return {
        "kind": "model",
        "method": model.method_name,
        "parameters": model.num_parameters,
        "spaces": model.method.spaces,
        "streams": sorted(model.test.views[0]),
        "windows": model.test.windows.model_dump(mode="json"),
        "labels": model.labels,
        "fingerprint": model.fingerprint,
        **model.made,
    }


def write_report(run: str | Path) -> Path:
    """Write ``RUN/report.html`` and return its path.

    Neighbours and map need the run's source; where it is gone the page says so.

    Raises:
        UsageError: If ``run`` is no run.
    """
    run = Path(run)
    recipe, facts = read_run(run)
    model = read_model(run)
    tables: dict[str, EmbeddingTable] = {}
    rows = None
    if Path(facts["source"]).exists() and model.method.spaces:
        rows = Rows.open(facts["source"])
        rows = rows.split(next((name for name in ("test", "val") if name in rows.splits), "train"))
        rows = open_source(rows.select(range(min(len(rows), report.EXAMPLES))))
        tables = sweep(model, rows)
    return report.write_page(run, recipe, facts, model.num_parameters, rows, tables)
