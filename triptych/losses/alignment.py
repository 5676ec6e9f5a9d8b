"""Alignment of distributions: pure functions, in float32 at least under any precision."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

BANDWIDTHS = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
"""Factors g of the kernels exp(-g d^2) of XKD (xkd, section 5, item 5)."""
SMALLEST = 1e-30
"""Squared distances are not below it."""


def mmd(
    x: Float[Tensor, "rows dim"],
    y: Float[Tensor, "columns dim"],
    x_valid: Bool[Tensor, " rows"] | None = None,
    y_valid: Bool[Tensor, " columns"] | None = None,
    bandwidths: Sequence[float] = BANDWIDTHS,
) -> Float[Tensor, ""]:
    """Return the maximum mean discrepancy of two sets of vectors: mean k(x, x) + mean k(y, y) - 2 mean k(x, y).

    The kernel k is the sum of exp(-g d^2) over all bandwidths g. Diagonals are in the means (the biased estimator), so
    that unlike vectors give some 2 * len(bandwidths) / rows. Distances are formed in float64: rounding on the diagonal,
    where they are 0, would show through the sharpest kernel.

    Args:
        x: One set.
        y: The other.
        x_valid: Rows of ``x`` that count; all where None.
        y_valid: Rows of ``y`` that count; all where None.
        bandwidths: Factors on squared distances.

    Returns:
        At least 0, but for rounding; 0 where nothing counts.

    Source: xkd section 5, item 5.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    x_share, y_share = _shares(x, x_valid), _shares(y, y_valid)

    def mean(a: Tensor, b: Tensor, a_share: Tensor, b_share: Tensor) -> Tensor:
        return a_share @ _kernel(a.double(), b.double(), bandwidths) @ b_share

    value = mean(x, x, x_share, x_share) + mean(y, y, y_share, y_share) - 2 * mean(x, y, x_share, y_share)
    return value.to(wide)


def _shares(x: Float[Tensor, "rows dim"], valid: Bool[Tensor, " rows"] | None) -> Float[Tensor, " rows"]:
    counted = x.new_ones(len(x), dtype=torch.float64) if valid is None else valid.double()
    return counted / counted.sum().clamp(min=1)


def _kernel(
    x: Float[Tensor, "rows dim"], y: Float[Tensor, "columns dim"], bandwidths: Sequence[float]
) -> Float[Tensor, "rows columns"]:
    squares = x.square().sum(dim=1)[:, None] + y.square().sum(dim=1) - 2 * x @ y.T
    squares = squares.clamp(min=SMALLEST)
    return torch.stack([torch.exp(-factor * squares) for factor in bandwidths]).sum(dim=0)
