"""Teachers follow by their momentum alone, in a mode of their own."""

import pytest
import torch
from torch import nn

from triptych.layers.batch_norm import BatchNorm
from triptych.layers.teacher import Teacher, cosine_momentum


def test_momentum_rises_along_half_a_cosine() -> None:
    """xkd, section 10, check 7."""
    assert cosine_momentum(0.997, 0.0) == pytest.approx(0.997)
    assert cosine_momentum(0.997, 0.5) == pytest.approx(0.9985)
    assert cosine_momentum(0.997, 1.0) == 1.0


def test_a_teacher_moves_by_its_momentum_and_not_at_all_at_one() -> None:
    student = nn.Linear(2, 2)
    teacher = Teacher(student)
    before = teacher.network.weight.clone()
    with torch.no_grad():
        student.weight.add_(1.0)
    teacher.follow(student, 1.0)
    assert torch.equal(teacher.network.weight, before)
    teacher.follow(student, 0.9)
    torch.testing.assert_close(teacher.network.weight, before + 0.1)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize("own", [False, True])
def test_the_mode_is_the_teachers_own(own: bool) -> None:
    method = nn.ModuleDict({"teacher": Teacher(BatchNorm(2), own_statistics=own)})
    norm = method["teacher"].network
    assert norm.training is own
    assert method.train()["teacher"].network.training is own
    norm(torch.randn(8, 2) + 3)
    assert bool(norm.running_mean.any()) is own
    assert not method.eval()["teacher"].network.training


def test_buffers_do_not_follow() -> None:
    student = BatchNorm(2)
    teacher = Teacher(student)
    student(torch.randn(8, 2) + 3)
    teacher.follow(student, 0.5)
    assert not teacher.network.running_mean.any()
