"""Classification of what was hidden: pure functions, in float32 at least under any precision."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional


def cosine_logits(
    x: Float[Tensor, "*axes dim"],
    classes: Float[Tensor, "classes dim"],
    temperature: float = 0.1,
    smallest: float = 1e-6,
) -> Float[Tensor, "*axes classes"]:
    """Return the cosine of each vector with the embedding of each class, over a temperature (av-hubert, section 5).

    Args:
        x: Of any length.
        classes: An embedding a class.
        temperature: What the cosine is divided by.
        smallest: Product of the two lengths that is divided by at least.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        x, classes = x.to(wide), classes.to(wide)
        lengths = x.norm(dim=-1, keepdim=True) * classes.norm(dim=-1)
        return x @ classes.T / lengths.clamp(min=smallest) / temperature


def masked_cross_entropy(
    logits: Float[Tensor, "batch steps classes"],
    targets: Int[Tensor, "batch steps"],
    counted: Bool[Tensor, "batch steps"],
) -> Float[Tensor, "batch steps"]:
    """Return the cross entropy of each step that counts; 0 of the others, whatever their target.

    Args:
        logits: Before softmax.
        targets: Class of each step.
        counted: Steps that count.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    chosen = targets.where(counted, 0)
    each = functional.cross_entropy(logits.to(wide).transpose(1, 2), chosen, reduction="none")
    return each.where(counted, 0.0)
