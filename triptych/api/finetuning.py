"""The verb that trains a head on a pretrained method, and the method with it."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from triptych import catalog, distributed
from triptych.api.runs import Run, check_free, versions
from triptych.api.sources import choose_device, complete, named_recipe, open_source, read_run
from triptych.data.targets import LabelsBySecond, OneLabel, SeveralLabels
from triptych.data.text import Tokenizer
from triptych.errors import TriptychError, UsageError
from triptych.evaluation.classification import Classification
from triptych.evaluation.evaluator import Evaluator, Score, Sweeps, mean_score
from triptych.evaluation.events import EventLocalization
from triptych.evaluation.speech import SpeechRecognition
from triptych.evaluation.splits import choose_split
from triptych.evaluation.splits import folds as cross_validate
from triptych.evaluation.table import Results
from triptych.files import replacing
from triptych.media.collection import Rows
from triptych.method import Clock, Method
from triptych.methods import fine_tunings, lavish, recognition, supervised
from triptych.methods.supervised import Finetuned
from triptych.model import Model, find_model, read_model
from triptych.recipe import BatchSpec, Config, Recipe, Selection, override, read_recipe
from triptych.training import loop, parallel

TRANSCRIPTS = "caption"
"""Column of what is said."""


@dataclass(frozen=True)
class Base:
    """What is fine-tuned."""

    recipe: Recipe
    """How it was trained and looks at a recording; method and configuration are its own."""
    tensors: Mapping[str, Tensor] | None
    """Its weights, by all names of its ``state_dict``; None: random."""


@dataclass(frozen=True)
class Task:
    """A kind of downstream task."""

    recipe: Callable[[Recipe, tuple[str, ...], str, bool], Recipe]
    """From the base's recipe, the streams, the label column and whether the base is frozen."""
    target: type[OneLabel] | type[SeveralLabels] | type[LabelsBySecond] | None
    """How the label column becomes targets; None: it is a transcript, which is a stream."""
    evaluator: Callable[[Config, str], Evaluator]
    """What judges it, from the head's configuration and the label column."""
    score: str
    """Ending of the name of the score that selects weights."""
    lower: bool = False
    """Whether less of it is better."""


def _class_recipe(kind: Literal["classes", "multilabel"]) -> Callable[[Recipe, tuple[str, ...], str, bool], Recipe]:
    def build(base: Recipe, streams: tuple[str, ...], label: str, frozen: bool) -> Recipe:
        return supervised.upon(base.method, base.config, base.test, streams, label, kind, frozen)

    return build


def _classification(config: Config, label: str) -> Evaluator:
    assert isinstance(config, supervised.SupervisedConfig)
    return Classification(config.classes, label, config.task == "multilabel")


def _event_recipe(base: Recipe, streams: tuple[str, ...], label: str, frozen: bool) -> Recipe:
    made = lavish.upon(base.method, base.config, base.test)
    return made.model_copy(update={"config": made.config.model_copy(update={"label": label})})


def _event_localization(config: Config, label: str) -> Evaluator:
    assert isinstance(config, lavish.LAVISHConfig)
    return EventLocalization(config.classes, label)


def _word_recipe(base: Recipe, streams: tuple[str, ...], label: str, frozen: bool) -> Recipe:
    made = recognition.upon(base, "+".join(streams), "ctc")
    return made.model_copy(update={"config": made.config.model_copy(update={"frozen": frozen})})


def _recognition(config: Config, label: str) -> Evaluator:
    assert isinstance(config, recognition.RecognitionConfig)
    return SpeechRecognition(config.streams, label)


TASKS = {
    "classes": Task(_class_recipe("classes"), OneLabel, _classification, "accuracy"),
    "multilabel": Task(_class_recipe("multilabel"), SeveralLabels, _classification, "mAP"),
    "events": Task(_event_recipe, LabelsBySecond, _event_localization, "accuracy"),
    "words": Task(_word_recipe, None, _recognition, "WER", lower=True),
}
"""By the name that ``--task`` takes."""


def finetune(
    model: str | Path,
    source: str | Path | Rows,
    out: str | Path,
    label: str | None = None,
    task: str = "classes",
    recipe: str | Recipe | None = None,
    assignments: Sequence[str] = (),
    streams: Sequence[str] | None = None,
    frozen: bool = False,
    val: str | None = None,
    hold_out: float | None = None,
    patience: int | None = None,
    fold: tuple[str, str] | None = None,
    minutes: float | None = None,
    dry_run: bool = False,
    device: str | None = None,
    tensorboard: bool = False,
) -> Path | None:
    """Fine-tune a model on a label column, and return the new model's folder.

    Where there are validation rows, they are measured after each epoch, and the model has the best weights.

    Args:
        model: A model folder, a run, or ``random:METHOD`` (the same from random weights).
        source: Recordings; of those with splits, ``train`` is learned from and ``val`` validates.
        out: The run's folder, which must not hold anything.
        label: Column of the labels (of transcripts, for words: ``caption``).
        task: ``classes`` (one label a row), ``multilabel``, ``events`` (a label for each second), ``words``.
        recipe: A published one by name, a file, or a ``Recipe``; one for small data sets where None.
        assignments: Changes such as ``optimizer.lr=1e-4``.
        streams: Features that the head reads; what the model sees and hears where None.
        frozen: Train only the head (linear evaluation).
        val: Split that validates.
        hold_out: Share of the training rows, drawn by the seed, that validate instead.
        patience: End after so many epochs in a row without a better validation.
        fold: Column and value: only rows with another value are learned from.
        minutes: Fit the number of steps to this time.
        dry_run: Estimate time and memory only.
        device: Where.
        tensorboard: Whether to write event files, too.

    Raises:
        UsageError: If ``out`` holds something, or task, label, streams, splits or recipe do not fit.
        TriptychError: If the labels have fewer than two classes, or weights do not fit the recipe.
    """
    out, place = Path(out), parallel.start(choose_device(device))
    check_free(out)
    rows, base = open_source(source), open_base(model)
    made = override(_recipe(base, rows, task, label, recipe, streams, frozen), list(assignments))
    task = _task(made.config)
    facts = {
        "source": str(Path(rows.source).resolve()),
        "task": task,
        "label": getattr(made.config, "label", TRANSCRIPTS),
        "val": val,
        "hold_out": hold_out,
        "fold": None if fold is None else list(fold),
        "init": str(model),
        "versions": versions(),
    }
    learned, judged = _divide(rows, facts, made.seed)
    target = _target(rows, learned, facts)
    if made.batch.rows is not None and made.batch.rows > len(learned):
        made = made.model_copy(update={"batch": made.batch.model_copy(update={"rows": len(learned)})})
    if judged is not None:
        score = f"{made.config.streams[0]} WER" if task == "words" else TASKS[task].score  # type: ignore[attr-defined]
        selection = made.selection or Selection(score=score, lower=TASKS[task].lower)
        changes = {} if patience is None else {"patience": patience}
        made = made.model_copy(update={"selection": selection.model_copy(update=changes)})
    elif patience is not None:
        raise UsageError("--patience waits for better validations: give --val SPLIT or --hold-out SHARE.")
    made, tokenizer = complete(made, learned, target.classes if target else ())
    torch.manual_seed(made.seed)
    module: Method = catalog.resolve(made.method)(made.config)
    assert isinstance(module, Finetuned)
    if base.tensors is not None:
        module.begin_with(base.tensors, str(model))
    run = _run(module, made, learned, judged, out, tokenizer, place, facts, target, tensorboard)
    named = recipe if isinstance(recipe, str) else "given" if recipe else f"default {task}"
    return run.begin(named, minutes, dry_run)


def go_on(run: Path, made: Recipe, facts: Mapping[str, Any], device: str | None, tensorboard: bool) -> Path:
    """Continue an interrupted fine-tuning exactly; see ``runs.resume``."""
    rows = open_source(facts["source"])
    learned, judged = _divide(rows, facts, made.seed)
    target = _target(rows, learned, facts)
    tokenizer = Tokenizer.train(learned.captions(), made.tokenizer) if made.tokenizer else None
    torch.manual_seed(made.seed)
    module: Method = catalog.resolve(made.method)(made.config)
    kept = {key: value for key, value in facts.items() if key not in ("recipe", "data")}
    place = parallel.start(choose_device(device))
    return _run(module, made, learned, judged, run, tokenizer, place, kept, target, tensorboard).go_on()


def _run(
    module: Method,
    made: Recipe,
    learned: Rows,
    judged: Rows | None,
    out: Path,
    tokenizer: Tokenizer | None,
    place: torch.device,
    facts: Mapping[str, Any],
    target: OneLabel | SeveralLabels | LabelsBySecond | None,
    tensorboard: bool,
) -> Run:
    label = facts["label"]
    watch = None
    if judged is not None:
        looks = Model(module, made.method, made.test, tokenizer)
        watch = watch_rows(looks, TASKS[facts["task"]].evaluator(made.config, label), judged, made.workers)
    targets = {label: target} if target else None
    labels = target.classes if target else ()
    options: dict[str, Any] = {"targets": targets, "labels": labels, "watch": watch, "tensorboard": tensorboard}
    return Run(module, made, learned, out, tokenizer, place, facts, **options)


def watch_rows(model: Model, evaluator: Evaluator, rows: Rows, workers: int | None) -> loop.Watch:
    """Return what measures a method in training on held-out rows."""

    def watch(method: Method, clock: Clock) -> dict[str, float]:
        sweeper = Sweeps({"run": model}, rows, model.test, workers, progress=False).of("run")
        return {name: score.value for name, score in evaluator.run(sweeper, rows, rows).items()}

    return watch


# ---------------------------------------------------------------- what is fine-tuned


def open_base(name: str | Path) -> Base:
    """Return what a name of a model stands for: of a fine-tuned model, the method below its head.

    Raises:
        UsageError: If there is no such model.
    """
    text = str(name)
    what = text.removeprefix("random:")
    if text.startswith("random:") and (what in catalog.CATALOG or ":" in what):
        return Base(named_recipe(what, "small"), None)
    model = read_model(what)
    recipe = _trained_with(what, model)
    method = model.method
    if isinstance(method, Finetuned):
        options, method = method.options, method.base
        recipe = recipe.model_copy(update={"method": options.base, "config": options.base_config})
    return Base(recipe, None if text.startswith("random:") else method.state_dict())


def _trained_with(name: str, model: Model) -> Recipe:
    """Return the recipe of the run that a model is of, or one that only says how it looks at a recording."""
    folder = find_model(name)
    for run in (Path(name), folder.parent, folder.parent.parent.parent):
        if (run / "recipe.json").is_file():
            recipe, _ = read_run(run)
            return recipe.model_copy(update={"config": model.method.config, "test": model.test})
    changes: dict[str, Any] = {"train": model.test, "test": model.test, "batch": BatchSpec(rows=32), "epochs": 30.0}
    return Recipe.model_construct(  # not validated: it may read text, and say nothing of a tokenizer
        method=model.method_name, config=model.method.config, **changes
    )


def _recipe(
    base: Base,
    rows: Rows,
    task: str,
    label: str | None,
    recipe: str | Recipe | None,
    streams: Sequence[str] | None,
    frozen: bool,
) -> Recipe:
    """Return the recipe that was asked for, on the base and the label column."""
    if task not in TASKS:
        raise UsageError(f"There is no task '{task}'; there are {', '.join(TASKS)}.")
    below = base.recipe
    reads = list(below.test.views[0])
    chosen = tuple(streams or (stream for stream in reads if stream != "text"))
    for stream in "+".join(chosen).split("+"):
        if stream not in reads or stream == "text":
            known = ", ".join(name for name in reads if name != "text")
            raise UsageError(f"--streams {stream}: {below.method} can be fine-tuned on {known}.")
    if recipe is None:
        return TASKS[task].recipe(below, chosen, _label(rows, task, label), frozen)
    presets = finetunings(below.method)
    if isinstance(recipe, Recipe):
        made = recipe
    elif recipe in presets:
        made = presets[recipe](below.config)
    elif Path(recipe).exists():
        made = read_recipe(recipe)
    else:
        known = f"its own are {', '.join(presets)}" if presets else "it has none of its own"
        raise UsageError(f"There is no recipe '{recipe}' that fine-tunes {below.method}; {known}, or give a file.")
    if getattr(made.config, "base", None) != below.method:
        raise UsageError(f"The recipe fine-tunes {getattr(made.config, 'base', made.method)}, not {below.method}.")
    if label is None and recipe not in presets:
        label = getattr(made.config, "label", None)
    label = _label(rows, _task(made.config), label)
    changes: dict[str, Any] = {"label": label} if hasattr(made.config, "label") else {}
    changes |= {"frozen": True} if frozen else {}
    return made.model_copy(update={"config": made.config.model_copy(update=changes)})


def _task(config: Config) -> str:
    """Return the task of a head by its configuration.

    Raises:
        UsageError: If it is that of no downstream task.
    """
    match config:
        case supervised.SupervisedConfig():
            return config.task
        case lavish.LAVISHConfig():
            return "events"
        case recognition.RecognitionConfig():
            return "words"
    raise UsageError("A recipe of fine-tuning is one of supervised, lavish or recognition.")


def finetunings(method: str) -> dict[str, Callable[[Config], Recipe]]:
    """Return the published recipes that fine-tune a method; each takes the configuration of a pretrained model."""
    return fine_tunings.FINETUNING.get(method, {}) | recognition.FINETUNING.get(method, {})


# ---------------------------------------------------------------- what it is fine-tuned on


def _label(rows: Rows, task: str, label: str | None) -> str:
    """Return the label column.

    Raises:
        UsageError: If there is none.
    """
    if task == "words":
        if label not in (None, TRANSCRIPTS):
            raise UsageError(f"Transcripts are read from the column '{TRANSCRIPTS}', not from '{label}'.")
        label = TRANSCRIPTS
    if label is None:
        raise UsageError(f"--label COLUMN is missing; {rows.source} has {', '.join(rows.columns)}.")
    rows.column(label)
    return label


def _divide(rows: Rows, facts: Mapping[str, Any], seed: int) -> tuple[Rows, Rows | None]:
    """Return the labelled rows to learn from, and those that validate, if there are any.

    Raises:
        UsageError: If a split, fold or share leaves no row.
    """
    label, val, share = facts["label"], facts["val"], facts["hold_out"]
    learned, judged = rows, None
    if facts["fold"] is not None:
        column, value = facts["fold"]
        learned = rows.where(lambda row: row[column].strip() not in ("", value))
    elif rows.splits:
        learned = rows.split("train")
        if val is None and share is None and "val" in rows.splits:
            val = "val"
    learned = _labelled(learned, label, "train")
    if val is not None and share is not None:
        raise UsageError("Give --val or --hold-out, not both.")
    if val is not None:
        judged = _labelled(choose_split(rows, val), label, val)
    if share is not None:
        count = round(share * len(learned))
        if not 0 < count < len(learned):
            raise UsageError(f"--hold-out {share} of {len(learned)} labelled rows leaves none on one side.")
        order = torch.randperm(len(learned), generator=torch.Generator().manual_seed(seed))
        judged, learned = learned.select(order[:count].sort()[0]), learned.select(order[count:].sort()[0])
    return learned, judged


def _labelled(rows: Rows, label: str, part: str) -> Rows:
    cells = rows.column(label)
    known = [number for number, value in enumerate(cells) if value.strip()]
    if not known:
        raise UsageError(f"None of the {len(rows)} rows of {rows.source} to {part} has a label in '{label}'.")
    if len(known) < len(rows) and distributed.rank() == 0:
        print(f"{part}: {len(rows) - len(known)} of {len(rows)} rows have no label in '{label}' and are left out")
    return rows.select(known)


def _target(rows: Rows, learned: Rows, facts: Mapping[str, Any]) -> OneLabel | SeveralLabels | LabelsBySecond | None:
    """Return how labels become targets; the classes are those of all rows of the source.

    Raises:
        TriptychError: If the rows to learn from have fewer than two classes.
    """
    task, label = facts["task"], facts["label"]
    kind = TASKS[task].target
    if kind is None:
        return None
    target, learnt = kind.find(rows, label), kind.find(learned, label).classes
    if len(learnt) < 2 and not (kind is SeveralLabels and learnt):
        what = f"only the label '{learnt[0]}'" if learnt else "no labels"
        raise TriptychError(f"The rows to learn from have {what} in '{label}'; {task} needs two or more.")
    missing = [name for name in target.classes if name not in learnt]
    if missing and distributed.rank() == 0:
        print(f"no row to learn from has the label {', '.join(missing)}")
    return target


# ---------------------------------------------------------------- folds


FOLDS = "folds.json"
"""File of a folder of folds: what was asked for."""


def finetune_folds(
    model: str | Path, source: str | Path, out: str | Path, folds: str, seed: int = 0, **options: Any
) -> Results:
    """Fine-tune once for each value of a column, on the rows with the other values, and test on those with it.

    Args:
        model: As of ``finetune``.
        source: As of ``finetune``.
        out: Folder of the runs, one a fold; it must not hold anything.
        folds: The column.
        seed: Of the intervals.
        options: Further arguments of ``finetune``.

    Returns:
        Means over the folds; each fold's score is in the notes.

    Raises:
        UsageError: If ``out`` holds something, or the column has fewer than two values.
    """
    out = Path(out)
    check_free(out)
    cross_validate(open_source(source), folds)
    asked = {"model": str(model), "source": str(Path(source).resolve()), "folds": folds, "seed": seed, **options}
    with replacing(out / FOLDS) as place:
        place.write_text(json.dumps(asked, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return _run_folds(out, asked)


def has_folds(out: Path) -> bool:
    """Return whether a folder is one of folds."""
    return (out / FOLDS).is_file()


def resume_folds(out: Path, device: str | None = None) -> Results:
    """Continue an interrupted fine-tuning of folds exactly; see ``finetune_folds``.

    Raises:
        TriptychError: If ``folds.json`` is damaged.
    """
    try:
        asked: dict[str, Any] = json.loads((out / FOLDS).read_text(encoding="utf-8"))
    except ValueError as error:
        raise TriptychError(f"{out / FOLDS} is damaged: {error}.") from error
    return _run_folds(out, asked | {"device": device})


def _run_folds(out: Path, asked: Mapping[str, Any]) -> Results:
    options = dict(asked)
    model, source, folds, seed = (options.pop(name) for name in ("model", "source", "folds", "seed"))
    rows, device = open_source(source), options.get("device")
    task, label = options.get("task", "classes"), _label(rows, options.get("task", "classes"), options.get("label"))
    scores: list[dict[str, Score]] = []
    for _, test in cross_validate(rows, folds):
        value = test.row(0)[folds]
        run = out / re.sub(r"[^\w.-]", "_", f"{folds}-{value}")
        if (run / "recipe.json").is_file() and not (run / "model").is_dir():
            go_on(run, *read_run(run), device, False)
        elif not (run / "model").is_dir():
            finetune(model, rows, run, fold=(folds, value), **options)
        found = read_model(run, choose_device(device))
        sweeper = Sweeps({run.name: found}, test, found.test).of(run.name)
        scores.append(TASKS[task].evaluator(found.method.config, label).run(sweeper, test, test))
        print(f"{run.name}: " + ", ".join(f"{name} {score.value:.1f}" for name, score in scores[-1].items()))
    means = {f"{task} {name}": mean_score([fold[name] for fold in scores]) for name in scores[0]}
    notes = [f"{name}: {score.note}" for name, score in means.items()]
    return Results(str(out), f"{source} ({len(scores)} folds of '{folds}')", seed, {model: means}, notes)
