"""Some channels of a map moved along time: how networks of images see motion (TSM, Lin et al. 2019)."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

Convention = Literal["mit", "deepmind"]
"""Whose order of channels; weights of one do not fit the other."""


def shift_channels(
    x: Float[Tensor, "batch channels frames height width"], convention: Convention = "mit", share: int = 8
) -> Float[Tensor, "batch channels frames height width"]:
    """Return the map with channels of the frame after and of the frame before, zeros beyond the ends.

    ``mit``: the first 1 / ``share`` of the channels come from the frame after, as many next ones from the frame before.
    ``deepmind`` (MMV, BraVe): the last ones come from the frame after and are put first, the first ones come from the
    frame before and are put last (convnets-common, section 7).
    """
    count = x.shape[1] // share
    if convention == "mit":
        after, before, rest = x[:, :count], x[:, count : 2 * count], x[:, 2 * count :]
        return torch.cat([_from_after(after), _from_before(before), rest], dim=1)
    before, rest, after = x[:, :count], x[:, count : x.shape[1] - count], x[:, x.shape[1] - count :]
    return torch.cat([_from_after(after), rest, _from_before(before)], dim=1)


def _from_after(x: Tensor) -> Tensor:
    return functional.pad(x[:, :, 1:], (0, 0, 0, 0, 0, 1))


def _from_before(x: Tensor) -> Tensor:
    return functional.pad(x[:, :, :-1], (0, 0, 0, 0, 1, 0))
