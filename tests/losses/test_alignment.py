"""Maximum mean discrepancy: the specification's values (xkd, section 10, check 1), masks, gradients."""

import pytest
import torch

from triptych.losses.alignment import mmd

X = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
Y = torch.tensor([[0.0, 1.0], [1.0, 1.0]])


def test_values_computed_by_hand() -> None:
    assert float(mmd(X, Y)) == pytest.approx(4.067733, abs=1e-6)
    assert float(mmd(X, X)) == pytest.approx(0.0, abs=1e-6)
    assert float(mmd(X, Y + 100)) == pytest.approx(10.261812, abs=1e-6)


def test_far_vectors_give_their_diagonals() -> None:
    """xkd, trap 8: 2 * 7 / n, also of vectors whose squared norm is 8192."""
    x = torch.nn.functional.layer_norm(torch.randn(16, 8192, generator=torch.Generator().manual_seed(0)), (8192,))
    assert float(mmd(x[:8], x[8:])) == pytest.approx(2 * 7 / 8, abs=1e-3)


def test_rows_that_do_not_count_are_not_there() -> None:
    x, y = torch.randn(5, 3), torch.randn(4, 3)
    x_valid, y_valid = torch.tensor([True, False, True, True, False]), torch.tensor([False, True, True, False])
    torch.testing.assert_close(mmd(x, y, x_valid, y_valid), mmd(x[x_valid], y[y_valid]))
    assert float(mmd(x, y, torch.zeros(5, dtype=torch.bool), torch.zeros(4, dtype=torch.bool))) == 0


def test_gradients_reach_both_sets_and_stay_finite_on_the_diagonal() -> None:
    x, y = X.clone().requires_grad_(), Y.clone().requires_grad_()
    mmd(x, y).backward()
    for vectors in (x, y):
        assert vectors.grad is not None and vectors.grad.isfinite().all() and vectors.grad.any()


def test_half_precision_is_widened() -> None:
    assert mmd(X.bfloat16(), Y.bfloat16()).dtype == torch.float32
