"""Losses of classes."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional


def binary_of_softmax(scores: Float[Tensor, "rows classes"], labels: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """Return the binary cross entropy of softmax probabilities against one-hot labels, its mean over classes.

    Not the cross entropy of the label: every other class is pushed down by a term of its own (LAVISH on AVE).

    Args:
        scores: Before the softmax.
        labels: Class of each row.
    """
    with torch.autocast(scores.device.type, enabled=False):
        probabilities = scores.float().softmax(dim=-1)
        wanted = functional.one_hot(labels, scores.shape[-1]).float()
        return functional.binary_cross_entropy(probabilities, wanted, reduction="none").mean(dim=-1)
