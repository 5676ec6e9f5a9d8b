"""One process or several: starting them, wrapping the method, and whole tensors on rank 0."""

import os

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree

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
    """Return the module that the loop calls: the method itself, or its replica or shard among several processes."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return method
    if kind == "fsdp":
        for module in method.modules():
            if isinstance(module, nn.ModuleList):
                for block in module:
                    fully_shard(block)
        fully_shard(method)
        return method
    # A batch may lack a stream altogether, whose encoder then has no gradient.
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(method, device_ids=devices, find_unused_parameters=True)


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


def any_rank(flag: bool) -> bool:
    """Return whether the flag is up on any rank."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return flag
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    value = torch.tensor(float(flag), device=device)
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return bool(value.item())


def wait() -> None:
    """Wait for all ranks."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()
