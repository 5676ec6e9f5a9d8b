import math

import pytest
import torch

from triptych.losses.classification import (
    binary_cross_entropy,
    binary_of_softmax,
    inverse_frequency,
    right,
    smooth,
    soft_cross_entropy,
    spread,
)


def test_by_hand() -> None:
    # p = (0.75, 0.25): -(ln 0.75 + ln 0.75) / 2 for the first class, -(ln 0.25 + ln 0.25) / 2 for the second.
    scores = torch.tensor([[math.log(3.0), 0.0], [math.log(3.0), 0.0]], requires_grad=True)
    found = binary_of_softmax(scores, torch.tensor([0, 1]))
    assert found.tolist() == pytest.approx([-math.log(0.75), -math.log(0.25)])
    three = binary_of_softmax(torch.zeros(1, 3), torch.tensor([1]))
    assert three.tolist() == pytest.approx([-(math.log(1 / 3) + 2 * math.log(2 / 3)) / 3])


def test_certain_scores_have_finite_gradients() -> None:
    scores = torch.tensor([[200.0, -200.0]], requires_grad=True)
    binary_of_softmax(scores, torch.tensor([1])).sum().backward()
    assert scores.grad is not None and scores.grad.isfinite().all()


def test_float32_under_any_precision() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert binary_of_softmax(torch.zeros(2, 3, dtype=torch.bfloat16), torch.tensor([0, 1])).dtype == torch.float32


def test_labels_are_spread_smoothed_and_compared_by_hand() -> None:
    shares, known = spread(torch.tensor([1, -100, 0]), 3)
    assert shares.tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 0]] and known.tolist() == [True, False, True]
    mixed, known = spread(torch.tensor([[0.25, 0.75], [math.nan, math.nan]]), 2)
    assert mixed.tolist() == [[0.25, 0.75], [0, 0]] and known.tolist() == [True, False]
    assert smooth(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), 0.1).tolist() == [pytest.approx([0.925, 0.025, 0.025, 0.025])]
    assert smooth(torch.tensor([[1.0, 0.0, 1.0]]), 0.1, several=True).tolist() == [pytest.approx([0.95, 0.05, 0.95])]
    scores = torch.tensor([[0.0, math.log(3.0)], [0.0, math.log(3.0)]])  # p = (0.25, 0.75)
    found = soft_cross_entropy(scores, torch.tensor([[0.25, 0.75], [1.0, 0.0]]))
    assert found.tolist() == pytest.approx([-0.25 * math.log(0.25) - 0.75 * math.log(0.75), math.log(4.0)])
    binary = binary_cross_entropy(torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([[1.0, 0.0]]))
    assert binary.tolist() == [pytest.approx([math.log(2.0), math.log(4.0)])]


def test_rare_classes_weigh_more() -> None:
    targets = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    assert inverse_frequency(targets, targets.sum(dim=0)).tolist() == pytest.approx([1 / 2, (1 / 2 + 1) / 2, 0.0])


def test_a_mixed_row_is_right_by_its_larger_share() -> None:
    scores, targets = torch.tensor([[2.0, 1.0], [2.0, 1.0]]), torch.tensor([[0.6, 0.4], [0.4, 0.6]])
    assert right(scores, targets).tolist() == [1, 0]
