"""The few things that differ when several processes train one model. With one process, each is the identity."""

from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor

Value = TypeVar("Value")

Gather = Literal["grad", "detached", "none"]
"""How keys of other ranks come in: with exact gradients, without gradient, or not at all (a per-device loss)."""


def is_running() -> bool:
    """Return whether several processes work together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if is_running() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if is_running() else 1


def _all_gather(x: Tensor) -> list[Tensor]:
    x = x.detach().contiguous()
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x)
    return parts


class _Gather(torch.autograd.Function):
    """All-gather along the first axis whose backward sums the gradients of all ranks: exact after DDP's mean."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.size = len(x)  # type: ignore[attr-defined]
        return torch.cat(_all_gather(x))

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        total = grads[0].clone(memory_format=torch.contiguous_format)  # others may hold the gradient that came in
        dist.all_reduce(total)
        size: int = ctx.size  # type: ignore[attr-defined]
        return total[rank() * size : (rank() + 1) * size]


def gather(x: Shaped[Tensor, "batch ..."], how: Gather = "grad") -> Shaped[Tensor, "gathered ..."]:
    """Return the rows of all ranks, in the order of the ranks; own row ``i`` lies at ``offset(x, how) + i``.

    All ranks must call it, with equally many rows. With ``grad`` and DDP's averaging, a loss that is a mean over
    the local rows has exactly the gradient of the same loss in one process. With ``detached``, own rows keep their
    gradient and the others are constants (open_clip's ``local_loss`` without ``gather_with_grad``).
    """
    if not is_running() or how == "none":
        return x
    if how == "grad" and x.is_floating_point():
        gathered: Tensor = _Gather.apply(x)  # type: ignore[no-untyped-call]
        return gathered
    parts = _all_gather(x)
    if how == "detached":
        parts[rank()] = x
    return torch.cat(parts)


def offset(x: Shaped[Tensor, "batch ..."], how: Gather = "grad") -> int:
    """Return where the own rows begin in ``gather(x, how)``."""
    return 0 if how == "none" else rank() * len(x)


def mean(total: Float[Tensor, ""], count: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Return a masked mean over all ranks from this rank's sum and count; 0 where nothing counts.

    Each rank's value is scaled so that the mean over the ranks, which DDP forms of the gradients and the log of the
    losses, is the sum over all ranks divided by the count over all ranks.
    """
    everywhere = count.detach().clone()
    if is_running():
        dist.all_reduce(everywhere)
    return total * world_size() / everywhere.clamp(min=1)


def average(x: Tensor) -> Tensor:
    """Return the mean of a detached value over all ranks (for reports)."""
    x = x.detach().clone()
    if is_running():
        dist.all_reduce(x)
        x /= world_size()
    return x


def share(x: Tensor) -> Tensor:
    """Return rank 0's tensor on every rank, for what all must agree on."""
    if is_running():
        x = x.clone()
        dist.broadcast(x, 0)
    return x


def agree(value: Value) -> Value:
    """Return rank 0's value of any type on every rank."""
    if not is_running():
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, 0)
    agreed: Value = box[0]
    return agreed


def every(value: Value) -> list[Value]:
    """Return the values of all ranks, of any type, in the order of the ranks."""
    if not is_running():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values
