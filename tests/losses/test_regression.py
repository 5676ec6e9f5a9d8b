"""Masked regression: hand-computed values, and what must not matter."""

import torch

from triptych.losses.regression import masked_regression, normalize_patches


def test_a_patch_is_normed_by_its_unbiased_variance() -> None:
    """Mean 2.5, variance 5/3 of (1, 2, 3, 4)."""
    found = normalize_patches(torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]))
    torch.testing.assert_close(found[0, 0], torch.tensor([-1.161895, -0.387298, 0.387298, 1.161895]))


def test_a_flat_patch_gives_zeros() -> None:
    assert not normalize_patches(torch.full((2, 3, 5), 7.0)).any()


def test_only_hidden_patches_count() -> None:
    prediction, target = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    hidden = torch.tensor([[True, False, True, False], [False, False, False, True]])
    value = masked_regression(prediction, target, hidden)
    by_hand = (prediction[0, [0, 2]] - target[0, [0, 2]]).square().mean()
    torch.testing.assert_close(value[0], by_hand)
    kept = prediction + ~hidden[..., None] * torch.randn(2, 4, 3)
    assert torch.equal(masked_regression(kept, target, hidden), value)
    assert not torch.equal(masked_regression(prediction + 1, target, hidden), value)


def test_a_row_that_hides_nothing_is_zero_and_half_precision_is_widened() -> None:
    half = torch.randn(1, 2, 3).bfloat16()
    value = masked_regression(half, half + 1, torch.zeros(1, 2, dtype=torch.bool))
    assert value.dtype == torch.float32 and value.tolist() == [0.0]
    assert normalize_patches(half).dtype == torch.float32
