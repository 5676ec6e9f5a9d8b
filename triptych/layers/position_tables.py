"""Learned tables of positions, one an axis, that are resampled by a cubic spline where a signal has other sizes."""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn


def resample(table: Float[Tensor, "positions width"], count: int) -> Float[Tensor, "{count} width"]:
    """Return the table at ``count`` positions over the same stretch.

    The natural cubic spline through ``(i / n, table[i])`` is read at ``j / count``, and goes on in a straight line past
    the last row (vatt, section 4). As many positions as there are rows give the table itself.
    """
    if len(table) == count:
        return table
    return spline_matrix(len(table), count).to(table) @ table


@lru_cache(maxsize=64)
def spline_matrix(rows: int, count: int) -> Float64[Tensor, "{count} {rows}"]:
    """Return the linear map from the values of a natural cubic spline at ``i / rows`` to those at ``j / count``.

    In float64: the second derivatives ``m`` solve ``m[i-1] + 4 m[i] + m[i+1] = 6 (y[i-1] - 2 y[i] + y[i+1])``, in units
    of the distance between rows, with ``m = 0`` at both ends.
    """
    values = torch.eye(rows, dtype=torch.float64)
    curvature = torch.zeros(rows, rows, dtype=torch.float64)
    if rows > 2:
        inner = rows - 2
        system = 4 * torch.eye(inner, dtype=torch.float64)
        system += torch.diag(torch.ones(inner - 1, dtype=torch.float64), 1)
        system += torch.diag(torch.ones(inner - 1, dtype=torch.float64), -1)
        curvature[1:-1] = torch.linalg.solve(system, 6 * (values[:-2] - 2 * values[1:-1] + values[2:]))
    if rows == 1:
        return values.expand(count, 1)
    at = torch.arange(count, dtype=torch.float64) * rows / count
    left = at.floor().long().clamp(max=rows - 2)
    after = (at - left)[:, None]
    before = 1 - after
    straight = before * values[left] + after * values[left + 1]
    bent = (before**3 - before) * curvature[left] + (after**3 - after) * curvature[left + 1]
    slope = values[-1] - values[-2] + curvature[-2] / 6  # at the last row, where the curvature is 0
    beyond = values[-1] + (at[:, None] - (rows - 1)) * slope
    return torch.where(at[:, None] > rows - 1, beyond, straight + bent / 6)


class PositionTables(nn.Module):
    """The sum of one table an axis, layer-normed."""

    def __init__(self, buckets: Mapping[str, int], width: int, eps: float = 1e-6) -> None:
        """Build the tables: truncated normal of a deviation of ``width ** -0.5``.

        Args:
            buckets: Positions by name of the axis, in the order of the tokens.
            width: Width of a token.
            eps: Of the layer norm.
        """
        super().__init__()
        self.axes = tuple(buckets)
        self.tables = nn.ParameterDict({axis: torch.empty(count, width) for axis, count in buckets.items()})
        for table in self.tables.values():
            nn.init.trunc_normal_(table, std=width**-0.5, a=-2 * width**-0.5, b=2 * width**-0.5)
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, sizes: Sequence[int]) -> Float[Tensor, "tokens width"]:
        """Return a vector for each place of a grid of ``sizes``, the last axis running fastest."""
        total: Tensor | None = None
        for number, (axis, size) in enumerate(zip(self.axes, sizes, strict=True)):
            shape = [1] * len(sizes) + [-1]
            shape[number] = size
            part = resample(self.tables[axis], size).view(shape)
            total = part if total is None else total + part
        normed: Tensor = self.norm(total)
        return normed.flatten(0, -2)
