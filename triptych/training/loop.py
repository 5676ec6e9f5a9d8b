"""The training loop: rounds of epochs of steps, for any method."""

import hashlib
import json
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from jaxtyping import Int
from torch import Tensor, nn

from triptych import distributed
from triptych.batch import Batch
from triptych.data.loader import Loader
from triptych.data.text import Tokenizer
from triptych.errors import TriptychError
from triptych.files import replacing
from triptych.media.collection import Rows
from triptych.method import Clock, Losses, Method
from triptych.model import model_tensors, write_model
from triptych.recipe import Recipe
from triptych.training import checkpoint, parallel
from triptych.training.checkpoint import Position, Training
from triptych.training.gradients import backward
from triptych.training.log import Log
from triptych.training.optimizers import adjust, build_optimizer, clip

Watch = Callable[[Method, Clock], Mapping[str, float]]
"""Scores of a method in training; how evaluation reaches the loop."""


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
    targets: Mapping[str, Sequence[str] | None] | None = None,
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
        watch_epochs: See ``watch``.
        targets: Columns that become ``Batch.targets``, see ``Loader``.
        labels: Names of the classes, kept in the model.
        device: Where to train; with several processes each takes its own of this kind.
        facts: What else ``recipe.json`` and the model should tell: source, versions, command.
        tensorboard: Whether to write event files, too.

    Returns:
        The model's folder.

    Raises:
        Stopped: After Ctrl-C or SIGTERM; a checkpoint was written.
        TriptychError: If a loss is not finite, data cannot be read, or nothing can be written.
    """
    out = Path(out)
    device = parallel.start(torch.device(device))
    out.mkdir(parents=True, exist_ok=True)
    if (out / "model").is_dir():
        return out / "model"
    if distributed.rank() == 0:
        for left in (*out.glob(".*.partial*"), *out.glob("checkpoints/.*.partial")):  # of a run that was killed
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        if not (out / "recipe.json").exists():
            _write_recipe(out, recipe, rows, facts or {})
    # Sharding replaces the parameters, so optimizer and average are built after it.
    module = parallel.wrap(method.to(device).train(), recipe.parallel, device)
    training = _prepare(method, recipe)
    found = checkpoint.find(out)
    if found:
        checkpoint.restore(found[-1], training)
    elif facts and facts.get("init"):  # a run that is killed early must not begin again from random weights
        checkpoint.save(out, training, recipe, tokenizer, labels)
    position = training.position
    with _loaders(recipe, rows, tokenizer, targets, device) as (loader, sweep_loader):
        steps = recipe.steps or max(round((recipe.epochs or 0) * loader.steps()), 1)
        runner: Any = torch.compile(module) if recipe.compile else module
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
    if distributed.rank() == 0 or recipe.parallel == "fsdp":
        final = {name: parallel.whole(tensor) for name, tensor in (training.average or model_tensors(method)).items()}
        if distributed.rank() == 0:
            made = {"steps": position.step, "seed": recipe.seed, **(facts or {})}
            write_model(out / "model", method, recipe, tokenizer, labels, made, tensors=final)
    parallel.wait()
    return out / "model"


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
    targets: Mapping[str, Sequence[str] | None] | None,
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
    train = Loader(rows, recipe.train, recipe.batch, epoch_rows=recipe.epoch_rows, **shared)
    with train, Loader(rows, recipe.test, **shared) as test:
        yield train, test


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect the first Ctrl-C or SIGTERM instead of dying of it; a second one is not held back."""
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

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
    stop: list[int]

    def __post_init__(self) -> None:
        self.device = self.loader.device
        capable = self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        self.half = self.recipe.precision == "bfloat16" or (self.recipe.precision == "auto" and capable)
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
        here = self.position
        while here.round < self.recipe.rounds:
            while here.round_step < self.steps:
                if not here.planned:
                    self._plan()
                self._epoch()
                if here.round_step < self.steps:
                    self._next_epoch(watch, watch_epochs)
            here.round, here.round_step = here.round + 1, 0
            if here.round < self.recipe.rounds:
                self._next_epoch(watch, watch_epochs)
        if watch is not None:
            self._watch(watch)

    def _next_epoch(self, watch: Watch | None, watch_epochs: int | None) -> None:
        here = self.position
        here.epoch, here.epoch_step, here.planned = here.epoch + 1, 0, False
        if watch is not None and watch_epochs and here.epoch % watch_epochs == 0:
            self._watch(watch)

    def _plan(self) -> None:
        """Let the method recompute its targets, alike on all ranks."""
        here, method = self.position, self.training.method
        _seed(self.recipe.seed, "epoch", here.epoch)
        plan = method.before_epoch(self.clock, WholeSet(self.sweep))
        method.train()
        self.training.order = plan.order
        if plan.fresh:
            named = dict(method.named_parameters())
            for name in plan.fresh:
                self.training.optimizer.state.pop(named[name], None)
        here.planned = True

    def _epoch(self) -> None:
        here, accumulate = self.position, self.recipe.batch.accumulate
        batches = self.loader.epoch(here.epoch, self.training.order, skip=here.epoch_step)
        while here.round_step < self.steps:
            began = time.monotonic()
            parts = [batch for _, batch in zip(range(accumulate), batches, strict=False)]
            self.since_line[1] += time.monotonic() - began
            if len(parts) < accumulate:
                return
            losses, total, norm = self._step(parts)
            here.seconds += time.monotonic() - began
            self._record(losses, total, norm, parts)
            self._save_if_due()

    def _step(self, parts: list[Batch]) -> tuple[Losses, float, Tensor]:
        """Take one optimizer step."""
        here, training, recipe = self.position, self.training, self.recipe
        training.optimizer.zero_grad(set_to_none=True)
        _seed(recipe.seed, "step", here.step, distributed.rank())
        totals = []
        for number, part in enumerate(parts):
            late = isinstance(self.module, nn.parallel.DistributedDataParallel) and number + 1 < len(parts)
            with self.module.no_sync() if late else nullcontext():  # type: ignore[operator]
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                    losses: Losses = self.module(part, self.clock)
                totals.append(backward(losses, recipe.gradients, 1 / len(parts)))
            self._check(losses, part)
        progress = here.round_step / self.steps
        adjust(training.optimizer, recipe.schedules, progress, self.steps, here.step)
        norm = clip(training.optimizer, recipe.gradients.clip_norm, recipe.gradients.clip_value)
        if not bool(norm.isfinite()):
            self._stop_at("the gradient", float(norm), parts[-1])
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
        return losses, float(distributed.average(torch.stack(totals).mean())), norm

    def _check(self, losses: Losses, part: Batch) -> None:
        """Stop the run at a loss that is not finite, and name what was in the batch."""
        if all(bool(term.isfinite()) for term in losses.terms.values()):
            return
        name = next(name for name, term in losses.terms.items() if not term.isfinite())
        self._stop_at(f"the loss '{name}'", float(losses.terms[name].detach()), part)

    def _stop_at(self, what: str, value: float, part: Batch) -> NoReturn:
        files = [str(self.loader.rows.row(int(row)).path) for row in part.rows.tolist()]
        shown = ", ".join(files[:8]) + (f" and {len(files) - 8} more" if len(files) > 8 else "")
        raise TriptychError(
            f"At step {self.position.step} {what} became {value}; the batch held "
            f"{shown}. The last checkpoint is whole; lower the learning rate, clip gradients, or see these files."
        )

    def _record(self, losses: Losses, total: float, norm: Tensor, parts: list[Batch]) -> None:
        here = self.position
        self.since_line[2] += sum(len(part) for part in parts) * distributed.world_size()
        due = here.step % self.recipe.log_steps == 0 or here.step == 1 or here.round_step == self.steps
        if due:
            terms = {f"loss.{name}": distributed.average(term) for name, term in losses.terms.items()}
            report = {name: torch.as_tensor(value, device=self.device) for name, value in losses.report.items()}
            shown = {name: distributed.average(value.float().mean()) for name, value in report.items()}
            if self.journal is not None:
                now = time.monotonic()
                began, waited, rows = self.since_line
                spent = max(now - began, 1e-9)
                self.journal.write(
                    {
                        "step": here.step,
                        "epoch": here.epoch,
                        "round": here.round,
                        "loss": total,
                        **{name: float(value) for name, value in (terms | shown).items()},
                        "lr": self.training.optimizer.param_groups[0]["lr"],
                        "gradient_norm": float(norm),
                        "rows_per_second": round(rows / spent, 2),
                        "waiting": round(waited / spent, 3),
                        "memory_gib": round(_memory(self.device), 3),
                        "seconds": round(here.seconds, 2),
                        "unreadable": len(self.loader.problems),
                    }
                )
            self.since_line = [time.monotonic(), 0.0, 0.0]
        if self.journal is not None:
            self.journal.advance(total)

    def _save_if_due(self) -> None:
        here, recipe = self.position, self.recipe
        stopping = parallel.any_rank(bool(self.stop))
        minutes = (time.monotonic() - self.saved_at) / 60
        by_steps = recipe.checkpoint_steps is not None and here.step % recipe.checkpoint_steps == 0
        if stopping or by_steps or parallel.any_rank(minutes >= recipe.checkpoint_minutes > 0):
            checkpoint.save(self.out, self.training, recipe, self.tokenizer, self.labels)
            self.saved_at = time.monotonic()
        if stopping:
            raise Stopped(
                f"stopped at step {here.step} with a checkpoint; continue with: triptych pretrain --resume {self.out}"
            )

    def _watch(self, watch: Watch) -> None:
        method = self.training.method
        scores = dict(watch(method.eval(), self.clock))
        method.train()
        if self.journal is not None:
            self.journal.write({"step": self.position.step, "epoch": self.position.epoch, "scores": scores})


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


def _write_recipe(out: Path, recipe: Recipe, rows: Rows, facts: Mapping[str, Any]) -> None:
    content = {
        "recipe": json.loads(recipe.to_json()),
        "data": {"source": rows.source, "rows": len(rows), "fingerprint": rows.fingerprint},
        **facts,
    }
    with replacing(out / "recipe.json") as place:
        place.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
