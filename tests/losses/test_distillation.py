"""Cross entropy with a sharpened teacher: the specification's value (xkd, section 10, check 2)."""

import pytest
import torch

from triptych.losses.distillation import distillation, sharpen

CENTER = torch.tensor([0.1, 0.0, 0.0, -0.1])
STUDENT = torch.tensor([[1.0, 0, 0, 0], [0, 2, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 1, 0]])
TEACHER = torch.tensor([[0.2, 0, 0, 0], [0, 0.3, 0, 0]])


def test_value_computed_by_hand() -> None:
    each = distillation(STUDENT.view(2, 2, 4), sharpen(TEACHER, CENTER, 0.07), 0.1)
    assert each.shape == (2, 2)
    assert float(each.mean()) == pytest.approx(5.106312, abs=1e-6)


def test_no_gradient_reaches_the_teacher_and_half_precision_is_widened() -> None:
    teacher, student = TEACHER.bfloat16().requires_grad_(), STUDENT.view(2, 2, 4).bfloat16().requires_grad_()
    value = distillation(student, sharpen(teacher, CENTER, 0.07), 0.1)
    assert value.dtype == torch.float32
    value.sum().backward()
    assert teacher.grad is None and student.grad is not None and student.grad.any()
