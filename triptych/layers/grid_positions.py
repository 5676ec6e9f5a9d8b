"""One position vector for each place of a grid of tokens, brought to grids of other sizes by interpolation."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from triptych.layers.positions import sincos_2d, sincos_3d

Grid = tuple[int, int, int]
"""Tokens along time, height (mels, for spectrograms) and width, in which order they stand; 1 where there is no axis."""

PositionKind = Literal["learned", "separable", "sincos"]
"""One learned row a place; a learned row a time step plus one a place in space (mae_st); a fixed table (MAE)."""

Resampling = Literal["linear", "cubic", "flat"]
"""How a table is brought to another grid: along each axis whose size differs, linearly or by cubic convolution; or
linearly along the flat sequence of all rows, that of the class token among them (LAVISH)."""


class GridPositions(nn.Module):
    """A table of positions; the row of a class token, if there is one, comes first."""

    table: Tensor

    def __init__(
        self,
        grid: Grid,
        width: int,
        kind: PositionKind = "learned",
        first: bool = True,
        resampling: Resampling = "cubic",
        margin: float = 0.0,
    ) -> None:
        """Build the table.

        Args:
            grid: That the table is made for.
            width: Of the vectors.
            kind: What it is made of; learned rows are drawn from a normal distribution of deviation 0.02, cut off.
            first: Whether there is a row for a class token.
            resampling: For other grids.
            margin: The resampler is told the factor (new + margin) / old and maps coordinates by it; 0.1 in codes that
                guard a rounding so (DINO, XKD). 0: by the sizes.
        """
        super().__init__()
        self.grid = grid
        self.first = first
        self.separable = kind == "separable"
        self.resampling = resampling
        self.margin = margin
        frames, height, across = grid
        if kind == "sincos":
            self.register_buffer("table", fixed_table(grid, width, first))
        elif kind == "learned":
            self.table = _learned(first + frames * height * across, width)
        else:
            self.time = _learned(frames, width)
            self.space = _learned(height * across, width)
            if first:
                self.token = _learned(1, width)

    def forward(self, grid: Grid | None = None) -> Float[Tensor, "rows width"]:
        """Return the rows for ``grid`` (the table's own where None), after that of the class token."""
        table = self._sums() if self.separable else self.table
        if grid is None or grid == self.grid:
            return table
        if self.resampling == "flat":
            count = self.first + grid[0] * grid[1] * grid[2]
            return functional.interpolate(table.T[None], count, mode="linear")[0].T
        rows = resample(table[self.first :], self.grid, grid, self.resampling, self.margin)
        return torch.cat([table[: self.first], rows])

    def _sums(self) -> Float[Tensor, "rows width"]:
        places = (self.time[:, None] + self.space).flatten(0, 1)
        return torch.cat([self.token, places]) if self.first else places


def resample(
    table: Float[Tensor, "tokens width"],
    grid: Grid,
    new: Grid,
    resampling: Literal["linear", "cubic"],
    margin: float = 0.0,
) -> Float[Tensor, "new_tokens width"]:
    """Return a table of ``grid`` at the places of ``new``, corners not aligned; arguments as of ``GridPositions``.

    The kernels are products of one an axis, so that the axes are resampled one after another.
    """
    mode = {"linear": "bilinear", "cubic": "bicubic"}[resampling]
    x = table.unflatten(0, grid)
    for axis, (old, size) in enumerate(zip(grid, new, strict=True)):
        if size == old:
            continue
        moved = x.movedim(axis, -1)
        line = moved.reshape(1, -1, 1, old)
        scale = {"scale_factor": (1.0, (size + margin) / old)} if margin else {"size": (1, size)}
        line = functional.interpolate(line, mode=mode, align_corners=False, **scale)
        x = line.reshape(*moved.shape[:-1], size).movedim(-1, axis)
    return x.flatten(0, 2)


def fixed_table(grid: Grid, width: int, first: bool) -> Float[Tensor, "rows width"]:
    """Return sines and cosines of three axes, or of two where one has a single place (an image, a spectrogram)."""
    if 1 not in grid:
        return sincos_3d(*grid, width, first)
    axes = list(grid)
    axes.remove(1)
    return sincos_2d(axes[0], axes[1], width, first)


def _learned(rows: int, width: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(rows, width), std=0.02))
