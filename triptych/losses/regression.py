"""Regression of what was hidden: pure functions, in float32 at least under any precision."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def normalize_patches(
    patches: Float[Tensor, "batch tokens values"], eps: float = 1e-6
) -> Float[Tensor, "batch tokens values"]:
    """Return each patch minus its mean, over the root of its unbiased variance plus ``eps``; a flat patch gives zeros.

    Source: vision-transformers-common section 5 (``norm_pix_loss``).
    """
    wide = patches.to(torch.promote_types(patches.dtype, torch.float32))
    variance, mean = torch.var_mean(wide, dim=-1, keepdim=True)
    return (wide - mean) / (variance + eps).sqrt()


def masked_regression(
    prediction: Float[Tensor, "batch tokens values"],
    target: Float[Tensor, "batch tokens values"],
    hidden: Bool[Tensor, "batch tokens"],
) -> Float[Tensor, " batch"]:
    """Return the squared error of each row, averaged over the values of a patch, then over the hidden patches.

    The mean over rows is the papers' mean over all hidden patches of a batch where all rows hide equally many. A row
    that hides none has the value 0.

    Source: vision-transformers-common section 5; xkd section 5, item 1.
    """
    wide = torch.promote_types(prediction.dtype, torch.float32)
    each = (prediction.to(wide) - target.to(wide)).square().mean(dim=-1)
    return (each * hidden).sum(dim=1) / hidden.sum(dim=1).clamp(min=1)
