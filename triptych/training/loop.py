"""The training loop: rounds of epochs of steps, for any method."""

import hashlib
import math
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from jaxtyping import Int
from torch import Tensor, nn

from triptych import distributed
from triptych.batch import Batch
from triptych.data.loader import Loader
from triptych.data.targets import Targets
from triptych.data.text import Tokenizer
from triptych.errors import TriptychError, UsageError
from triptych.media.collection import Rows
from triptych.method import Clock, Losses, Method
from triptych.model import model_tensors, write_model
from triptych.recipe import Recipe, Selection
from triptych.training import checkpoint, parallel
from triptych.training.checkpoint import Position, Training
from triptych.training.gradients import backward, find_rule
from triptych.training.log import Log
from triptych.training.optimizers import adjust, build_optimizer, clip, rates, zero_not_finite

Watch = Callable[[Method, Clock], Mapping[str, float]]
"""Scores of a method in training; how evaluation reaches the loop."""

ECHO = 2.0
"""Seconds in which a second signal to stop is taken for the first."""


class Stopped(TriptychError):
    """The run was asked to stop and wrote a checkpoint."""


@dataclass(frozen=True)
class WholeSet:
    """The data set as ``before_epoch`` sees it."""

    loader: Loader

    def batches(self, rows: Int[Tensor, " rows"] | None = None) -> Iterator[Batch]:
        """Yield this rank's share in order, seen as the recipe's ``test`` says."""
        return self.loader.sweep(None if rows is None else rows.tolist())

    def __len__(self) -> int:
        return len(self.loader.rows)


def fit(
    method: Method,
    recipe: Recipe,
    rows: Rows,
    out: str | Path,
    tokenizer: Tokenizer | None = None,
    watch: Watch | None = None,
    watch_epochs: int | None = None,
    targets: Targets | None = None,
    labels: tuple[str, ...] = (),
    device: torch.device | str = "cpu",
    facts: Mapping[str, Any] | None = None,
    tensorboard: bool = False,
) -> Path:
    """Train a method on rows, or go on where a run in ``out`` stopped.

    Args:
        method: Built from ``recipe.config``; its weights are the start of a new run.
        recipe: Everything the run depends on.
        rows: What to train on.
        out: The run's folder.
        tokenizer: Where a view has text.
        watch: Asked for scores at the end of the run, and every ``watch_epochs`` epochs.
        watch_epochs: See ``watch``; those of ``recipe.selection``, if it has one.
        targets: Columns that become ``Batch.targets``, see ``Loader``.
        labels: Names of the classes, kept in the model.
        device: Where to train; with several processes each takes its own of this kind.
        facts: What else ``recipe.json`` and the model should tell: source, versions, command.
        tensorboard: Whether to write event files, too.

    Returns:
        The model's folder.

    Raises:
        Stopped: After Ctrl-C or SIGTERM; a checkpoint was written.
        UsageError: If ``out`` holds a run of another recipe or of other data, or the recipe selects by a score that
            ``watch`` does not give.
        TriptychError: If a loss is not finite, data cannot be read, or nothing can be written.
    """
    out = Path(out)
    device = parallel.start(torch.device(device))
    checkpoint.claim(out, recipe, rows, facts or {})
    if distributed.agree((out / "model").is_dir()):
        return out / "model"
    # Sharding replaces the parameters, so optimizer and average are built after it.
    module = parallel.wrap(method.to(device).train(), recipe.parallel, device)
    training = _prepare(method, recipe)
    found = distributed.agree(checkpoint.find(out))
    if found:
        checkpoint.restore(found[-1], training)
    else:  # whatever happens from here on, the run has its beginning; and a full disk is told before hours of training
        checkpoint.save(out, training, recipe, tokenizer, labels)
    position = training.position
    with _loaders(recipe, rows, tokenizer, targets, device) as (loader, sweep_loader):
        steps = recipe.steps or max(round((recipe.epochs or 0) * loader.steps()), 1)
        runner: nn.Module = torch.compile(module) if recipe.compile else module  # type: ignore[assignment]
        main = distributed.rank() == 0
        journal = (
            Log(out / "log.jsonl", position.step, steps * recipe.rounds, recipe.method, tensorboard) if main else None
        )
        try:
            with _stop_signals() as stop:
                run = _Run(training, recipe, loader, sweep_loader, runner, steps, journal, out, tokenizer, labels, stop)
                run.train(watch, watch_epochs)
        finally:
            if journal is not None:
                journal.close()
    final = _final(training, recipe, out)
    with parallel.first_rank() as here:
        if here:
            made = {"steps": position.step, "seed": recipe.seed, **(facts or {})}
            write_model(out / "model", method, recipe, tokenizer, labels, made, tensors=final)
    return out / "model"


def _final(training: Training, recipe: Recipe, out: Path) -> dict[str, Tensor]:
    """Return the tensors that the run ends with, on rank 0."""
    best, selection = training.position.best_step, recipe.selection
    if best is not None and best != training.position.step and selection is not None and selection.keep == "best":
        return checkpoint.weights_at(checkpoint.at_step(out, best)) if distributed.rank() == 0 else {}
    return checkpoint.gathered(training.average or model_tensors(training.method))


def _prepare(method: Method, recipe: Recipe) -> Training:
    optimizer = build_optimizer(method, recipe.optimizer)
    average = None
    if recipe.ema is not None:
        average = {name: tensor.clone() for name, tensor in model_tensors(method).items()}
    return Training(method, optimizer, average)


@contextmanager
def _loaders(
    recipe: Recipe,
    rows: Rows,
    tokenizer: Tokenizer | None,
    targets: Targets | None,
    device: torch.device,
) -> Iterator[tuple[Loader, Loader]]:
    shared: dict[str, Any] = {
        "seed": recipe.seed,
        "tokenizer": tokenizer,
        "targets": targets,
        "workers": recipe.workers,
        "device": device,
        "rank": distributed.rank(),
        "world": distributed.world_size(),
    }
    train = Loader(rows, recipe.train, recipe.batch, epoch_rows=recipe.epoch_rows, mixing=recipe.mixing, **shared)
    with train, Loader(rows, recipe.test, **shared) as test:
        yield train, test


@contextmanager
def _stop_signals() -> Iterator[list[float]]:
    """Collect the first Ctrl-C or SIGTERM instead of dying of it; a second one is not held back.

    One that comes within ``ECHO`` seconds is the same: torchrun passes on what the terminal has sent to all already.
    """
    received: list[float] = []

    def receive(number: int, frame: FrameType | None) -> None:
        if received and time.monotonic() - received[0] > ECHO:
            raise KeyboardInterrupt
        received.append(time.monotonic())

    try:
        before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: signals are somebody else's
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class _Run:
    """The state of one call of ``fit``."""

    training: Training
    recipe: Recipe
    loader: Loader
    sweep: Loader
    module: nn.Module
    steps: int
    """Optimizer steps of a round."""
    journal: Log | None
    out: Path
    tokenizer: Tokenizer | None
    labels: tuple[str, ...]
    stop: list[float]

    def __post_init__(self) -> None:
        self.device = self.loader.device
        capable = self.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        self.half = self.recipe.precision == "bfloat16" or (self.recipe.precision == "auto" and capable)
        self.rule = find_rule(self.recipe.gradients)
        if self.rule is not None and distributed.is_running() and self.recipe.parallel == "fsdp":
            raise UsageError(f"The rule {self.recipe.gradients.rule} needs whole gradients: set parallel=ddp.")
        groups = self.training.optimizer.param_groups
        self.parameters = [p for group in groups for p in group["params"] if p.requires_grad]
        self.saved_at = time.monotonic()
        self.since_line = [time.monotonic(), 0.0, 0.0]  # begin, seconds of waiting for data, rows

    @property
    def position(self) -> Position:
        return self.training.position

    @property
    def clock(self) -> Clock:
        here = self.position
        return Clock(here.step, here.epoch, here.round, min(here.round_step / self.steps, 1.0))

    def train(self, watch: Watch | None, watch_epochs: int | None) -> None:
        """Train to the end of the last round."""
        here, selection = self.position, self.recipe.selection
        if selection is not None:
            watch_epochs = selection.epochs
            if watch is None:
                raise UsageError(f"The recipe selects by '{selection.score}' on held-out rows; there are none.")
        while not self._stale:
            while here.round_step < self.steps and not self._stale:
                if not here.planned:
                    self._plan()
                self._epoch()
                if here.round_step < self.steps:
                    self._next_epoch(watch, watch_epochs)
            if here.round + 1 == self.recipe.rounds:
                break
            self._next_epoch(watch, watch_epochs)
            here.round, here.round_step = here.round + 1, 0
        self._save()
        if watch is not None and not self._stale:
            self._watch(watch)

    @property
    def _stale(self) -> bool:
        """Whether the held-out score has not become better for as long as the recipe is patient."""
        selection = self.recipe.selection
        return selection is not None and selection.patience is not None and self.position.stale >= selection.patience

    def _next_epoch(self, watch: Watch | None, watch_epochs: int | None) -> None:
        here = self.position
        here.epoch, here.epoch_step, here.planned = here.epoch + 1, 0, False
        if watch is not None and watch_epochs and here.epoch % watch_epochs == 0:
            self._watch(watch)

    def _plan(self) -> None:
        """Let the method recompute its targets, alike on all ranks."""
        training = self.training
        method = training.method
        _seed(self.recipe.seed, "epoch", self.position.epoch)
        plan = method.before_epoch(self.clock, WholeSet(self.sweep))
        method.train()
        training.order = None if plan.order is None else plan.order.cpu()
        named = dict(method.named_parameters())
        for group in training.optimizer.param_groups:
            for name, parameter in zip(group["names"], group["params"], strict=True):
                if named.get(name) is not parameter:
                    raise TriptychError(f"before_epoch has replaced the parameter '{name}'; it must set it in place.")
        for name in plan.fresh:
            if name not in named:
                raise TriptychError(f"before_epoch calls '{name}' fresh, but there is no such parameter.")
            training.optimizer.state.pop(named[name], None)
            if training.average is not None:
                training.average[name].copy_(named[name].detach())
        self.position.planned = True

    def _epoch(self) -> None:
        here = self.position
        batches = self.loader.epoch(here.epoch, self.training.order, skip=here.epoch_step)
        while here.round_step < self.steps:
            began = time.monotonic()
            parts = self._fetch(batches)
            self.since_line[1] += time.monotonic() - began
            if not parts:
                return
            values = self._step(parts)
            here.seconds += time.monotonic() - began
            self._record(values, parts)
            self._save_if_due()

    def _fetch(self, batches: Iterator[Batch]) -> list[Batch]:
        """Return the parts of a step, none at the end of the epoch.

        Between two steps all ranks are at one: if one has no data or was asked to stop while it waited for them (a
        signal to the whole group ends the decoding processes, too), all save and end.
        """
        parts: list[Batch] = []
        problem: str | None = None
        try:
            parts = list(islice(batches, self.recipe.batch.accumulate))
        except TriptychError as error:
            problem = str(error)
        stopping, failing = parallel.any_rank(bool(self.stop), problem is not None)
        if stopping:
            self._stop()
        if failing:
            self._save()
            raise TriptychError(parallel.first_problem(problem))
        return parts if len(parts) == self.recipe.batch.accumulate else []

    def _step(self, parts: list[Batch]) -> dict[str, float | Tensor]:
        """Take one optimizer step, and return what the log may tell of it, by this rank."""
        here, training, recipe, clock = self.position, self.training, self.recipe, self.clock
        training.optimizer.zero_grad(set_to_none=True)
        _seed(recipe.seed, "step", here.step, distributed.rank())
        terms: list[dict[str, Tensor]] = []
        totals: list[Tensor] = []
        reports: list[Mapping[str, float | Tensor]] = []
        for number, part in enumerate(parts):
            # Processes average their gradients with the last part; a rule looks at each process by itself before that.
            alone = self.rule is not None or number + 1 < len(parts)
            with getattr(self.module, "no_sync", nullcontext)() if alone else nullcontext():
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                    losses: Losses = self.module(part, clock)
                told = backward(losses, self.rule, 1 / len(parts), clock, self.parameters)
            terms.append({name: term.detach().float() for name, term in losses.terms.items()})
            totals.append(losses.total.detach())
            reports.append({**losses.report, **told})
        if self.rule is not None:
            parallel.average_gradients(self.parameters)
        adjust(training.optimizer, recipe.schedules, clock.progress, self.steps, here.step)
        if recipe.gradients.not_finite == "zero":
            zero_not_finite(training.optimizer)
        norm = clip(training.optimizer, recipe.gradients.clip_norm, recipe.gradients.clip_value)
        loss, gradient = self._not_finite(terms, norm, parts)
        problem = parallel.first_problem(loss) or gradient  # a loss explains the gradient, which all ranks share
        if problem is not None:
            raise TriptychError(problem)
        training.optimizer.step()
        here.step, here.epoch_step, here.round_step = here.step + 1, here.epoch_step + 1, here.round_step + 1
        here.rows += sum(len(part) for part in parts) * distributed.world_size()
        training.method.after_step(self.clock)
        if training.average is not None and recipe.ema is not None:
            with torch.no_grad():
                for name, tensor in model_tensors(training.method).items():
                    if tensor.is_floating_point():
                        training.average[name].lerp_(tensor, 1 - recipe.ema)
                    else:
                        training.average[name].copy_(tensor)
        return {
            "loss": torch.stack(totals).mean(),
            **_means([{f"loss.{name}": term for name, term in one.items()} for one in terms]),
            **_means(reports),
            **rates(training.optimizer),
            "gradient_norm": norm,
        }

    def _not_finite(
        self, terms: list[dict[str, Tensor]], norm: Tensor, parts: list[Batch]
    ) -> tuple[str | None, str | None]:
        """Return what is to be said of a loss and of a gradient that are not finite, and of what was in the batch."""
        named = [
            (f"the loss '{name}'", term, [part])
            for one, part in zip(terms, parts, strict=True)
            for name, term in one.items()
        ]
        named.append(("the gradient", norm.to(self.device), parts))
        values = torch.stack([value for _, value, _ in named]).tolist()  # one wait for the device, not one a term
        problems: list[str | None] = []
        for (what, _, where), value in zip(named, values, strict=True):
            if math.isfinite(value):
                problems.append(None)
                continue
            files = [str(self.loader.rows.row(row).path) for part in where for row in part.rows.tolist()]
            shown = ", ".join(files[:8]) + (f" and {len(files) - 8} more" if len(files) > 8 else "")
            problems.append(
                f"At step {self.position.step} {what} became {value}; the batch held {shown}. "
                "The last checkpoint is whole; lower the learning rate, clip gradients, or see these files."
            )
        return next(filter(None, problems[:-1]), None), problems[-1]

    def _record(self, values: dict[str, float | Tensor], parts: list[Batch]) -> None:
        here = self.position
        self.since_line[2] += sum(len(part) for part in parts) * distributed.world_size()
        if here.step % self.recipe.log_steps == 0 or here.step == 1 or here.round_step == self.steps:
            means = _means(distributed.every({name: float(value) for name, value in values.items()}))
            if self.journal is not None:
                now = time.monotonic()
                began, waited, rows = self.since_line
                spent = max(now - began, 1e-9)
                self.journal.write(
                    {
                        "step": here.step,
                        "epoch": here.epoch,
                        "round": here.round,
                        **means,
                        "rows_per_second": round(rows / spent, 2),
                        "waiting": round(waited / spent, 3),
                        "memory_gib": round(_memory(self.device), 3),
                        "seconds": round(here.seconds, 2),
                        "unreadable": len(self.loader.problems),
                    }
                )
            self.since_line = [time.monotonic(), 0.0, 0.0]
        if self.journal is not None:
            self.journal.advance(float(values["loss"]))

    def _save_if_due(self) -> None:
        here, recipe = self.position, self.recipe
        minutes = (time.monotonic() - self.saved_at) / 60
        stopping, by_time = parallel.any_rank(bool(self.stop), minutes >= recipe.checkpoint_minutes > 0)
        if stopping:
            self._stop()
        if by_time or (recipe.checkpoint_steps is not None and here.step % recipe.checkpoint_steps == 0):
            self._save()

    def _save(self) -> None:
        checkpoint.save(self.out, self.training, self.recipe, self.tokenizer, self.labels)
        self.saved_at = time.monotonic()

    def _stop(self) -> NoReturn:
        self._save()
        raise Stopped(
            f"stopped at step {self.position.step} with a checkpoint; continue with: "
            f"triptych pretrain --resume {self.out}"
        )

    def _watch(self, watch: Watch) -> None:
        method = self.training.method
        scores = dict(watch(method.eval(), self.clock))
        method.train()
        if self.journal is not None:
            self.journal.write({"step": self.position.step, "epoch": self.position.epoch, "scores": scores})
        if self.recipe.selection is not None:
            self._select(self.recipe.selection, scores)

    def _select(self, selection: Selection, scores: Mapping[str, float]) -> None:
        """Remember the best value, and keep the checkpoint that it was measured on."""
        here = self.position
        if selection.score not in scores:
            raise UsageError(f"The recipe selects by '{selection.score}'; measured are {', '.join(scores)}.")
        value = distributed.agree(scores[selection.score])
        better = here.best is None or (value < here.best if selection.lower else value > here.best)
        if better and math.isfinite(value):
            here.best, here.best_step, here.stale = value, here.step, 0
            self._save()
        else:
            here.stale += 1


def _means(values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the mean of each named value over those that have it."""
    found: dict[str, list[Any]] = {}
    for one in values:
        for name, value in one.items():
            found.setdefault(name, []).append(value.float().mean() if isinstance(value, Tensor) else value)
    return {name: sum(each) / len(each) for name, each in found.items()}


def _seed(seed: int, *key: object) -> None:
    """Seed torch's generators from the run's seed and a place in it."""
    digest = hashlib.blake2b(repr((seed, *key)).encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "big") >> 1)


def _memory(device: torch.device) -> float:
    """Return the peak memory in GiB: the device's, or this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
