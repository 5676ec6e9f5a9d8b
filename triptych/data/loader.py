"""Batches of a data set: which rows, in which order, decoded by whom.

Every draw is a function of (seed, epoch, row, copy, view): the same batches come whatever the number of decoding
processes, and several ranks together see what one alone would.
"""

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby
from types import TracebackType
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from triptych.batch import Batch
from triptych.data.clips import Item, Look, RawBatch, collate, decode, finish, seeded
from triptych.data.mixing import draw_mix
from triptych.data.order import Order
from triptych.data.targets import Targets
from triptych.data.text import Tokenizer
from triptych.data.windows import draw_windows
from triptych.errors import TriptychError, UsageError
from triptych.media.collection import Rows
from triptych.recipe import AudioTransform, BatchSpec, Mixing, TextTransform, Viewing

ATTEMPTS = 20
"""Rows tried for one place of a batch before the loader gives up."""
STAND_IN = 1 << 40
"""Copies from this number on are draws of a row in the place of another: other windows than its own."""
SWEEP = -1
"""The epoch that the draws of a sweep belong to."""

log = logging.getLogger("triptych")


@dataclass(frozen=True)
class _Task:
    """What a worker decodes in one go: the rows of one micro-batch."""

    epoch: int
    rows: tuple[int, ...]
    copies: tuple[int, ...]
    """Which draw of its row in this epoch each is."""
    places: tuple[int, ...]
    """Place of each in the epoch's order."""
    replace: bool
    """Whether another row takes the place of an unreadable one."""


@dataclass
class _Result:
    batch: RawBatch | None = None
    problems: list[tuple[int, str]] = field(default_factory=list)
    failed: int = 0
    """Draws whose own row could not be used."""
    error: str | None = None

    def pin_memory(self) -> "_Result":
        """Return the result with its clips in page-locked memory (called by the engine's thread)."""
        return replace(self, batch=None if self.batch is None else self.batch.pin_memory())


class Loader:
    """Batches of some rows under one viewing; workers live from the first batch until ``close``."""

    def __init__(
        self,
        rows: Rows,
        viewing: Viewing,
        batch: BatchSpec | None = None,
        *,
        seed: int = 0,
        tokenizer: Tokenizer | None = None,
        targets: Targets | None = None,
        epoch_rows: int | None = None,
        mixing: Mixing | None = None,
        workers: int | None = None,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Prepare loading; nothing is decoded yet.

        Args:
            rows: The data set.
            viewing: Windows and views.
            batch: Size and composition of a batch; not needed for ``sweep``.
            seed: Of all draws.
            tokenizer: Needed where a view has text.
            targets: Columns that become ``Batch.targets``, and how.
            epoch_rows: Rows of an epoch; all where None.
            mixing: Mixing of the rows of an epoch's micro-batches; a sweep mixes nothing. Targets are shares then.
            workers: Decoding processes; 0 decodes in this one; chosen from the cores where None.
            device: Where batches are transformed and delivered.
            rank: Number of this process.
            world: Number of processes.

        Raises:
            UsageError: If viewing, batch and rows do not fit each other.
        """
        self.rows = rows
        self.viewing = viewing
        self.batch = batch
        self.seed = seed
        self.device = torch.device(device)
        self.rank = rank
        self.world = world
        self.workers = _choose_workers(world) if workers is None else workers
        self.problems: list[tuple[str, str]] = []
        """Path and reason of the rows that could not be read or did not fit, each once."""
        self._known_problems: set[int] = set()
        self._check(tokenizer)
        self._rows_in_order = (
            None if batch is None else Order(rows, viewing, batch, seed, epoch_rows, world * batch.accumulate)
        )
        self._targets = {column: target.read(rows, column) for column, target in (targets or {}).items()}
        self._mixing = mixing
        if mixing is not None:
            self._targets = {name: target.shares(self._targets[name], name) for name, target in (targets or {}).items()}
        together = 1 if batch is None else batch.repeat * batch.together
        self._worker = _Worker(rows, viewing, seed, tokenizer, together)
        self._tasks = _Tasks()
        self._engine: DataLoader[Any] | None = None
        self._busy = False

    def _check(self, tokenizer: Tokenizer | None) -> None:
        for view in self.viewing.views:
            for stream, spec in view.items():
                if isinstance(spec.transform, TextTransform) and tokenizer is None:
                    raise UsageError(f"The view has the stream '{stream}' of text, but there is no tokenizer.")
                if (
                    isinstance(spec.transform, AudioTransform)
                    and spec.transform.front_end != "waveform"
                    and not spec.rate
                ):
                    raise UsageError(f"The stream '{stream}' has a filter bank: give its `rate` in samples a second.")
        if self.batch is None:
            return
        parts = self.world * self.batch.accumulate
        if self.batch.rows is not None and self.batch.rows % (parts * self.batch.together):
            raise UsageError(
                f"batch.rows ({self.batch.rows}) must be a multiple of processes x batch.accumulate x batch.together "
                f"({self.world} x {self.batch.accumulate} x {self.batch.together})."
            )

    # ------------------------------------------------------------ what is drawn

    def steps(self, order: Int[Tensor, " draws"] | None = None) -> int:
        """Return the number of optimizer steps of an epoch.

        Raises:
            UsageError: If the data set is smaller than one batch.
        """
        return self._order().steps(order)

    def epoch(self, epoch: int, order: Int[Tensor, " draws"] | None = None, skip: int = 0) -> Iterator[Batch]:
        """Yield this rank's micro-batches of an epoch.

        Of each batch's ``world x accumulate`` parts, the first ``world`` are the ranks' first micro-batches, and so on:
        at every micro-step the ranks together see what one process would. An incomplete last batch is left out.

        Args:
            epoch: Number of the epoch; another one, another order and other windows.
            order: Rows to draw, in order; shuffled (or balanced) where None.
            skip: Optimizer steps of this epoch that are done already; their rows are not decoded.

        Raises:
            UsageError: If the data set is smaller than one batch.
            TriptychError: If more than half of the rows drawn could not be used, or a worker died.
        """
        chosen = self._order()
        chosen.steps(order)
        rows, copies = chosen.draws(epoch, order)
        batches = chosen.batches(rows, epoch)

        def tasks() -> Iterator[_Task]:
            for places in batches[skip:]:
                parts = places.tensor_split(chosen.parts)
                for part in parts[self.rank :: self.world]:
                    yield _Task(
                        epoch,
                        tuple(rows[part].tolist()),
                        tuple(copies[part].tolist()),
                        tuple(part.tolist()),
                        replace=True,
                    )

        limit = max(len(rows) // self.world // 2, 1)
        failed = 0
        for result in self._run(tasks()):
            failed += result.failed
            if failed > limit:
                last = self._name(*result.problems[-1])
                raise TriptychError(f"More than half of the rows of an epoch cannot be used; the last: {last}")
            assert result.batch is not None
            mix = None
            if self._mixing is not None:
                key = (self.seed, epoch, "mixing", *result.batch.rows.tolist())
                mix = draw_mix(self._mixing, len(result.batch.rows), seeded(*key))
            yield finish(result.batch, self.viewing, self.device, self._targets, mix)

    def sweep(self, rows: Iterable[int] | None = None, batch_rows: int = 32) -> Iterator[Batch]:
        """Yield this rank's share of ``rows`` (all where None) in order; unreadable ones are left out and reported.

        Windows and transforms are drawn from (seed, row): every sweep sees the same.
        """
        chosen = torch.arange(len(self.rows)) if rows is None else torch.as_tensor(list(rows), dtype=torch.long)
        share = chosen.tensor_split(self.world)[self.rank]
        tasks = (
            _Task(SWEEP, tuple(part.tolist()), (0,) * len(part), (0,) * len(part), replace=False)
            for part in torch.split(share, batch_rows)
        )
        for result in self._run(tasks):
            if result.batch is not None:
                yield finish(result.batch, self.viewing, self.device, self._targets)

    def _order(self) -> Order:
        if self._rows_in_order is None:
            raise UsageError("This loader was made for sweeps: it has no batch specification.")
        return self._rows_in_order

    # ------------------------------------------------------------ who decodes

    def _run(self, tasks: Iterator[_Task]) -> Iterator[_Result]:
        """Yield the results of tasks in order; leaving early ends the workers."""
        if self.workers == 0:
            for task in tasks:
                yield self._checked(self._worker[task])
            return
        if self._engine is None:
            context = "forkserver" if sys.platform != "win32" else "spawn"
            if context == "forkserver":  # workers start in milliseconds from a process that has imported, not decoded
                multiprocessing.get_context(context).set_forkserver_preload([__name__])
            self._engine = DataLoader(
                self._worker,
                batch_size=None,
                sampler=self._tasks,
                num_workers=self.workers,
                collate_fn=_unchanged,
                worker_init_fn=_end_with_parent,
                multiprocessing_context=context,
                generator=torch.Generator(),  # else it would draw from the generator that the training has seeded
                persistent_workers=True,
                prefetch_factor=2,
                pin_memory=self.device.type == "cuda",
            )
        if self._busy:
            raise RuntimeError("a loader yields one epoch or sweep at a time: end or close the other first")
        self._busy = True
        self._tasks.tasks = tasks
        results = iter(self._engine)
        whole = False
        try:
            while True:
                try:
                    result = next(results)
                except StopIteration:
                    whole = True
                    return
                except (RuntimeError, EOFError, OSError) as error:
                    if str(error).startswith("Caught"):  # raised by the worker's own code: a fault of ours
                        raise
                    reason = " ".join(str(error).split()) or type(error).__name__
                    raise TriptychError(
                        "A decoding process ended unexpectedly (out of memory, or of shared memory in /dev/shm?): "
                        f"{reason} Try fewer `workers`, or 0."
                    ) from error
                yield self._checked(result)
        finally:
            self._busy = False
            if not whole:
                self.close()

    def _checked(self, result: _Result) -> _Result:
        if result.error is not None:
            raise TriptychError(result.error)
        for row, reason in result.problems:
            if row not in self._known_problems:
                self._known_problems.add(row)
                self.problems.append((str(self.rows.row(row).path), reason))
                log.warning("%s", self._name(row, reason))
        return result

    def _name(self, row: int, reason: str) -> str:
        path = str(self.rows.row(row).path)
        return reason if path in reason else f"{path}: {reason}"

    def close(self) -> None:
        """End the workers; the next epoch or sweep starts new ones."""
        engine, self._engine = self._engine, None
        if engine is not None:
            iterator = engine._iterator
            engine._iterator = None
            if iterator is not None:
                iterator._shutdown_workers()  # type: ignore[attr-defined]

    def __enter__(self) -> "Loader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Tasks(Sampler[_Task]):
    """Hands the tasks of the current epoch to the engine, one by one as workers become free."""

    def __init__(self) -> None:
        self.tasks: Iterator[_Task] = iter(())

    def __iter__(self) -> Iterator[_Task]:
        return self.tasks


class _Worker(Dataset[_Result]):
    """What a worker knows: everything but the order of rows."""

    def __init__(self, rows: Rows, viewing: Viewing, seed: int, tokenizer: Tokenizer | None, together: int) -> None:
        self.rows = rows
        self.viewing = viewing
        self.seed = seed
        self.tokenizer = tokenizer
        self.together = together
        """Draws of a row that stand next to each other."""

    def __getitem__(self, task: _Task) -> _Result:
        """Decode the rows of a task; errors that a person can act on come back as values, whole."""
        result = _Result()
        items: list[Item] = []
        try:
            draws = zip(task.rows, task.copies, task.places, strict=True)
            # What is drawn in the place of a row must not depend on where a part of the batch begins.
            for (row, first), group in groupby(draws, key=lambda draw: (draw[0], draw[2] - draw[1] % self.together)):
                copies, places = zip(*((copy, place) for _, copy, place in group), strict=True)
                items += self._read(task, row, copies, places, first, result)
        except TriptychError as error:
            return _Result(error=str(error))
        result.batch = collate(items) if items else None
        return result

    def _read(
        self, task: _Task, row: int, copies: tuple[int, ...], places: tuple[int, ...], first: int, result: _Result
    ) -> list[Item]:
        """Return the items of all copies of a row, or of the row that takes its place; ``first`` names the draw."""
        for attempt in range(ATTEMPTS):
            try:
                items = self._decode(row, copies, task.epoch)
            except (TriptychError, OSError) as error:
                items, reason = None, str(error)
            else:
                reason = "it lacks a stream that the views require, or is too short for their windows."
            if items is not None:
                return items
            result.problems.append((row, reason))
            if not task.replace:
                return []
            if attempt == 0:
                result.failed += len(copies)
                copies = tuple(STAND_IN + place for place in places)
            other = torch.randint(
                len(self.rows), (), generator=seeded(self.seed, task.epoch, first, attempt, "instead")
            )
            row = int(other)
        raise TriptychError(f"{ATTEMPTS} rows in turn could not be used; the last, {self.rows.row(row).path}: {reason}")

    def _decode(self, row: int, copies: tuple[int, ...], epoch: int) -> list[Item] | None:
        with self.rows.recording(row) as recording:
            drawn = [
                draw_windows(recording.timeline, self.viewing, seeded(self.seed, epoch, row, copy, "windows"))
                for copy in copies
            ]
            looks, labels = [], []
            for copy, windows in zip(copies, drawn, strict=True):
                if windows is None:
                    return None
                labels.append(windows.labels)
                looks += [
                    Look(spans, view, (self.seed, epoch, row, copy, number))
                    for number, (spans, view) in enumerate(zip(windows.views, self.viewing.views, strict=True))
                ]
            clips = decode(recording, looks, self.viewing, self.tokenizer)
        count = len(self.viewing.views)
        return [
            Item(row, tuple(clips[place * count : (place + 1) * count]), labels[place]) for place in range(len(copies))
        ]


def _unchanged(result: Any) -> Any:
    return result


def _end_with_parent(number: int) -> None:
    """End this worker when the process that it works for is gone, killed even: the fork server would keep it alive."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches all; the parent decides what it means
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _choose_workers(world: int) -> int:
    """Return the decoding processes of one of ``world`` processes on this machine: a core each, at most eight."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", world))))
