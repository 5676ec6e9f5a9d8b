"""Fixed sine and cosine tables of positions (vision-transformers-common, section 3); computed in float64."""

import torch
from jaxtyping import Float
from torch import Tensor


def sincos_1d(positions: Float[Tensor, " tokens"], width: int) -> Float[Tensor, "tokens width"]:
    """Return sines, then cosines, of p * 10000^(-k / (width/2)), k from 0 to width/2 - 1.

    Raises:
        ValueError: If ``width`` is odd.
    """
    if width % 2:
        raise ValueError(f"a sine and cosine table needs an even width, not {width}")
    omega = 10_000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angles = positions.double()[:, None] * omega
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def sincos_2d(rows: int, columns: int, width: int, first: bool = False) -> Float[Tensor, "tokens width"]:
    """Return the table of a grid, row by row: the COLUMN fills the first half of the width, the row the second.

    Args:
        rows: Height (time, for spectrograms).
        columns: Width (mels).
        width: Divisible by 4.
        first: Whether a row of zeros for a class token comes first.
    """
    row = torch.arange(rows, dtype=torch.float32).repeat_interleave(columns)
    column = torch.arange(columns, dtype=torch.float32).repeat(rows)
    table = torch.cat([sincos_1d(column, width // 2), sincos_1d(row, width // 2)], dim=1)
    return _with_first(table, first)


def sincos_3d(frames: int, rows: int, columns: int, width: int, first: bool = False) -> Float[Tensor, "tokens width"]:
    """Return the table of a grid in the order time, row, column: a quarter of the width for time, the rest 2-D.

    Args:
        frames: Steps of time.
        rows: Height.
        columns: Width.
        width: Divisible by 16.
        first: Whether a row of zeros for a class token comes first.
    """
    time = torch.arange(frames, dtype=torch.float32).repeat_interleave(rows * columns)
    place = sincos_2d(rows, columns, 3 * width // 4).repeat(frames, 1)
    return _with_first(torch.cat([sincos_1d(time, width // 4), place], dim=1), first)


def _with_first(table: Tensor, first: bool) -> Tensor:
    return torch.cat([torch.zeros(1, table.shape[1]), table]) if first else table
