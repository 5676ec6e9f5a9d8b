"""Cosines of guesses and classes, and the cross entropy of the steps that count."""

import math

import torch

from triptych.losses.masked import cosine_logits, masked_cross_entropy


def test_logits_lie_within_the_temperature_and_do_not_know_lengths() -> None:
    torch.manual_seed(0)
    x, classes = torch.randn(2, 5, 8), torch.rand(12, 8)
    logits = cosine_logits(x, classes, 0.1)
    assert logits.shape == (2, 5, 12) and logits.abs().max() <= 10
    torch.testing.assert_close(cosine_logits(7 * x, classes, 0.1), logits, atol=1e-5, rtol=0)


def test_a_vector_of_no_length_is_like_no_class() -> None:
    logits = cosine_logits(torch.zeros(1, 4), torch.rand(3, 4))
    assert torch.equal(logits, torch.zeros(1, 3))


def test_cosine_by_hand() -> None:
    logits = cosine_logits(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, -2.0]]), temperature=0.5)
    torch.testing.assert_close(logits, torch.tensor([[1.2, -1.6]]))


def test_cross_entropy_by_hand() -> None:
    logits = torch.zeros(1, 3, 4)
    logits[0, 1, 2] = math.log(5)  # 5 / 8
    targets, counted = torch.tensor([[0, 2, -1]]), torch.tensor([[True, True, False]])
    each = masked_cross_entropy(logits, targets, counted)
    torch.testing.assert_close(each, torch.tensor([[math.log(4), math.log(8 / 5), 0.0]]))


def test_half_precision_makes_the_same_loss() -> None:
    torch.manual_seed(0)
    x, classes = torch.randn(2, 5, 8).bfloat16(), torch.rand(12, 8)
    with torch.autocast("cpu", torch.bfloat16):
        logits = cosine_logits(x, classes)
        loss = masked_cross_entropy(logits, torch.zeros(2, 5, dtype=torch.long), torch.ones(2, 5, dtype=torch.bool))
    assert logits.dtype == loss.dtype == torch.float32
    torch.testing.assert_close(logits, cosine_logits(x.float(), classes))
