"""In which order the rows of a data set are drawn, and which of them stand in one batch."""

import math

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm

from triptych.data.clips import seeded
from triptych.errors import TriptychError, UsageError
from triptych.media.collection import Rows
from triptych.recipe import BatchSpec, Viewing, Whole


class Order:
    """Rows and batches of each epoch: functions of the seed and the epoch's number."""

    def __init__(
        self, rows: Rows, viewing: Viewing, spec: BatchSpec, seed: int, epoch_rows: int | None, parts: int
    ) -> None:
        """Prepare drawing.

        Args:
            rows: The data set.
            viewing: Says how much of a long row is seen.
            spec: Size and composition of a batch.
            seed: Of all draws.
            epoch_rows: Rows of an epoch; all where None.
            parts: Into how many parts a batch is cut: it has at least so many rows.
        """
        self.rows = rows
        self.viewing = viewing
        self.spec = spec
        self.seed = seed
        self.epoch_rows = epoch_rows or len(rows)
        self.parts = parts
        self._lengths: Tensor | None = None

    def steps(self, order: Int[Tensor, " rows"] | None = None) -> int:
        """Return the number of optimizer steps of an epoch.

        Raises:
            UsageError: If the data set is smaller than one batch.
        """
        spec = self.spec
        if spec.rows is not None:
            draws = (self.epoch_rows if order is None else len(order)) * spec.repeat * spec.together
            steps = draws // spec.rows
            what = f"a batch of {spec.rows} rows is more than the {draws} of an epoch"
        else:
            steps = len(self.batches(self.draws(0, order)[0], epoch=0))
            what = f"there are fewer rows than the {self.parts} parts of a batch"
        if steps == 0:
            raise UsageError(f"The data set has {len(self.rows)} rows: {what}; make the batch smaller.")
        return steps

    def draws(
        self, epoch: int, order: Int[Tensor, " rows"] | None = None
    ) -> tuple[Int[Tensor, " draws"], Int[Tensor, " draws"]]:
        """Return the rows of an epoch in order, and which draw of its row in this epoch each is.

        Args:
            epoch: Its number.
            order: Rows to draw, in order; shuffled (or balanced) where None.
        """
        spec = self.spec
        if order is None:
            order = self._balanced(epoch, spec.balance) if spec.balance else self._shuffled(epoch)
        rows = order.repeat_interleave(spec.repeat * spec.together)
        by_row = rows.sort(stable=True)
        first = torch.searchsorted(by_row.values, by_row.values)
        copies = torch.empty_like(rows)
        copies[by_row.indices] = torch.arange(len(rows)) - first
        return rows, copies

    def _shuffled(self, epoch: int) -> Int[Tensor, " draws"]:
        """Return ``epoch_rows`` rows of the endless chain of shuffles: no row comes twice before all came once."""
        total = len(self.rows)
        if total == 0:
            raise UsageError("The data set has no rows.")
        first, last = epoch * self.epoch_rows, (epoch + 1) * self.epoch_rows
        passes = range(first // total, (last - 1) // total + 1)
        chain = torch.cat([torch.randperm(total, generator=seeded(self.seed, number, "order")) for number in passes])
        start = first - passes[0] * total
        return chain[start : start + self.epoch_rows]

    def _balanced(self, epoch: int, column: str) -> Int[Tensor, " draws"]:
        """Return an epoch in which every value of ``column`` comes equally often (but for rounding), shuffled."""
        generator = seeded(self.seed, epoch, "order")
        groups: dict[str, list[int]] = {}
        for row, value in enumerate(self.rows.column(column)):
            groups.setdefault(value, []).append(row)
        share = -(-self.epoch_rows // len(groups))
        drawn = []
        for value in sorted(groups):
            members = torch.tensor(groups[value])
            rounds = -(-share // len(members))
            drawn.append(
                torch.cat([members[torch.randperm(len(members), generator=generator)] for _ in range(rounds)])[:share]
            )
        mixed = torch.stack(drawn, dim=1)  # each line has every value once
        mixed = torch.cat([line[torch.randperm(len(line), generator=generator)] for line in mixed])
        return mixed[: self.epoch_rows]

    def batches(self, rows: Int[Tensor, " draws"], epoch: int) -> list[Int[Tensor, " places"]]:
        """Return the batches of an epoch as places in its order; an incomplete last one is left out.

        Where a batch has ``seconds``, it holds at most so many in all, of rows of like length, and the batches are
        shuffled. Lengths count in steps of 0.1 s, and only rows of equal length trade places between epochs: all epochs
        have the same number of batches.
        """
        spec = self.spec
        if spec.rows is not None:
            whole = len(rows) // spec.rows
            return list(torch.arange(whole * spec.rows).view(whole, spec.rows))
        assert spec.seconds is not None
        tenths = self._tenths()[rows]
        order = tenths.sort(stable=True).indices  # the epoch's own order decides among equals
        limit, total = round(10 * spec.seconds), 0
        batches: list[Tensor] = []
        current: list[int] = []
        for place, length in zip(order.tolist(), tenths[order].tolist(), strict=True):
            if current and total + length > limit:
                batches.append(torch.tensor(current))
                current, total = [], 0
            current.append(place)
            total += length
        batches.append(torch.tensor(current))
        batches = [batch for batch in batches if len(batch) >= self.parts]
        return [batches[place] for place in torch.randperm(len(batches), generator=seeded(self.seed, epoch, "batches"))]

    def _tenths(self) -> Int[Tensor, " rows"]:
        """Return the length of each row in tenths of a second, rounded up."""
        if self._lengths is None:
            numbers = tqdm(range(len(self.rows)), "measuring rows", delay=2, disable=None)
            self._lengths = torch.tensor([math.ceil(10 * self._seconds(number) - 1e-6) for number in numbers])
        relation = self.viewing.windows
        longest = relation.longest if isinstance(relation, Whole) else relation.seconds
        return self._lengths if longest is None else self._lengths.clamp(max=math.ceil(10 * longest - 1e-6))

    def _seconds(self, number: int) -> float:
        """Return the length of a row as its manifest tells it, else as its file does."""
        row = self.rows.row(number)
        start, end = row.number("start") or 0.0, row.number("end")
        end = row.number("seconds") if end is None else end
        if end is not None:
            return end - start
        try:
            with self.rows.recording(number) as recording:
                return recording.timeline.end - recording.timeline.start
        except TriptychError:  # another row will take its place, of whatever length
            return 0.0
