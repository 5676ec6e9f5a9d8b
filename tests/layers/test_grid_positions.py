"""Position tables on other grids."""

import pytest
import torch
from torch.nn import functional

from triptych.layers.grid_positions import GridPositions, fixed_table, resample


@pytest.mark.parametrize("margin", [0.0, 0.1])
def test_linear_is_torchs_trilinear(margin: float) -> None:
    table, new = torch.randn(4 * 3 * 5, 6), (2, 4, 5)
    maps = table.view(4, 3, 5, 6).permute(3, 0, 1, 2)[None]
    # An axis that keeps its size is not touched, and its factor in torch's resampler is 1.
    factors = (2.1 / 4, 4.1 / 3, 1.0) if margin else (2 / 4, 4 / 3, 1.0)
    wanted = functional.interpolate(maps, scale_factor=factors, mode="trilinear")
    found = resample(table, (4, 3, 5), new, "linear", margin)
    torch.testing.assert_close(found, wanted[0].permute(1, 2, 3, 0).flatten(0, 2))


@pytest.mark.parametrize("margin", [0.0, 0.1])
def test_cubic_is_torchs_bicubic(margin: float) -> None:
    table = torch.randn(7 * 5, 6)
    maps = table.view(7, 5, 6).permute(2, 0, 1)[None]
    scale = {"scale_factor": (4.1 / 7, 9.1 / 5)} if margin else {"size": (4, 9)}
    wanted = functional.interpolate(maps, mode="bicubic", align_corners=False, **scale)
    found = resample(table, (7, 5, 1), (4, 9, 1), "cubic", margin)
    torch.testing.assert_close(found, wanted[0].permute(1, 2, 0).flatten(0, 1), atol=1e-5, rtol=1e-5)


def test_the_class_tokens_row_stays_unless_the_sequence_is_flat() -> None:
    kept = GridPositions((1, 4, 4), 8)
    assert torch.equal(kept((1, 2, 2))[0], kept()[0])
    flat = GridPositions((1, 4, 4), 8, resampling="flat")
    wanted = functional.interpolate(flat.table.T[None], size=5, mode="linear", align_corners=False)[0].T
    torch.testing.assert_close(flat((1, 2, 2)), wanted)


def test_separable_rows_are_sums() -> None:
    table = GridPositions((2, 1, 3), 4, "separable")
    torch.testing.assert_close(table()[1 + 1 * 3 + 2], table.time[1] + table.space[2])
    torch.testing.assert_close(table()[0], table.token[0])


def test_fixed_tables_hold_the_worked_values_and_are_not_trained() -> None:
    """vision-transformers-common, section 3: 2-D, D = 8, row 1, column 2."""
    wanted = torch.tensor([0.909297, 0.019999, -0.416147, 0.999800, 0.841471, 0.010000, 0.540302, 0.999950])
    for grid in ((1, 3, 4), (3, 4, 1)):  # an image; a spectrogram, whose rows are steps of time
        found = fixed_table(grid, 8, first=True)
        torch.testing.assert_close(found[1 + 1 * 4 + 2], wanted, atol=1e-6, rtol=0)
        assert not found[0].any()
    assert not list(GridPositions((2, 3, 3), 32, "sincos").parameters())
