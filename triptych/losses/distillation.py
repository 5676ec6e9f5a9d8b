"""Distillation of a teacher's distribution: pure functions, in float32 at least under any precision."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def sharpen(
    teacher: Float[Tensor, "batch classes"], center: Float[Tensor, " classes"], temperature: float
) -> Float[Tensor, "batch classes"]:
    """Return softmax((teacher - center) / temperature), without gradient."""
    wide = teacher.detach().to(torch.promote_types(teacher.dtype, torch.float32))
    return ((wide - center) / temperature).softmax(dim=-1)


def distillation(
    student: Float[Tensor, "views batch classes"], targets: Float[Tensor, "batch classes"], temperature: float
) -> Float[Tensor, "views batch"]:
    """Return the cross entropy of each view of a student with the targets of its row (DINO's, xkd section 5, item 4).

    Args:
        student: Scores, before softmax.
        targets: Distributions, see ``sharpen``.
        temperature: The student's.
    """
    wide = student.to(torch.promote_types(student.dtype, torch.float32))
    return -(targets * functional.log_softmax(wide / temperature, dim=-1)).sum(dim=-1)
