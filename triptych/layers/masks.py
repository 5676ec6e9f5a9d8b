"""Which tokens are kept: indices from noise that the caller draws.

A mask is the indices of what is KEPT, everywhere in the package.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

Rounding = Literal["floor", "round"]
"""``floor``: int(tokens * (1 - ratio)), in double precision as in the papers' codes: a ratio of 0.8 keeps 102 of 512
tokens and 111 of 560 (MAE, AudioMAE, MAViL, CAV-MAE). ``round``: the nearest number, 112 of 560 (XKD)."""


def count_kept(tokens: int, ratio: float, rounding: Rounding = "floor") -> int:
    """Return how many of ``tokens`` are kept where the share ``ratio`` is hidden (vision-transformers-common, 4)."""
    share = tokens * (1 - ratio)
    return int(share) if rounding == "floor" else round(share)


def keep_lowest(noise: Float[Tensor, "batch tokens"], count: int) -> Int[Tensor, "batch {count}"]:
    """Return the places of the ``count`` smallest values of each row, in the order of the values."""
    return noise.argsort(dim=1)[:, :count]


def pick(
    x: Shaped[Tensor, "batch tokens width"], keep: Int[Tensor, "batch kept"]
) -> Shaped[Tensor, "batch kept width"]:
    """Return the tokens that are kept, in the order of ``keep``."""
    return x.gather(1, keep[..., None].expand(-1, -1, x.shape[-1]))


def hidden(keep: Int[Tensor, "batch kept"], tokens: int) -> Bool[Tensor, "batch {tokens}"]:
    """Return which of ``tokens`` are not kept."""
    everything = torch.ones(len(keep), tokens, dtype=torch.bool, device=keep.device)
    return everything.scatter(1, keep, False)
