"""Channels moved along time, by the hand values of convnets-common, section 7."""

import torch

from triptych.layers.temporal_shift import shift_channels


def _clip() -> torch.Tensor:
    """Return x[t, c] = 10 t + c, of three frames and eight channels."""
    return (10 * torch.arange(3)[None, :, None] + torch.arange(8)[:, None, None]).float().unsqueeze(-1)[None]


def test_mits_convention() -> None:
    found = shift_channels(_clip())[0, :, :, 0, 0].T
    assert found.tolist() == [
        [10, 0, 2, 3, 4, 5, 6, 7],
        [20, 1, 12, 13, 14, 15, 16, 17],
        [0, 11, 22, 23, 24, 25, 26, 27],
    ]


def test_deepminds_convention_swaps_the_ends() -> None:
    found = shift_channels(_clip(), "deepmind")[0, :, :, 0, 0].T
    assert found.tolist() == [
        [17, 1, 2, 3, 4, 5, 6, 0],
        [27, 11, 12, 13, 14, 15, 16, 0],
        [0, 21, 22, 23, 24, 25, 26, 10],
    ]
