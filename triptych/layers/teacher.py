"""Teachers: copies of a network that no gradient reaches and that follow it slowly, or not at all."""

import copy
import math
from typing import Generic, TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


class Teacher(nn.Module, Generic[Network]):
    """A copy of a network, without gradient, whose mode and buffers are its own.

    Whoever trains the method that holds it does not train the teacher: it stays in evaluation mode, unless it is to use
    (and move) its own batch statistics.
    """

    network: Network

    def __init__(self, student: Network, own_statistics: bool = False) -> None:
        """Copy the student as it is.

        Args:
            student: The network to follow.
            own_statistics: In training, be in training mode, too, so that batch norms take the moments of what the
                teacher sees.
        """
        super().__init__()
        self.own_statistics = own_statistics
        self.network = copy.deepcopy(student).requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "Teacher[Network]":
        """Set the mode that the teacher is to have when its method is in ``mode``."""
        super().train(mode and self.own_statistics)
        return self

    @torch.no_grad()
    def follow(self, student: nn.Module, momentum: float) -> None:
        """Move every parameter: teacher <- momentum * teacher + (1 - momentum) * student. Buffers stay as they are."""
        for mine, theirs in zip(self.network.parameters(), student.parameters(), strict=True):
            mine.lerp_(theirs, 1 - momentum)


def cosine_momentum(start: float, progress: float, end: float = 1.0) -> float:
    """Return the momentum of a teacher that rises from ``start`` to ``end`` along half a cosine (BYOL, DINO, XKD)."""
    return end - (end - start) * (1 + math.cos(math.pi * progress)) / 2
