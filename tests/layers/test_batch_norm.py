"""Our batch norm in one process is torch's; in two it is tested with the methods (``tests/test_two_processes.py``)."""

import torch
from torch import nn

from triptych.layers.batch_norm import BatchNorm


def test_it_is_torchs_in_training_in_evaluation_and_in_its_gradients() -> None:
    torch.manual_seed(0)
    ours, theirs = BatchNorm(5), nn.BatchNorm1d(5)
    theirs.load_state_dict(ours.state_dict())
    for _ in range(3):
        x = 40 + 3 * torch.randn(16, 5)
        found, wanted = x.clone().requires_grad_(), x.clone().requires_grad_()
        ours(found).sin().sum().backward()
        theirs(wanted).sin().sum().backward()
        assert found.grad is not None and wanted.grad is not None
        torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-4, atol=1e-5)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, msg=name)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_channels_are_last_and_all_other_axes_are_one() -> None:
    x = torch.randn(4, 3, 6)
    torch.testing.assert_close(BatchNorm(6)(x).flatten(0, 1), BatchNorm(6)(x.flatten(0, 1)))


def test_a_large_mean_does_not_eat_the_variance() -> None:
    x = 1000 + 0.01 * torch.randn(256, 1, dtype=torch.float64)
    normal = BatchNorm(1, eps=1e-12)(x.float())
    assert abs(float(normal.detach().std(correction=0)) - 1) < 1e-2


def test_the_dtype_comes_back_and_a_single_row_is_zero() -> None:
    layer = BatchNorm(3)
    assert layer(torch.randn(8, 3).bfloat16()).dtype == torch.bfloat16
    assert torch.equal(layer(torch.randn(1, 3)), torch.zeros(1, 3))
    assert layer.running_var.isfinite().all()
