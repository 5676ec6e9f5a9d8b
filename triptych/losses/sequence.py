"""Losses of sequences of symbols: pure functions, in float32 under any precision; a value a row or a token."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional


def ctc(
    logits: Float[Tensor, "batch steps classes"],
    length: Int[Tensor, " batch"],
    targets: Int[Tensor, "batch tokens"],
    target_length: Int[Tensor, " batch"],
    blank: int = 0,
) -> Float[Tensor, " batch"]:
    """Return -log p(targets) of each row under connectionist temporal classification (speech-common, section 4).

    A row that has too few steps for its targets (fewer than tokens plus equal neighbours) has the loss and gradient 0.

    Args:
        logits: Before softmax.
        length: Valid steps, at least 1.
        targets: Symbols without blanks; what lies beyond ``target_length`` does not count.
        target_length: Valid symbols.
        blank: Class of the blank.
    """
    log_probs = logits.float().log_softmax(dim=-1).transpose(0, 1)
    loss: Tensor = functional.ctc_loss(
        log_probs, targets, length, target_length, blank=blank, reduction="none", zero_infinity=True
    )
    return loss


def smoothed_cross_entropy(
    logits: Float[Tensor, "batch tokens classes"],
    targets: Int[Tensor, "batch tokens"],
    length: Int[Tensor, " batch"],
    smoothing: float = 0.1,
    relative: bool = False,
) -> Float[Tensor, "batch tokens"]:
    """Return the cross entropy with labels of 1 - s on the target and s / (classes - 1) on each other class.

    Args:
        logits: Before softmax.
        targets: Class of each token.
        length: Valid tokens; the others have the loss 0.
        smoothing: s.
        relative: Whether the labels' own entropy is taken off (the divergence that RAVEn minimises; same gradient).
    """
    classes = logits.shape[-1]
    log_probs = logits.float().log_softmax(dim=-1)
    right = log_probs.gather(-1, targets[..., None])[..., 0]
    other = smoothing / (classes - 1)
    loss = -(1 - smoothing) * right - other * (log_probs.sum(dim=-1) - right)
    if relative and smoothing:
        loss = loss + (1 - smoothing) * math.log1p(-smoothing) + smoothing * math.log(other)
    valid = torch.arange(targets.shape[1], device=targets.device) < length[:, None]
    return loss.where(valid, 0.0)
