"""Learning-rate curves by hand, groups, clipping, LARS."""

import math

import pytest
import torch

from triptych.errors import UsageError
from triptych.method import Group, Method
from triptych.recipe import Config, OptimizerSpec, ScheduleSpec
from triptych.training.optimizers import LARS, adjust, build_optimizer, clip, rates, schedule_factor


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
        (ScheduleSpec(shape="exponential", end=0.04), 0.5, 0.2),
        (ScheduleSpec(shape="exponential", warmup=0.5, start=0.01, end=0.05), 0.25, 0.505),
        (ScheduleSpec(shape="exponential", warmup=0.5, start=0.01, end=0.05), 1.0, 0.05),
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


def test_a_group_is_clipped_as_one_whatever_of_it_is_decayed() -> None:
    method = Two([Group(("a.weight", "a.bias"), clip=3.0), Group(("b.weight", "b.bias"), clip=math.inf)])
    optimizer = build_optimizer(method, OptimizerSpec(weight_decay=0.1))
    assert len(optimizer.param_groups) == 4
    for parameter in method.parameters():
        parameter.grad = torch.full_like(parameter, 6.0)
    clip(optimizer, norm=1.0, value=None)
    assert method.a.weight.grad is not None and method.a.bias.grad is not None and method.b.weight.grad is not None
    assert math.hypot(method.a.weight.grad.norm(), method.a.bias.grad.norm()) == pytest.approx(3.0, rel=1e-4)
    assert torch.equal(method.b.weight.grad, torch.full((2, 2), 6.0))


def test_every_distinct_curve_has_a_name_in_the_log() -> None:
    groups = [Group(("a.weight", "a.bias")), Group(("b.weight",), lr=0.5), Group(("b.bias",), schedule="late")]
    optimizer = build_optimizer(Two(groups), OptimizerSpec(lr=0.2, weight_decay=0.1))
    curves = {"main": ScheduleSpec(shape="linear"), "late": ScheduleSpec(shape="constant")}
    adjust(optimizer, curves, 0.5, 10, step=0)
    assert rates(optimizer) == pytest.approx({"lr": 0.1, "lr.main.0.1": 0.05, "lr.late.0.2": 0.2})


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "lars"])
def test_every_optimizer_steps_and_groups_override_its_options(name: str) -> None:
    method = Two([Group(("a.weight", "a.bias")), Group(("b.weight", "b.bias"), options={"weight_decay": 0.5})])
    optimizer = build_optimizer(method, OptimizerSpec.model_validate({"name": name, "weight_decay": 0.1}))
    before = {key: value.clone() for key, value in method.state_dict().items()}
    for parameter in method.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert all(not torch.equal(before[key], value) for key, value in method.state_dict().items())
    decays = {key: group["weight_decay"] for group in optimizer.param_groups for key in group["names"]}
    assert decays == {"a.weight": 0.1, "a.bias": 0.0, "b.weight": 0.5, "b.bias": 0.0}


@pytest.mark.parametrize("options", [{"weight_dcay": 0.1}, {"lr": -1.0}, {"name": "sgd"}])
def test_options_of_a_group_that_make_no_sense_are_told(options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"weight_dcay|lr|one kind of optimizer"):
        build_optimizer(Two([Group(("a.weight",), options=options)]), OptimizerSpec())


def test_lars_by_hand() -> None:
    weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    weight.grad = torch.tensor([0.0, 1.0])
    optimizer = LARS([{"params": [weight], "weight_decay": 0.1}], lr=2.0, momentum=0.9, trust=0.01)
    optimizer.step()
    # |w| = 5, |g| = 1: the rate is 0.01 * 5 / (1 + 0.1 * 5) = 1/30; g + decay w = (0.3, 1.4)
    torch.testing.assert_close(weight.detach(), torch.tensor([3 - 2 * 0.3 / 30, 4 - 2 * 1.4 / 30]))
    weight.grad = torch.zeros(2)  # no gradient, so no rate of its own: 0.9 of the last change, and the decay
    optimizer.step()
    first = [2.98, 4 - 2 * 1.4 / 30]
    moved = [x - 2 * (0.9 * change / 30 + 0.1 * x) for x, change in zip(first, (0.3, 1.4), strict=True)]
    torch.testing.assert_close(weight.detach(), torch.tensor(moved))


def test_lars_scales_layers_without_decay_and_leaves_biases_at_the_plain_rate() -> None:
    method = Two()
    optimizer = build_optimizer(method, OptimizerSpec(name="lars", lr=1.0, momentum=0.0, trust=0.01))
    before = {name: parameter.detach().clone() for name, parameter in method.named_parameters()}
    for parameter in method.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    size = before["a.weight"].norm()
    torch.testing.assert_close(method.a.weight.detach(), before["a.weight"] - 0.01 * size / 2)  # |g| = 2
    torch.testing.assert_close(method.a.bias.detach(), before["a.bias"] - 1.0)
