"""From tokens to one vector."""

from jaxtyping import Bool, Float
from torch import Tensor


def masked_mean(
    tokens: Float[Tensor, "batch tokens width"], mask: Bool[Tensor, "batch tokens"]
) -> Float[Tensor, "batch width"]:
    """Return the mean of the tokens that ``mask`` keeps; zeros where it keeps none."""
    total = tokens.where(mask[..., None], 0.0).sum(dim=1)
    return total / mask.sum(dim=1, keepdim=True).clamp(min=1)
