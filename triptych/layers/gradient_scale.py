"""Gradients that are made smaller on their way back."""

import torch
from jaxtyping import Float
from torch import Tensor


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor  # type: ignore[attr-defined]
        return x.view_as(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.factor, None  # type: ignore[attr-defined]


def scale_gradient(x: Float[Tensor, "*axes"], factor: float) -> Float[Tensor, "*axes"]:
    """Return ``x`` as it is; what its gradient passes on is multiplied by ``factor``."""
    scaled: Tensor = _Scale.apply(x, factor)  # type: ignore[no-untyped-call]
    return scaled
