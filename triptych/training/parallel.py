"""One process or several: starting them, wrapping the method, and whole tensors on rank 0."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree

from triptych import distributed
from triptych.errors import TriptychError, UsageError
from triptych.method import Losses, Method

_pytree.register_dataclass(Losses)  # FSDP2 finds the tensors of an output through it


def start(device: torch.device) -> torch.device:
    """Join the other processes of ``torchrun``, if there are any, and return this one's device."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def wrap(method: Method, kind: str, device: torch.device) -> nn.Module:
    """Return the module that the loop calls: the method itself, or its replica or shard among several processes.

    Raises:
        UsageError: If the method recomputes targets, which sharded parameters do not allow.
    """
    if not distributed.is_running():
        return method
    if kind == "fsdp":
        if type(method).before_epoch is not Method.before_epoch:
            raise UsageError(
                f"{type(method).__name__} recomputes targets over the whole data set, which needs whole parameters in "
                "every process: set parallel=ddp."
            )
        for module in reversed(list(method.modules())):  # the inner ones first
            if isinstance(module, nn.ModuleList):
                for block in module:
                    fully_shard(block)
                    for name in ("attend", "feed", "map"):  # called from outside the block
                        if hasattr(block, name):
                            register_fsdp_forward_method(block, name)
        fully_shard(method)
        for name in ("features", "embed", "predict"):  # what evaluation calls
            register_fsdp_forward_method(method, name)
        return method
    # A batch may lack a stream altogether, whose encoder then has no gradient.
    devices = [device] if device.type == "cuda" else None
    replica = DistributedDataParallel(method, device_ids=devices, find_unused_parameters=True)
    replica.broadcast_buffers = False  # they are alike already, and banks too large to be sent at every step
    return replica


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace gradients by their means over all ranks; a rank without one counts as zero, if any other has one."""
    if not distributed.is_running():
        return
    there = torch.tensor([float(parameter.grad is not None) for parameter in parameters], device=parameters[0].device)
    dist.all_reduce(there, dist.ReduceOp.MAX)
    reached = [parameter for parameter, flag in zip(parameters, there.tolist(), strict=True) if flag]
    if not reached:
        return
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in reached])
    dist.all_reduce(flat)
    flat /= distributed.world_size()
    for parameter, part in zip(reached, flat.split([p.numel() for p in reached]), strict=True):
        parameter.grad = part.view_as(parameter)


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor that may be sharded as a whole one; all ranks must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def assign(target: Tensor, value: Tensor) -> None:
    """Copy a whole value into a tensor that may be sharded."""
    with torch.no_grad():
        if isinstance(target, DTensor):
            target.copy_(distribute_tensor(value.to(target.device), target.device_mesh, target.placements))
        else:
            target.copy_(value)


def any_rank(*flags: bool) -> tuple[bool, ...]:
    """Return for each flag whether it is up on any rank."""
    if not distributed.is_running():
        return flags
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    values = torch.tensor([float(flag) for flag in flags], device=device)
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return tuple(bool(value) for value in values.tolist())


def first_problem(problem: str | None) -> str | None:
    """Return the problem of the first rank that has one, on all ranks, so that they end together."""
    (somewhere,) = any_rank(problem is not None)
    return next(filter(None, distributed.every(problem))) if somewhere else None


@contextmanager
def first_rank() -> Iterator[bool]:
    """Say whether this is rank 0, which writes, and wait for it at the end; what it cannot write ends all ranks.

    Raises:
        TriptychError: On all ranks, if there is one on any.
    """
    problem = None
    try:
        yield distributed.rank() == 0
    except (TriptychError, OSError) as error:
        problem = str(error)
    problem = first_problem(problem)
    if problem is not None:
        raise TriptychError(f"{problem} Set this right, then resume the run.")
