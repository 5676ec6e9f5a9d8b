import math

import pytest
import torch

from triptych.losses.classification import binary_of_softmax


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
