import math

import pytest
import torch
from torch.nn import functional

from triptych.losses.sequence import ctc, smoothed_cross_entropy


def test_ctc_sums_over_all_alignments() -> None:
    logits = torch.tensor([[[0.6, 0.4]] * 2] * 2).log()
    loss = ctc(logits, torch.tensor([2, 2]), torch.tensor([[1], [1]]), torch.tensor([1, 0]))
    assert loss.tolist() == pytest.approx([-math.log(0.64), -math.log(0.36)], rel=1e-5)


def test_a_clip_too_short_for_its_words_counts_nothing_and_moves_nothing() -> None:
    logits = torch.zeros(3, 4, 3, requires_grad=True)
    targets = torch.tensor([[1, 1, 2], [1, 1, 2], [1, 2, 1]])
    # Three symbols with one equal pair need four steps.
    loss = ctc(logits, torch.tensor([4, 3, 3]), targets, torch.tensor([3, 3, 3]))
    assert loss[0] > 0 and loss[1] == 0 and loss[2] > 0
    loss.sum().backward()
    assert logits.grad is not None
    assert logits.grad[1].abs().sum() == 0 and logits.grad[0].abs().sum() > 0 and logits.grad.isfinite().all()


def test_padding_of_steps_and_words_changes_no_ctc() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 5, 4)
    alone = ctc(logits, torch.tensor([5]), torch.tensor([[1, 3]]), torch.tensor([2]))
    padded = torch.cat([logits, torch.randn(1, 3, 4)], dim=1)
    again = ctc(padded, torch.tensor([5]), torch.tensor([[1, 3, 2, 0]]), torch.tensor([2]))
    assert float(alone) == pytest.approx(float(again), rel=1e-6)


def test_the_blank_may_have_another_place() -> None:
    logits = torch.tensor([[[0.4, 0.6]] * 2]).log()
    loss = ctc(logits, torch.tensor([2]), torch.tensor([[0]]), torch.tensor([1]), blank=1)
    assert float(loss) == pytest.approx(-math.log(0.64), rel=1e-5)


def test_smoothed_labels_by_hand() -> None:
    logits = torch.tensor([[[0.7, 0.2, 0.1]] * 2]).log()
    loss = smoothed_cross_entropy(logits, torch.tensor([[0, 2]]), torch.tensor([1]), smoothing=0.2)
    wanted = -(0.8 * math.log(0.7) + 0.1 * math.log(0.2) + 0.1 * math.log(0.1))
    assert loss[0].tolist() == pytest.approx([wanted, 0.0], rel=1e-5)
    entropy = -(0.8 * math.log(0.8) + 2 * 0.1 * math.log(0.1))
    relative = smoothed_cross_entropy(logits, torch.tensor([[0, 2]]), torch.tensor([1]), smoothing=0.2, relative=True)
    assert relative[0].tolist() == pytest.approx([wanted - entropy, 0.0], rel=1e-5)


def test_without_smoothing_it_is_the_cross_entropy() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 3, 5), torch.randint(5, (2, 3))
    loss = smoothed_cross_entropy(logits, targets, torch.tensor([3, 3]), smoothing=0.0, relative=True)
    torch.testing.assert_close(loss, functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none"))
