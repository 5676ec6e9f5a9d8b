"""Learning-rate curves by hand, groups, clipping, LARS."""

import math

import pytest
import torch

from triptych.errors import UsageError
from triptych.method import Group, Method
from triptych.recipe import Config, OptimizerSpec, ScheduleSpec
from triptych.training.optimizers import LARS, adjust, build_optimizer, clip, schedule_factor


@pytest.mark.parametrize(
    ("spec", "progress", "factor"),
    [
        (ScheduleSpec(), 0.0, 1.0),
        (ScheduleSpec(), 0.5, 0.5),
        (ScheduleSpec(end=0.1), 1.0, 0.1),
        (ScheduleSpec(warmup=0.2), 0.1, 0.5),
        (ScheduleSpec(warmup=0.2, start=0.2), 0.1, 0.6),
        (ScheduleSpec(warmup=0.2), 0.6, 0.5),
        (ScheduleSpec(warmup=0.2, hold=0.3), 0.4, 1.0),
        (ScheduleSpec(shape="linear", warmup=0.5), 0.75, 0.5),
        (ScheduleSpec(shape="steps", milestones=(0.3, 0.6)), 0.7, 0.01),
        (ScheduleSpec(shape="constant"), 0.9, 1.0),
        (ScheduleSpec(shape="inverse_sqrt", warmup=0.25), 1.0, 0.5),
        (ScheduleSpec(), 0.25, (1 + math.cos(math.pi / 4)) / 2),
    ],
)
def test_curves(spec: ScheduleSpec, progress: float, factor: float) -> None:
    assert schedule_factor(spec, progress, steps=100) == pytest.approx(factor)


class Two(Method):
    def __init__(self, groups: list[Group] | None = None) -> None:
        super().__init__(Config())
        self.a = torch.nn.Linear(2, 2)
        self.b = torch.nn.Linear(2, 2)
        self.groups = groups

    def parameter_groups(self) -> list[Group]:
        return self.groups or super().parameter_groups()


def test_matrices_are_decayed_and_biases_are_not() -> None:
    optimizer = build_optimizer(Two(), OptimizerSpec(weight_decay=0.1))
    decays = {name: group["weight_decay"] for group in optimizer.param_groups for name in group["names"]}
    assert decays == {"a.weight": 0.1, "b.weight": 0.1, "a.bias": 0.0, "b.bias": 0.0}


def test_a_group_has_its_own_rate_curve_and_start() -> None:
    groups = [Group(("a.weight",), lr=0.5, options={"lr": 0.2}), Group(("b.weight",), schedule="late", frozen_until=3)]
    method = Two(groups)
    optimizer = build_optimizer(method, OptimizerSpec(lr=1.0))
    method.b.weight.grad = torch.ones(2, 2)
    curves = {"main": ScheduleSpec(shape="linear"), "late": ScheduleSpec(shape="constant")}
    adjust(optimizer, curves, 0.5, 10, step=2)
    assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(0.05), 1.0]
    assert method.b.weight.grad is None
    with pytest.raises(UsageError, match="schedule 'late'"):
        adjust(optimizer, {"main": ScheduleSpec()}, 0.5, 10, step=5)


def test_a_name_that_is_not_there_is_told() -> None:
    with pytest.raises(UsageError, match=r"'c\.weight'"):
        build_optimizer(Two([Group(("c.weight",))]), OptimizerSpec())


def test_clipping_by_group_by_parameter_and_in_common() -> None:
    method = Two([Group(("a.weight",), clip=0.5), Group(("b.weight",), clip_each=0.1), Group(("a.bias", "b.bias"))])
    optimizer = build_optimizer(method, OptimizerSpec())
    for parameter in method.parameters():
        parameter.grad = torch.ones_like(parameter)
    total = clip(optimizer, norm=1.0, value=None)
    assert total == pytest.approx(math.sqrt(12))
    norms = {name: float(p.grad.norm()) for name, p in method.named_parameters() if p.grad is not None}
    assert norms["a.weight"] == pytest.approx(0.5, rel=1e-4) and norms["b.weight"] == pytest.approx(0.1, rel=1e-4)
    assert math.hypot(norms["a.bias"], norms["b.bias"]) == pytest.approx(1.0, rel=1e-4)


def test_lars_by_hand() -> None:
    weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    weight.grad = torch.tensor([0.0, 1.0])
    LARS([{"params": [weight], "weight_decay": 0.1}], lr=1.0, momentum=0.0, trust=0.01).step()
    # g + decay w = (0.3, 1.4); |w| = 5; trust = 0.01 * 5 / sqrt(2.05)
    scale = 0.05 / math.sqrt(0.09 + 1.96)
    torch.testing.assert_close(weight.detach(), torch.tensor([3 - 0.3 * scale, 4 - 1.4 * scale]))
