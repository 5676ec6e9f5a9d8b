"""From the losses of a step to one gradient for each parameter."""

from torch import Tensor

from triptych.method import Losses
from triptych.recipe import GradientSpec


def backward(losses: Losses, spec: GradientSpec, share: float) -> Tensor:
    """Add the gradients of one micro-batch to the parameters', by the rule of ``spec``.

    Args:
        losses: Of the micro-batch.
        spec: ``sum``: the gradient of the weighted sum of the terms.
        share: Weight of the micro-batch in its step (1 / accumulated parts).

    Returns:
        The detached total.
    """
    total = losses.total
    (total * share).backward()
    return total.detach()
