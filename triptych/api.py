"""The verbs of the command line as functions; the only place that ties everything together."""

import copy
import json
import math
import os
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from triptych import catalog, distributed, report
from triptych.batch import Batch
from triptych.data.layouts import LAYOUTS, read_layout
from triptych.data.loader import Loader
from triptych.data.text import Tokenizer
from triptych.embedding import EmbeddingTable, sweep
from triptych.errors import TriptychError, UsageError
from triptych.evaluation.baselines import PixelsAndSpectrogram
from triptych.evaluation.evaluator import Evaluator, Score, Sweeper, Sweeps, with_windows
from triptych.evaluation.probe import KNN, LinearProbe
from triptych.evaluation.retrieval import Retrieval
from triptych.evaluation.table import Results
from triptych.media.collection import Rows
from triptych.media.prepare import Encoding, prepare_collection, probe_rows
from triptych.media.write import cut
from triptych.method import Clock, Facts, Method
from triptych.model import Model, model_tensors, random_model, read_model
from triptych.recipe import Grid, Recipe, override, read_recipe, validate
from triptych.search.index import Hit, Index
from triptych.search.query import embed_file, embed_words
from triptych.toyworld import write as toyworld
from triptych.training import loop

RECIPES = ("small", "base", "paper")


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


# ------------------------------------------------------------------------------------------------ recipes and sources


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
    """Return the recipe with what only the data can say, and the tokenizer trained on the rows' captions."""
    tokenizer = None
    if recipe.tokenizer is not None:
        tokenizer = Tokenizer.train(rows.captions(), recipe.tokenizer)
    facts = Facts(vocabulary=tokenizer.vocabulary if tokenizer else None, classes=classes)
    completed: Recipe = catalog.resolve(recipe.method).complete(recipe, facts)
    return completed, tokenizer


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


# ------------------------------------------------------------------------------------------------ verbs


def write_toyworld(
    out: str | Path,
    recordings: int | None = None,
    difficulty: float = 1.0,
    size: int = 96,
    seed: int = 0,
    workers: int | None = None,
) -> Path:
    """Write the toy world and return its manifest; see ``triptych.toyworld.write``.

    Args:
        out: Folder.
        recordings: How many; the demo's number where None.
        difficulty: Scale of what must be ignored, 0 to 2.
        size: Side of the picture, pixels.
        seed: Names the world.
        workers: Processes.
    """
    count = toyworld.RECORDINGS if recordings is None else recordings
    return toyworld.write_toyworld(
        Path(out), recordings=count, difficulty=float(difficulty), size=size, seed=seed, workers=workers
    )


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
    return f"{page}\n\nrecipes: {', '.join(made_by)} (triptych methods {name} --recipe {made_by[0]})"


def prepare(
    source: str | Path,
    out: str | Path,
    short_side: int | None = None,
    gop: int | None = None,
    fps: float | None = None,
    audio_rate: int | None = None,
    layout: str | None = None,
    annotations: str | Path | None = None,
    layout_split: str | None = None,
    dry_run: bool = False,
    workers: int | None = None,
) -> Path | None:
    """Probe every file once, set the broken ones aside, optionally re-encode; return the manifest.

    Args:
        source: A folder or manifest; with ``layout``, the folder of a public data set.
        out: Folder of the collection.
        short_side: Shorter side of re-encoded pictures, pixels.
        gop: Frames between keyframes of re-encoded files.
        fps: Frame rate of re-encoded files.
        audio_rate: Rate of re-encoded sound, Hz.
        layout: Name of a public data set's layout.
        annotations: Its lists.
        layout_split: Which of its splits.
        dry_run: Only probe and estimate.
        workers: Processes.
    """
    if layout is not None:
        if layout not in LAYOUTS:
            raise UsageError(f"There is no layout '{layout}'; there are {', '.join(LAYOUTS)}.")
        if annotations is None:
            raise UsageError(f"--layout {layout} needs --annotations, the folder or file of its lists.")
        found = read_layout(layout, source, annotations, split=layout_split)
        print("\n".join(filter(None, [f"{len(found.rows)} rows, {found.missing} files missing", str(found.notes)])))
        rows = Rows.build(found.rows, Path(source), f"{layout} in {source}")
    else:
        rows = Rows.open(source)
    encoding = Encoding(short_side, gop, fps, audio_rate)
    summary = prepare_collection(rows, out, encoding, workers, dry_run)
    hours = summary.seconds / 3600
    print(f"{summary.recordings} recordings, {hours:.2f} h, {summary.bytes_before / 2**20:.1f} MiB")
    for path, reason in summary.quarantined[:10]:
        print(f"  set aside: {path}: {reason}")
    if len(summary.quarantined) > 10:
        print(f"  and {len(summary.quarantined) - 10} more, see quarantine.csv")
    if summary.estimate_seconds is not None and summary.estimate_bytes is not None:
        minutes = summary.estimate_seconds / 60
        print(f"re-encoding would take about {minutes:.1f} minutes and {summary.estimate_bytes / 2**20:.0f} MiB")
    if summary.manifest is None:
        return None
    if encoding.wanted:
        print(f"re-encoded to {summary.bytes_after / 2**20:.1f} MiB")
    print(summary.manifest)
    return summary.manifest


def pretrain(
    source: str | Path | Rows,
    method: str,
    out: str | Path,
    recipe: str | Recipe | None = None,
    assignments: Sequence[str] = (),
    init: str | Path | None = None,
    minutes: float | None = None,
    dry_run: bool = False,
    device: str | None = None,
    label: str | None = None,
) -> Path | None:
    """Pretrain a method and return the model's folder.

    Args:
        source: A folder, manifest or collection; of one with splits, ``train`` is used.
        method: A name of the catalogue or ``module:Class``.
        out: The run's folder, which must not hold anything.
        recipe: ``small``, ``base``, ``paper``, a file, or a ``Recipe``; base where there is a GPU, else small.
        assignments: Changes such as ``optimizer.lr=1e-4``.
        init: A model to begin with.
        minutes: Fit the number of steps to this time.
        dry_run: Estimate time and memory only.
        device: Where.
        label: Column of the labels, for methods that want them.

    Raises:
        UsageError: If ``out`` holds something, or recipe, method or source do not fit.
    """
    out, place = Path(out), choose_device(device)
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} holds something already; continue it with --resume {out}, or choose another place.")
    made = recipe if isinstance(recipe, Recipe) else named_recipe(method, recipe)
    made = override(made, list(assignments))
    rows = open_source(source)
    rows = rows.split("train")
    classes = tuple(sorted({value for value in rows.column(label) if value})) if label else ()
    made, tokenizer = complete(made, rows, classes)
    torch.manual_seed(made.seed)
    module: Method = catalog.resolve(made.method)(made.config)
    if init is not None:
        start_from(module, read_model(init))
    targets = {label: classes} if label else None
    estimate = estimate_run(module, made, rows, tokenizer, targets, place)
    if minutes is not None:
        steps = max(int(60 * minutes / estimate.step_seconds), 1)
        made = made.model_copy(update={"steps": steps, "epochs": None})
        estimate = estimate.for_steps(steps)
    which = (
        recipe if isinstance(recipe, str) else "given" if recipe else ("base" if torch.cuda.is_available() else "small")
    )
    if distributed.rank() == 0:
        print(f"{made.method} ({which} recipe) on {place}: {estimate.describe(len(rows))}")
    if dry_run:
        return None
    torch.manual_seed(made.seed)
    facts = {
        "source": str(Path(rows.source).resolve()),
        "label": label,
        "init": init and str(init),
        "versions": versions(),
    }
    return loop.fit(module, made, rows, out, tokenizer, targets=targets, labels=classes, device=place, facts=facts)


def resume(run: str | Path, device: str | None = None) -> Path:
    """Continue an interrupted run exactly, and return the model's folder.

    Raises:
        UsageError: If there is no run, or its source has changed.
    """
    run = Path(run)
    made, facts = read_run(run)
    if (run / "model").is_dir():
        print(f"{run} has ended; its model is {run / 'model'}")
        return run / "model"
    rows = open_source(facts["source"]).split("train")
    if rows.fingerprint != facts["data"]["fingerprint"]:
        raise UsageError(f"{facts['source']} has changed since {run} began; an exact continuation is not possible.")
    label = facts.get("label")
    classes = tuple(sorted({value for value in rows.column(label) if value})) if label else ()
    tokenizer = Tokenizer.train(rows.captions(), made.tokenizer) if made.tokenizer else None
    torch.manual_seed(made.seed)
    module: Method = catalog.resolve(made.method)(made.config)
    place = choose_device(device)
    targets = {label: classes} if label else None
    kept = {key: facts.get(key) for key in ("source", "label", "init", "versions")}
    return loop.fit(module, made, rows, run, tokenizer, targets=targets, labels=classes, device=place, facts=kept)


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


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    return {"triptych": version("triptych"), "torch": torch.__version__, "python": sys.version.split()[0]}


@dataclass(frozen=True)
class Estimate:
    """What a run will take, from two trial steps."""

    step_seconds: float
    steps: int
    parameters: int
    memory_gib: float

    def for_steps(self, steps: int) -> "Estimate":
        """Return the estimate for another number of steps."""
        return Estimate(self.step_seconds, steps, self.parameters, self.memory_gib)

    def describe(self, rows: int) -> str:
        """Return one line for people."""
        minutes = self.step_seconds * self.steps / 60
        return (
            f"{self.parameters / 1e6:.2f} M parameters, {rows} recordings, {self.steps} steps of about "
            f"{self.step_seconds:.2f} s: about {minutes:.1f} minutes and {self.memory_gib:.1f} GiB"
        )


def estimate_run(
    method: Method,
    recipe: Recipe,
    rows: Rows,
    tokenizer: Tokenizer | None,
    targets: dict[str, tuple[str, ...]] | None,
    device: torch.device,
) -> Estimate:
    """Return what the run will take, from two steps' forward and backward passes; the method is left as it was."""
    parts = recipe.batch.accumulate
    with Loader(
        rows,
        recipe.train,
        recipe.batch,
        epoch_rows=recipe.epoch_rows,
        seed=recipe.seed,
        tokenizer=tokenizer,
        targets=targets,
        workers=0,
        device=device,
    ) as loader:
        steps = recipe.rounds * (recipe.steps or max(round((recipe.epochs or 0) * loader.steps()), 1))
        trial = copy.deepcopy(method).to(device).train()
        batches = loader.epoch(0)
        computing = []
        decoding = []
        for _ in range(2):
            began = time.perf_counter()
            batch: Batch = next(batches)
            decoding.append(time.perf_counter() - began)
            began = time.perf_counter()
            with torch.random.fork_rng():
                trial(batch, Clock()).total.backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            computing.append(time.perf_counter() - began)
        workers = Loader(rows, recipe.train, workers=recipe.workers, tokenizer=tokenizer).workers
    # Decoding runs beside computing; on a machine whose cores they share, both wait for each other.
    cores = os.cpu_count() or 1
    shared = device.type == "cpu"
    step = max(min(computing), min(decoding) / max(workers, 1))
    if shared:
        busy = min(computing) * min(torch.get_num_threads(), cores) + min(decoding)
        step = max(step, 1.2 * busy / cores)  # 1.2: what sharing caches and memory costs besides, measured on two cores
    parameters = sum(parameter.numel() for parameter in method.parameters())
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    else:
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Estimate(step * parts, steps, parameters, (peak + 12 * parameters) / 2**30)


def start_from(method: Method, model: Model) -> None:
    """Take the weights of another model, by name; those of other names or shapes stay random, and are told.

    Raises:
        UsageError: If nothing fits.
    """
    there, here = model_tensors(model.method), model_tensors(method)
    fitting = [name for name in here if name in there and there[name].shape == here[name].shape]
    if not fitting:
        raise UsageError(f"No tensor of {model.name} fits this method and configuration.")
    state = method.state_dict(keep_vars=True)
    with torch.no_grad():
        for name in fitting:
            state[name].copy_(there[name])
    left = sorted(set(here) - set(fitting))
    print(
        f"from {model.name}: {len(fitting)} of {len(here)} tensors"
        + (f"; random: {', '.join(left[:5])}" if left else "")
    )


def evaluate(
    model: str | Path | Model,
    source: str | Path | Rows,
    tasks: Sequence[str] = ("retrieval",),
    label: str | None = None,
    streams: Sequence[str] | None = None,
    query: str | None = None,
    target: str | None = None,
    group: str | None = None,
    folds: str | None = None,
    windows: int | None = None,
    split: str | None = None,
    baseline: bool = True,
    seed: int = 0,
    device: str | None = None,
    workers: int | None = None,
) -> Results:
    """Measure a model beside random weights, the pixels-and-spectrogram baseline, and chance.

    Args:
        model: A model, or its name.
        source: Recordings; probes learn on ``train`` and are tested on ``test``.
        tasks: ``probe``, ``knn``, ``retrieval``.
        label: Column of the labels, for probe and knn.
        streams: Streams of probe and knn.
        query: Retrieval from this stream only.
        target: Retrieval to this stream only.
        group: Column whose equal values are one item.
        folds: Column to cross-validate over.
        windows: Windows a recording.
        split: Split to test on.
        baseline: Whether to measure the baseline, too.
        seed: Of baseline choices and of the intervals.
        device: Where.
        workers: Decoding processes.
    """
    rows = open_source(source)
    found = model if isinstance(model, Model) else open_model(model, rows, device)
    evaluators: list[Evaluator] = []
    for task in tasks:
        if task in ("probe", "knn") and label is None:
            raise UsageError(f"--task {task} needs --label COLUMN; {rows.source} has {', '.join(rows.columns)}.")
        if task == "probe":
            evaluators.append(LinearProbe(label or "", streams, group=group, seed=seed))
        elif task == "knn":
            evaluators.append(KNN(label or "", streams, group=group, seed=seed))
        elif task == "retrieval":
            if not found.method.spaces:
                raise UsageError(f"{found.method_name} has no joint space, so there is nothing to retrieve in.")
            evaluators.append(Retrieval(query, target, group, seed=seed))
        else:
            raise UsageError(f"There is no task '{task}'; there are probe, knn and retrieval.")
    twin = random_model(found.method_name, found.method.config, found.test, found.tokenizer, seed)
    twin.method.to(next(found.method.parameters()).device)
    models = {found.name: found} if found.name.startswith("random:") else {found.name: found, twin.name: twin}
    sweeps = Sweeps(models, with_windows(found.test, windows), workers)
    parts = _folds(rows, folds) if folds else [_train_and_test(rows, split, needs_train=tasks != ["retrieval"])]
    sweepers: list[Sweeper] = [sweeps.of(name) for name in models]
    if baseline and folds is None:
        sweepers.append(PixelsAndSpectrogram(parts[0][0], workers))
    scores: dict[str, dict[str, Score]] = {}
    for sweeper in sweepers:
        mine: dict[str, Score] = {}
        for evaluator in evaluators:
            by_fold = [evaluator.run(sweeper, train, test) for train, test in parts]
            mine |= {f"{evaluator.name} {name}": mean_score([one[name] for one in by_fold]) for name in by_fold[0]}
        scores[sweeper.name] = mine
    notes = [f"{len(sweeps.problems)} recordings could not be read"] if sweeps.problems else []
    results = Results(found.name, f"{rows.source} ({len(parts[0][1])} test recordings)", seed, scores, notes)
    _keep(found.name, results)
    return results


def _train_and_test(rows: Rows, split: str | None, needs_train: bool) -> tuple[Rows, Rows]:
    splits = rows.splits
    if not splits:
        if split is not None:
            raise UsageError(f"{rows.source} has no splits (a column 'split' with 'train' in it).")
        if needs_train:
            raise UsageError(
                f"{rows.source} has no column 'split' with 'train' and 'test', which probes need; or give --folds."
            )
        return rows, rows
    test = split or next((name for name in ("test", "val") if name in splits), None)
    if test is None:
        raise UsageError(f"{rows.source} has the splits {', '.join(splits)}; say which to test on: --split NAME.")
    return rows.split("train"), rows.split(test)


def _folds(rows: Rows, column: str) -> list[tuple[Rows, Rows]]:
    values = rows.column(column)
    names = sorted({value for value in values if value})
    if len(names) < 2:
        raise UsageError(f"The column '{column}' has {len(names)} folds; cross-validation needs two or more.")
    parts = []
    for name in names:
        test = [number for number, value in enumerate(values) if value == name]
        train = [number for number, value in enumerate(values) if value and value != name]
        parts.append((rows.select(train), rows.select(test)))
    return parts


def mean_score(scores: Sequence[Score]) -> Score:
    """Return the mean over folds; its interval treats the folds' intervals as independent."""
    if len(scores) == 1:
        return scores[0]
    value = sum(score.value for score in scores) / len(scores)
    half = math.sqrt(sum(((score.high - score.low) / 2) ** 2 for score in scores)) / len(scores)
    total = sum(score.n for score in scores)
    by_fold = "folds " + ", ".join(f"{score.value:.1f}" for score in scores)
    return Score(value, value - half, value + half, total, scores[0].chance, by_fold)


def _keep(name: str, results: Results) -> None:
    """Append results to the run that was measured, for its report."""
    run = Path(name)
    if (run / "recipe.json").is_file():
        with (run / "evaluations.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(results.to_json(), ensure_ascii=False) + "\n")


def embed(
    model: str | Path | Model,
    source: str | Path | Rows,
    out: str | Path,
    kind: str = "embed",
    split: str | None = None,
    device: str | None = None,
    workers: int | None = None,
) -> dict[str, EmbeddingTable]:
    """Write the vectors of all windows, a table a space in ``OUT/SPACE``, and return them.

    Args:
        model: A model, or its name.
        source: Recordings.
        out: Folder that must not hold tables.
        kind: ``embed`` for the joint spaces, ``features`` for what the encoders yield.
        split: Only these rows.
        device: Where.
        workers: Decoding processes.
    """
    if kind not in ("embed", "features"):
        raise UsageError(f"--kind {kind}: there are embed and features.")
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} holds something already; choose another place.")
    rows = open_source(source)
    rows = rows.split(split) if split else rows
    found = model if isinstance(model, Model) else open_model(model, rows, device)
    tables = sweep(found, rows, kinds=(kind,), workers=workers)
    facts = {"model": found.name, "fingerprint": found.fingerprint, "source": rows.source}
    for space, table in tables.items():
        place = table.save(out / space.replace(":", "-"), facts)
        print(f"{place}: {len(table)} vectors of {table.vectors.shape[1]} dimensions")
    return tables


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
        source: Recordings.
        out: Folder of the index.
        seconds: Length of a window.
        stride: Seconds between windows.
        device: Where.
        workers: Decoding processes.
    """
    out = Path(out)
    rows = open_source(source)
    found = open_model(model, rows, device)
    if not found.method.spaces:
        raise UsageError(f"{found.method_name} has no joint space to search in.")
    if (out / "index.json").is_file():
        made = Index.open(out)
        if made.meta["fingerprint"] != found.fingerprint:
            raise UsageError(f"{out} was made with {made.meta['model']}, whose weights differ from {model}'s.")
        grid = Grid.model_validate(made.meta["windows"])
        if (seconds and seconds != grid.seconds) or (stride and stride != grid.stride):
            raise UsageError(f"{out} has windows of {grid.seconds:g} s every {grid.stride:g} s; make another index.")
    else:
        length = seconds or found.test.windows.seconds or 2.0
        grid = Grid(seconds=length, count=None, stride=stride or length)
        facts = {
            "triptych": version("triptych"),
            "model": str(model) if str(model).startswith("random:") else str(Path(model).resolve()),
            "method": found.method_name,
            "fingerprint": found.fingerprint,
            "source": str(Path(source).resolve()),
            "root": str(rows.root.resolve()),
            "spaces": found.method.spaces,
            "windows": grid.model_dump(mode="json"),
        }
        made = Index.create(out, facts)
    found.test = found.test.model_copy(update={"windows": grid})
    counts = made.update(found, rows, workers)
    spaces = ", ".join(f"{made.count(space)} vectors in {space}" for space in made.spaces)
    print(f"{out}: " + ", ".join(f"{value} {name}" for name, value in counts.items()) + f"; {spaces}")
    return made


@dataclass(frozen=True)
class Hits:
    """Answers of a search."""

    query: str
    hits: list[Hit]
    saved: list[str]

    def render(self, as_json: bool = False) -> str:
        """Return an aligned list, or one line of JSON."""
        if as_json:
            found = {"query": self.query, "hits": [hit.__dict__ for hit in self.hits], "saved": self.saved}
            return json.dumps(found, ensure_ascii=False)
        if not self.hits:
            return "no hits"
        width = max(len(hit.path) for hit in self.hits)
        lines = []
        for place, hit in enumerate(self.hits, 1):
            where = f"{hit.path.ljust(width)}  {clock(hit.start)} to {clock(hit.end)}"
            lines.append(f"{place:3d}  {hit.score:5.2f}  {where}  {hit.stream}")
        return "\n".join(["     score  where", *lines, *(f"saved {path}" for path in self.saved)])


def clock(seconds: float) -> str:
    """Return seconds as hours (where there are any), minutes and seconds."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    return (f"{hours}:{minutes:02d}:" if hours else f"{minutes}:") + f"{rest:04.1f}"


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
    model: Model | None = None,
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
        model: The index's model, if it is loaded already.

    Raises:
        UsageError: If not exactly one query is given.
    """
    files = [file for file in (audio, video, image) if file is not None]
    if len(files) + (words is not None) != 1:
        raise UsageError("Give one query: words, --audio FILE, --video FILE or --image FILE.")
    opened = Index.open(index)
    found = model or open_model(opened.meta["model"])
    if found.fingerprint != opened.meta["fingerprint"]:
        raise TriptychError(f"The model at {opened.meta['model']} is no longer the one that {index} was made with.")
    if words is not None:
        query = embed_words(found, words)
    else:
        query = embed_file(found, files[0], "audio" if audio else "video")
    hits = opened.search(query, k, path, between, streams)
    saved = []
    if save is not None:
        root = Path(source) if source is not None else Path(opened.meta["root"])
        if not root.is_dir():
            raise UsageError(f"The recordings are no longer at {root}; say where they are: --source DIR.")
        for place, hit in enumerate(hits, 1):
            out = Path(save) / f"{place:02d}-{Path(hit.path).stem}-{hit.start:.1f}.mp4"
            saved.append(str(cut(root / hit.path, hit.start, hit.end, out)))
    return Hits(words if words is not None else str(files[0]), hits, saved)


def info(path: str | Path, as_json: bool = False) -> str:
    """Return what a folder is: a model, run, index, table or collection.

    Raises:
        UsageError: If it is none of these.
    """
    path = Path(path)
    facts: dict[str, Any]
    if (path / "index.json").is_file():
        facts = {"kind": "index", **Index.open(path).info()}
    elif (path / "table.json").is_file():
        table = EmbeddingTable.load(path)
        meta = json.loads((path / "table.json").read_text(encoding="utf-8"))
        facts = {"kind": "table", "dimensions": table.vectors.shape[1], **meta}
    elif (path / "collection.json").is_file():
        rows = Rows.open(path)
        total = sum(float(seconds or 0) for seconds in rows.column("seconds"))
        facts = {
            "kind": "collection",
            "recordings": len(rows),
            "hours": round(total / 3600, 3),
            "columns": rows.columns,
        }
    elif (path / "recipe.json").is_file():
        recipe, content = read_run(path)
        lines = report.read_lines(path / "log.jsonl") if (path / "log.jsonl").is_file() else []
        facts = {
            "kind": "run",
            "method": recipe.method,
            "steps": max((line["step"] for line in lines), default=0),
            "finished": (path / "model").is_dir(),
            **{key: value for key, value in content.items() if key != "recipe"},
        }
    else:
        model = read_model(path)
        facts = {
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
    if as_json:
        return json.dumps({"path": str(path), **facts}, ensure_ascii=False)
    width = max(map(len, facts))
    return "\n".join(f"{key.ljust(width)}  {value}" for key, value in facts.items())


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
        rows = open_source(facts["source"])
        rows = rows.split(next((name for name in ("test", "val") if name in rows.splits), "train"))
        rows = rows.select(range(min(len(rows), report.EXAMPLES)))
        tables = sweep(model, rows)
    return report.write_page(run, recipe, facts, model.num_parameters, rows, tables)
