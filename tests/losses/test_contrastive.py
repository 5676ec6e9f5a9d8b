"""Contrastive losses: the hand-computed cases and the checks of the specification (contrastive-common, 3 and 7)."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from triptych.losses.contrastive import info_nce, mil_nce, products

E = math.e
I2 = torch.eye(2)
ONE = I2[:, None]
TWO = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]])


def _vatt(x: Tensor, y: Tensor, mask: Tensor | None = None, symmetric: bool = False) -> Tensor:
    """Return the mean over the valid rows of this device, of normalised vectors at a temperature of 1."""
    valid = torch.ones(len(x)) if mask is None else mask
    x, y = functional.normalize(x, dim=-1), functional.normalize(y, dim=-1)
    each = mil_nce(x, y, key_valid=valid.bool()[:, None].expand(y.shape[:2]), symmetric=symmetric)
    return (each * valid).sum() / valid.sum().clamp(min=1)


@pytest.mark.parametrize(
    ("y", "mask", "symmetric", "value"),
    [
        (ONE, None, True, 2 * math.log(1 + 1 / E)),
        (ONE, None, False, math.log(2) + math.log(1 + 1 / E)),
        (ONE, [1.0, 0.0], False, math.log(2 * E + 1) - 1),
        (ONE, [1.0, 0.0], True, math.log(E + 1) - 1),
        (ONE, [0.0, 0.0], False, 0.0),
        (ONE, [0.0, 0.0], True, 0.0),
        (TWO, None, False, 2 * math.log(2)),
        (TWO, None, True, 2 * math.log(2)),
    ],
)
def test_the_cases_of_vatt(y: Tensor, mask: list[float] | None, symmetric: bool, value: float) -> None:
    x, y = I2.clone().requires_grad_(), y.clone().requires_grad_()
    loss = _vatt(x, y, None if mask is None else torch.tensor(mask), symmetric)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(value, abs=1e-6)
    assert x.grad is not None and y.grad is not None and x.grad.isfinite().all() and y.grad.isfinite().all()


def test_the_case_of_mil_nce() -> None:
    y = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [1.0, 1.0]]])
    value = (math.log(3 * E + 5) - math.log(E + 1) + math.log(5 * E + 3) - 1 - math.log(2)) / 2
    assert value == pytest.approx(1.189633, abs=1e-6)
    assert float(mil_nce(I2, y).mean()) == pytest.approx(value, abs=1e-6)


def test_the_case_of_clip() -> None:
    both = (info_nce(I2, I2, 1.0).mean() + info_nce(I2, I2, 1.0).mean()) / 2
    assert float(both) == pytest.approx(0.313262, abs=1e-6)


def _some(rows: int = 5, candidates: int = 3) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(rows, 4), torch.randn(rows, candidates, 4)


@pytest.mark.parametrize("symmetric", [False, True])
def test_order_and_size_do_not_count(symmetric: bool) -> None:
    x, y = _some()
    order = torch.tensor([3, 0, 4, 1, 2])
    plain = mil_nce(x, y, symmetric=symmetric).mean()
    torch.testing.assert_close(mil_nce(x[order], y[order], symmetric=symmetric).mean(), plain)
    torch.testing.assert_close(mil_nce(x, y[:, [2, 0, 1]], symmetric=symmetric).mean(), plain)
    torch.testing.assert_close(_vatt(10 * x, y, symmetric=symmetric), _vatt(x, y, symmetric=symmetric))
    assert not torch.allclose(mil_nce(10 * x, y, symmetric=symmetric).mean(), plain)


@pytest.mark.parametrize("symmetric", [False, True])
def test_copies_of_one_caption_count_as_one(symmetric: bool) -> None:
    x, y = _some(candidates=1)
    several = mil_nce(x, y.expand(-1, 4, -1), symmetric=symmetric)
    torch.testing.assert_close(several, mil_nce(x, y, symmetric=symmetric))


def test_the_joint_denominator_leaves_log_2_and_two_do_not() -> None:
    far = 8 * torch.eye(3)
    assert mil_nce(far, far[:, None]).tolist() == pytest.approx([math.log(2)] * 3, abs=1e-5)
    assert mil_nce(far, far[:, None], symmetric=True).tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    assert (mil_nce(*_some(candidates=1)) >= math.log(2)).all()
    assert float(mil_nce(I2[:1], I2[:1, None])) == pytest.approx(math.log(2))


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_masked_text_gets_no_gradient_but_its_video_does(symmetric: bool) -> None:
    x, y = (each.requires_grad_() for each in _some())
    _vatt(x, y, torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0]), symmetric).backward()
    assert x.grad is not None and y.grad is not None
    assert not y.grad[[1, 4]].any() and y.grad[[0, 2, 3]].any()
    assert x.grad[[1, 4]].any()


@pytest.mark.parametrize("symmetric", [False, True])
def test_candidates_that_do_not_count_are_as_if_they_were_not_there(symmetric: bool) -> None:
    x, y = _some()
    valid = torch.tensor([[True, True, False]]).expand(5, 3)
    torch.testing.assert_close(
        mil_nce(x, y, key_valid=valid, symmetric=symmetric), mil_nce(x, y[:, :2], symmetric=symmetric)
    )
    there = torch.tensor([True, True, True, False, True])
    found = mil_nce(x, y, query_valid=there, key_valid=there[:, None].expand(5, 3), symmetric=symmetric)
    torch.testing.assert_close(found[there], mil_nce(x[there], y[there], symmetric=symmetric))


@pytest.mark.parametrize("symmetric", [False, True])
def test_anchors_see_all_rows(symmetric: bool) -> None:
    x, y = _some()
    whole = mil_nce(x, y, 2.0, symmetric=symmetric)
    torch.testing.assert_close(mil_nce(x, y, 2.0, anchors=slice(1, 4), symmetric=symmetric), whole[1:4])


def test_half_precision_goes_in_and_single_precision_is_computed() -> None:
    x, y = (functional.normalize(each, dim=-1) for each in _some())
    x, y = x.bfloat16(), y.bfloat16()
    wide = mil_nce(x.float(), y.float(), 20.0)
    with torch.autocast("cpu", torch.bfloat16):
        found = mil_nce(x, y, 20.0)
        assert products(x.float(), x.float()).dtype == torch.float32
        torch.testing.assert_close(info_nce(x, y[:, 0], 20.0), info_nce(x.float(), y[:, 0].float(), 20.0))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wide)
