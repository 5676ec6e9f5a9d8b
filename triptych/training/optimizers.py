"""Optimizers and learning rates: groups of parameters, each with its own curve."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from triptych.errors import UsageError
from triptych.method import Group, Method
from triptych.recipe import OptimizerSpec, ScheduleSpec, validate
from triptych.training.parallel import whole


class LARS(Optimizer):
    """SGD with momentum and a rate for each layer, trust |w| / (|g| + decay |w|) (You et al. 2017, arXiv 1708.03888).

    The learning rate stands outside the momentum, as in torch's SGD. Groups with ``layerwise`` False (those that are
    not decayed: biases and norms, as the field has it) move at the plain rate.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, momentum: float = 0.9, weight_decay: float = 0.0, trust: float = 1e-3
    ) -> None:
        """Build the optimizer; ``trust`` is the coefficient of the layer-wise rate."""
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "layerwise": True}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take a step; weights or gradients that are all zero move at the plain rate."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                change = parameter.grad.add(parameter, alpha=group["weight_decay"])
                if group["layerwise"]:
                    size, pull = parameter.norm(), parameter.grad.norm()
                    scale = group["trust"] * size / (pull + group["weight_decay"] * size)
                    change = change * torch.where((size > 0) & (pull > 0), scale, torch.ones_like(scale))
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                state["momentum_buffer"].mul_(group["momentum"]).add_(change)
                parameter.add_(state["momentum_buffer"], alpha=-group["lr"])


def build_optimizer(method: Method, spec: OptimizerSpec) -> Optimizer:
    """Return the optimizer of a method's groups.

    A group of the method becomes one or two of torch's, decayed and not. Each keeps, besides its options, its
    ``names``, its ``peak`` rate, the ``number`` of the method's group, and that group's ``schedule``, ``clip``,
    ``clip_each`` and ``frozen_until``.

    Raises:
        UsageError: If groups name a parameter twice, one that is not there, or an unknown option.
    """
    parameters = dict(method.named_parameters())
    seen: set[str] = set()
    groups: list[dict[str, Any]] = []
    kinds = {spec.name}
    for number, group in enumerate(method.parameter_groups()):
        unknown = [name for name in group.parameters if name not in parameters or name in seen]
        if unknown:
            raise UsageError(f"A parameter group names '{unknown[0]}', which is not there or in another group already.")
        seen |= set(group.parameters)
        own = validate(OptimizerSpec, spec.model_dump() | dict(group.options), "the options of a parameter group")
        kinds.add(own.name)
        for decayed in (True, False):
            chosen = [name for name in group.parameters if _decays(group, parameters[name]) is decayed]
            if chosen:
                groups.append(
                    {
                        "params": [parameters[name] for name in chosen],
                        "names": chosen,
                        "number": number,
                        "weight_decay": own.weight_decay if decayed else 0.0,
                        "layerwise": decayed,
                        "peak": group.lr * own.lr,
                        "schedule": group.schedule,
                        "clip": group.clip,
                        "clip_each": group.clip_each,
                        "frozen_until": group.frozen_until,
                        **_options(own),
                    }
                )
    if len(kinds) > 1:
        raise UsageError(f"All groups share one kind of optimizer; these want {', '.join(sorted(kinds))}.")
    if not groups:
        raise UsageError("There is no parameter to train.")
    match spec.name:
        case "adamw":
            return torch.optim.AdamW(groups)
        case "adam":
            return torch.optim.Adam(groups)
        case "sgd":
            return torch.optim.SGD(groups)
        case _:
            return LARS(groups, lr=spec.lr)


def _decays(group: Group, parameter: Tensor) -> bool:
    return group.decay == "all" or (group.decay == "matrices" and parameter.ndim > 1)


def _options(spec: OptimizerSpec) -> dict[str, Any]:
    if spec.name in ("adam", "adamw"):
        return {"lr": spec.lr, "betas": spec.betas, "eps": spec.eps}
    if spec.name == "sgd":
        return {"lr": spec.lr, "momentum": spec.momentum, "nesterov": spec.nesterov}
    return {"lr": spec.lr, "momentum": spec.momentum, "trust": spec.trust}


def schedule_factor(spec: ScheduleSpec, progress: float, steps: int) -> float:
    """Return the factor on the learning rate.

    Args:
        spec: The curve.
        progress: Share of the round that is done, in [0, 1].
        steps: Optimizer steps of the round (``inverse_sqrt`` counts in steps).
    """
    if progress < spec.warmup:
        return spec.start + (1 - spec.start) * progress / spec.warmup
    if progress < spec.warmup + spec.hold:
        return 1.0
    rest = 1 - spec.warmup - spec.hold
    after = min((progress - spec.warmup - spec.hold) / rest, 1.0) if rest > 0 else 1.0
    match spec.shape:
        case "cosine":
            return spec.end + (1 - spec.end) * (1 + math.cos(math.pi * after)) / 2
        case "linear":
            return spec.end + (1 - spec.end) * (1 - after)
        case "exponential":
            return spec.end**after
        case "steps":
            return spec.gamma ** sum(progress >= milestone for milestone in spec.milestones)
        case "inverse_sqrt":
            first = max(spec.warmup * steps, 1.0)
            return math.sqrt(first / max(progress * steps, first))
        case _:
            return 1.0


def adjust(optimizer: Optimizer, schedules: dict[str, ScheduleSpec], progress: float, steps: int, step: int) -> None:
    """Set each group's rate for the coming step, and drop the gradients of groups that are still frozen."""
    for group in optimizer.param_groups:
        if group["schedule"] not in schedules:
            raise UsageError(
                f"A group follows the schedule '{group['schedule']}'; the recipe has {', '.join(schedules)}."
            )
        group["lr"] = group["peak"] * schedule_factor(schedules[group["schedule"]], progress, steps)
        if step < group["frozen_until"]:
            for parameter in group["params"]:
                parameter.grad = None


def rates(optimizer: Optimizer) -> dict[str, float]:
    """Return the current rates for the log: ``lr``, the first group's, and ``lr.SCHEDULE.PEAK`` of those unlike it."""
    first = optimizer.param_groups[0]
    found = {"lr": first["lr"]}
    for group in optimizer.param_groups:
        if (group["schedule"], group["peak"]) != (first["schedule"], first["peak"]):
            found[f"lr.{group['schedule']}.{group['peak']:g}"] = group["lr"]
    return found


def zero_not_finite(optimizer: Optimizer) -> None:
    """Set the entries of the gradients that are no number or infinite to 0, in place (VATT's pretraining)."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                torch.nan_to_num_(parameter.grad, nan=0.0, posinf=0.0, neginf=0.0)


def clip(optimizer: Optimizer, norm: float | None, value: float | None) -> Tensor:
    """Clip the gradients in place and return their norm over all parameters before that."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    total = whole(nn.utils.get_total_norm(gradients)) if gradients else torch.tensor(0.0)
    if value is not None:
        nn.utils.clip_grad_value_([p for group in optimizer.param_groups for p in group["params"]], value)
    together: dict[int | None, list[nn.Parameter]] = {}
    limits: dict[int | None, float] = {} if norm is None else {None: norm}
    for group in optimizer.param_groups:
        if group["clip_each"] is not None:
            for parameter in group["params"]:
                nn.utils.clip_grad_norm_(parameter, group["clip_each"])
        if group["clip"] is not None:
            limits[group["number"]] = group["clip"]
            together.setdefault(group["number"], []).extend(group["params"])
        elif group["clip_each"] is None:
            together.setdefault(None, []).extend(group["params"])
    for number, limit in limits.items():
        nn.utils.clip_grad_norm_(together.get(number, []), limit)
    return total
