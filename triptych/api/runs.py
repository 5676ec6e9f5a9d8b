"""Verbs that train: a new run, and an interrupted one."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from triptych import catalog, distributed
from triptych.api.sources import choose_device, complete, named_recipe, open_source, read_run
from triptych.data.targets import OneLabel, Targets
from triptych.data.text import Tokenizer
from triptych.errors import UsageError
from triptych.files import leftovers
from triptych.media.collection import Rows
from triptych.method import Method
from triptych.model import Model, model_tensors, read_model
from triptych.recipe import Recipe, override
from triptych.training import loop, parallel
from triptych.training.estimate import estimate_run


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
    tensorboard: bool = False,
    watch: loop.Watch | None = None,
    watch_epochs: int | None = None,
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
        tensorboard: Whether to write event files, too.
        watch: Asked for scores of the method at the end of the run, and every ``watch_epochs`` epochs.
        watch_epochs: See ``watch``.

    Raises:
        UsageError: If ``out`` holds something, or recipe, method or source do not fit.
    """
    out, place = Path(out), parallel.start(choose_device(device))
    check_free(out)
    made = recipe if isinstance(recipe, Recipe) else named_recipe(method, recipe)
    made = override(made, list(assignments))
    if label is None and hasattr(made.config, "label"):
        raise UsageError(
            f"{made.method} learns from labels: train it with triptych finetune MODEL SOURCE --label COLUMN, on a "
            "pretrained MODEL or on random:METHOD."
        )
    rows = open_source(source)
    rows = rows.split("train")
    classes = tuple(sorted({value for value in rows.column(label) if value})) if label else ()
    made, tokenizer = complete(made, rows, classes)
    torch.manual_seed(made.seed)
    module: Method = catalog.resolve(made.method)(made.config)
    if tokenizer is not None and tokenizer.vectors is not None:
        module.take_words(tokenizer.vectors)
    if init is not None:
        start_from(module, read_model(init))
    which = (
        recipe if isinstance(recipe, str) else "given" if recipe else ("base" if torch.cuda.is_available() else "small")
    )
    facts = {
        "source": str(Path(rows.source).resolve()),
        "label": label,
        "init": init and str(init),
        "versions": versions(),
    }
    run = Run(
        module,
        made,
        rows,
        out,
        tokenizer,
        watch=watch,
        watch_epochs=watch_epochs,
        targets={label: OneLabel(classes)} if label else None,
        labels=classes,
        device=place,
        facts=facts,
        tensorboard=tensorboard,
    )
    return run.begin(which, minutes, dry_run)


def check_free(out: Path) -> None:
    """Check that a run may begin in a folder.

    Raises:
        UsageError: If it holds something.
    """
    if distributed.agree(out.is_file() or (out.exists() and bool({*out.iterdir()} - {*leftovers(out)}))):
        raise UsageError(f"{out} holds something already; continue it with --resume {out}, or choose another place.")


@dataclass
class Run:
    """Everything that a run is given; see ``loop.fit``."""

    method: Method
    recipe: Recipe
    rows: Rows
    out: Path
    tokenizer: Tokenizer | None
    device: torch.device
    facts: Mapping[str, Any]
    targets: Targets | None = None
    labels: tuple[str, ...] = ()
    watch: loop.Watch | None = None
    watch_epochs: int | None = None
    tensorboard: bool = False

    def begin(self, which: str, minutes: float | None, dry_run: bool) -> Path | None:
        """Tell what the run will take, and train; return the model's folder.

        Args:
            which: Name of the recipe, for the message.
            minutes: Fit the number of steps to this time.
            dry_run: Tell only.
        """
        estimate = estimate_run(self.method, self.recipe, self.rows, self.tokenizer, self.targets, self.device)
        if minutes is not None:
            rounds = self.recipe.rounds
            steps = distributed.agree(max(int(60 * minutes / estimate.step_seconds / rounds), 1))
            self.recipe = self.recipe.model_copy(update={"steps": steps, "epochs": None})
            estimate = estimate.for_steps(steps * rounds)
        if distributed.rank() == 0:
            told = estimate.describe(len(self.rows))
            print(f"{self.recipe.method} ({which} recipe) on {self.device}: {told}")
        return None if dry_run else self.go_on()

    def go_on(self) -> Path:
        """Train, from the beginning or from where the run stopped; return the model's folder."""
        torch.manual_seed(self.recipe.seed)
        return loop.fit(**{field.name: getattr(self, field.name) for field in fields(self)})


def resume(run: str | Path, device: str | None = None, tensorboard: bool = False) -> Path:
    """Continue an interrupted run exactly, and return the model's folder.

    Args:
        run: Its folder.
        device: Where.
        tensorboard: Whether to write event files, too.

    Raises:
        UsageError: If there is no run, or its source has changed.
    """
    run = Path(run)
    made, facts = read_run(run)
    if (run / "model").is_dir():
        print(f"{run} has ended; its model is {run / 'model'}")
        return run / "model"
    if "task" in facts:
        from triptych.api.finetuning import go_on  # which begins runs, too

        return go_on(run, made, facts, device, tensorboard)
    rows = open_source(facts["source"]).split("train")
    label = facts.get("label")
    classes = tuple(sorted({value for value in rows.column(label) if value})) if label else ()
    tokenizer = Tokenizer.train(rows.captions(), made.tokenizer) if made.tokenizer else None
    torch.manual_seed(made.seed)
    module: Method = catalog.resolve(made.method)(made.config)
    targets = {label: OneLabel(classes)} if label else None
    kept = {key: facts.get(key) for key in ("source", "label", "init", "versions")}
    place = parallel.start(choose_device(device))
    return Run(
        module, made, rows, run, tokenizer, place, kept, targets=targets, labels=classes, tensorboard=tensorboard
    ).go_on()


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    return {"triptych": version("triptych"), "torch": torch.__version__, "python": sys.version.split()[0]}


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
