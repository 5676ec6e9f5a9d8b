"""Losses of class scores against labels, which may be soft: smoothed, mixed, or several a row."""

import torch
from jaxtyping import Bool, Float, Int, Shaped
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


def spread(labels: Shaped[Tensor, "batch ..."], classes: int) -> tuple[Float[Tensor, "batch classes"], Tensor]:
    """Return the share of each class in each row, and which rows have a label at all.

    Args:
        labels: Places among the classes, below 0 where there is no label; or shares by class already (several labels,
            mixed rows), NaN where there is no label.
        classes: Number of classes.
    """
    if labels.is_floating_point():
        known: Bool[Tensor, " batch"] = ~labels.isnan().any(dim=1)
        return labels.nan_to_num(), known
    known = labels >= 0
    return functional.one_hot(labels.clamp(min=0), classes).float() * known[:, None], known


def smooth(
    targets: Float[Tensor, "batch classes"], amount: float, several: bool = False
) -> Float[Tensor, "batch classes"]:
    """Return targets, ``amount`` of them spread evenly over all classes; with ``several``, over yes and no of each."""
    return (1 - amount) * targets + amount / (2 if several else targets.shape[1])


def soft_cross_entropy(
    scores: Float[Tensor, "batch classes"], targets: Float[Tensor, "batch classes"]
) -> Float[Tensor, " batch"]:
    """Return -sum over classes of targets * log softmax(scores), a value a row, in float32."""
    return -(targets * scores.float().log_softmax(dim=1)).sum(dim=1)


def binary_cross_entropy(
    scores: Float[Tensor, "batch classes"], targets: Float[Tensor, "batch classes"]
) -> Float[Tensor, "batch classes"]:
    """Return the sigmoid cross entropy of each class of each row, in float32."""
    return functional.binary_cross_entropy_with_logits(scores.float(), targets.float(), reduction="none")


def inverse_frequency(
    targets: Float[Tensor, "batch classes"], counts: Float[Tensor, " classes"]
) -> Float[Tensor, " batch"]:
    """Return a weight for each row: the mean, over its classes, of 1 / the count of the class (VATT on AudioSet).

    Args:
        targets: Shares by class; a row without a class weighs 0.
        counts: How often each class is in the batch, over all processes.
    """
    rarity = torch.where(counts > 0, 1 / counts.clamp(min=torch.finfo(counts.dtype).tiny), torch.zeros_like(counts))
    return targets @ rarity / targets.sum(dim=1).clamp(min=torch.finfo(targets.dtype).eps)


def right(scores: Float[Tensor, "batch classes"], targets: Float[Tensor, "batch classes"]) -> Int[Tensor, " batch"]:
    """Return 1 where the class with the highest score is the one with the largest share (mixed rows: the larger)."""
    return (scores.argmax(dim=1) == targets.argmax(dim=1)).long()
