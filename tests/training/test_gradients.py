"""Rules over the gradients of each term: what they are given, what becomes of their answer; the sum."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from tests.training import test_loop
from tests.training.test_loop import FakeLoader
from triptych.batch import Batch
from triptych.errors import UsageError
from triptych.media.collection import Rows
from triptych.method import Clock, Losses, Method
from triptych.recipe import Config, GradientSpec
from triptych.training import loop
from triptych.training.gradients import Gradients, Harmonization, backward, find_rule

CLOCK = Clock(progress=0.25)


def _harmonize(
    terms: Mapping[str, Gradients], clock: Clock = CLOCK, **options: Any
) -> tuple[list[Any], dict[str, Any]]:
    rule = find_rule(GradientSpec(rule="harmonize", options=options))
    assert rule is not None
    gradients, told = rule(terms, clock)
    return [None if gradient is None else gradient.tolist() for gradient in gradients], dict(told)


CASES = [
    ([1.0, 0.0], [-1.0, 1.0], -0.707107, [0.5, 0.5], [0.0, 1.0], [0.5, 1.5]),
    ([3.0, 4.0], [-4.0, 3.0], 0.0, [3.0, 4.0], [-4.0, 3.0], [-1.0, 7.0]),
    ([1.0, 2.0], [3.0, -1.0], 0.141421, [1.0, 2.0], [3.0, -1.0], [4.0, 1.0]),
    ([1.0, 0.0], [-2.0, 0.0], -1.0, [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]),
    ([2.0, 1.0, 0.0], [-1.0, 0.0, 1.0], -0.632456, [1.0, 1.0, 1.0], [-0.2, 0.4, 1.0], [0.8, 1.4, 2.0]),
    ([0.0, 0.0], [1.0, -1.0], None, [0.0, 0.0], [1.0, -1.0], [1.0, -1.0]),
]
"""Gradients of two terms, their cosine, both realigned, and the update (gradient-harmonization, section 10)."""


@pytest.mark.parametrize(("va", "vt", "cosine", "of_va", "of_vt", "update"), CASES)
def test_the_table_of_realignment(
    va: list[float], vt: list[float], cosine: float | None, of_va: list[float], of_vt: list[float], update: list[float]
) -> None:
    terms = {"va": [torch.tensor(va)], "vt": [torch.tensor(vt)]}
    for mode in ("realign", "both"):
        (found,), told = _harmonize(terms, mode=mode, gamma_start=-2.0, gamma_end=-2.0)
        assert found == pytest.approx(update, abs=1e-6)
        assert told.get("cosine.va.vt") == (None if cosine is None else pytest.approx(cosine, abs=1e-6))
        assert told["conflict"] == float(cosine is not None and cosine < 0) and told["kept"] == 1
        one, other = torch.tensor(of_va), torch.tensor(of_vt)
        sizes = float(one.norm() * other.norm())
        if sizes:
            assert told["cosine_after.va.vt"] == pytest.approx(float(one @ other) / sizes, abs=1e-6)
        else:
            assert "cosine_after.va.vt" not in told
    for mode in ("none", "curriculum"):
        (found,), told = _harmonize(terms, mode=mode, gamma_start=-2.0, gamma_end=-2.0)
        assert found == (torch.tensor(va) + torch.tensor(vt)).tolist()
        assert told.get("cosine_after.va.vt") == told.get("cosine.va.vt")


@pytest.mark.parametrize(
    ("row", "progress", "kept"),
    [(0, 0.0, 0), (4, 0.0, 0), (2, 0.0, 1), (2, 1.0, 1), (1, 0.0, 1), (1, 0.999, 1), (1, 1.0, 0), (5, 1.0, 1)],
)
def test_the_curriculum(row: int, progress: float, kept: int) -> None:
    """Strictly above a limit that rises; what has no cosine is kept."""
    va, vt, _, _, _, update = CASES[row]
    terms = {"va": [torch.tensor(va)], "vt": [torch.tensor(vt)]}
    (found,), told = _harmonize(terms, Clock(progress=progress))
    assert told["kept"] == kept
    assert found == (pytest.approx(update) if kept else None)


def test_the_limit_of_the_curriculum() -> None:
    rule = Harmonization()
    assert [rule.gamma(step / 500_000) for step in (0, 125_000, 250_000, 500_000)] == pytest.approx(
        [-0.3, -0.225, -0.15, 0.0]
    )


def _random(terms: int = 2) -> dict[str, Gradients]:
    """Return gradients of which the first two conflict, and of which some do not reach a parameter."""
    torch.manual_seed(0)
    found: dict[str, Gradients] = {f"t{n}": [torch.randn(3, 2), torch.randn(4), torch.randn(5)] for n in range(terms)}
    found["t1"][0] = -2 * found["t0"][0] + torch.randn(3, 2)  # type: ignore[operator]
    found["t0"][2] = None
    return found


def _flat(gradients: Gradients) -> Tensor:
    """Return the shared part as one vector."""
    return torch.cat([g.flatten() for g in gradients[:2] if g is not None])


def test_realigned_gradients_no_longer_point_against_the_other() -> None:
    """Whatever the size of a term: ten times as large, it is so afterwards, and the other stays."""
    terms = _random()
    g, other = (_flat(gradients) for gradients in terms.values())
    cosine = float(g @ other / (g.norm() * other.norm()))
    assert cosine < 0
    nothing: Gradients = [torch.zeros(3, 2), torch.zeros(4), torch.zeros(5)]
    rule = Harmonization(mode="realign")

    def each(terms: dict[str, Gradients]) -> list[Tensor]:
        """Return both realigned gradients: what is left of the update when the other term is taken out of it."""
        update = _flat(rule(terms, CLOCK)[0])
        first, second = (_flat(gradients) for gradients in terms.values())
        dot = first @ second
        return [first - dot / second.square().sum() * second, update - (first - dot / second.square().sum() * second)]

    h, h_other = each(terms)
    torch.testing.assert_close(h @ other, torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(h_other @ g, torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(h.square().sum(), g.square().sum() * (1 - cosine**2))
    update = h + h_other
    assert update @ g > 0 and update @ other > 0
    torch.testing.assert_close(update @ g, g.square().sum() * (1 - cosine**2))
    larger = {"t0": terms["t0"], "t1": [None if x is None else 10 * x for x in terms["t1"]]}
    h_same, h_larger = each(larger)
    torch.testing.assert_close(h_same, h)
    torch.testing.assert_close(h_larger, 10 * h_other)
    alone, told = rule({"t0": terms["t0"], "t1": nothing}, CLOCK)
    torch.testing.assert_close(_flat(alone), g)
    assert "cosine.t0.t1" not in told and told["conflict"] == 0


def test_only_what_both_reach_is_compared() -> None:
    terms = _random()
    shared, told = Harmonization(mode="realign")(terms, CLOCK)
    assert shared[2] is terms["t1"][2]
    everything, less = Harmonization(mode="realign", scope="all")(terms, CLOCK)
    assert abs(float(less["cosine.t0.t1"])) < abs(float(told["cosine.t0.t1"]))
    zero: Gradients = [*terms["t0"][:2], torch.zeros(5)]
    wanted, _ = Harmonization(mode="realign")({"t0": zero, "t1": terms["t1"]}, CLOCK)
    for found, each in zip(everything, wanted, strict=True):
        torch.testing.assert_close(found, each)


def test_order_and_cutting_of_parameters_do_not_count_but_for_each_by_itself() -> None:
    terms = _random()
    turned = {name: gradients[::-1] for name, gradients in terms.items()}
    cut = {
        name: [x for g in gradients for x in ([None] * 2 if g is None else list(g.split([1, len(g) - 1])))]
        for name, gradients in terms.items()
    }
    for options in ({}, {"scope": "all"}):
        rule = Harmonization(mode="realign", **options)  # type: ignore[arg-type]
        plain, (back, told), (parts, _) = rule(terms, CLOCK)[0], rule(turned, CLOCK), rule(cut, CLOCK)
        for place, gradient in enumerate(plain):
            torch.testing.assert_close(back[2 - place], gradient)
            torch.testing.assert_close(
                torch.cat([x for x in parts[2 * place : 2 * place + 2] if x is not None]), gradient
            )
        assert told["conflict"] == 1
    each = Harmonization(mode="realign", per_tensor=True)
    assert not torch.allclose(_flat(each(terms, CLOCK)[0]), _flat(Harmonization(mode="realign")(terms, CLOCK)[0]))
    for place in (0, 1):
        alone = {name: [gradients[place]] for name, gradients in terms.items()}
        torch.testing.assert_close(each(terms, CLOCK)[0][place], Harmonization(mode="realign")(alone, CLOCK)[0][0])


def test_several_terms_are_projected_on_all_originals_whatever_their_order() -> None:
    terms = _random(terms=3)
    found, told = Harmonization(mode="realign")(terms, CLOCK)
    turned, _ = Harmonization(mode="realign")(dict(reversed(terms.items())), CLOCK)
    for one, other in zip(found, turned, strict=True):
        torch.testing.assert_close(one, other)
    assert {name for name in told if name.startswith("cosine.")} == {"cosine.t0.t1", "cosine.t0.t2", "cosine.t1.t2"}
    assert told["conflict"] == sum(float(told[f"cosine.{pair}"]) < 0 for pair in ("t0.t1", "t0.t2", "t1.t2")) / 3


def test_a_gradient_that_is_not_finite_is_in_no_conflict() -> None:
    terms: dict[str, Gradients] = {"va": [torch.tensor([1.0, 0.0])], "vt": [torch.tensor([-1.0, float("nan")])]}
    (found,), told = _harmonize(terms)
    assert found[0] == 0 and found[1] != found[1]
    assert told == {"conflict": 0.0, "kept": 1.0}


def test_each_process_harmonizes_by_itself_and_the_mean_is_not_that_of_the_whole() -> None:
    first, second = (({"va": [torch.tensor(c[0])], "vt": [torch.tensor(c[1])]}) for c in (CASES[0], CASES[2]))
    rule = Harmonization(mode="realign")
    local = (rule(first, CLOCK)[0][0] + rule(second, CLOCK)[0][0]) / 2  # type: ignore[operator]
    together = {name: [(first[name][0] + second[name][0]) / 2] for name in first}
    assert local.tolist() == pytest.approx([2.25, 1.25])
    assert rule(together, CLOCK)[0][0].tolist() == pytest.approx([2.0, 1.0])  # type: ignore[union-attr]


def test_a_rule_gets_each_terms_gradient_from_one_forward_pass() -> None:
    weight = nn.Parameter(torch.zeros(2))
    alone = nn.Parameter(torch.zeros(1))  # reached by one term only
    nothing = nn.Parameter(torch.zeros(1))
    terms = {
        "va": weight @ torch.tensor([1.0, 0.0]) + 3 * alone[0],
        "vt": weight @ torch.tensor([-1.0, 1.0]) / 2,
    }
    rule = find_rule(GradientSpec(rule="harmonize", options={"mode": "realign"}))
    told = backward(Losses(terms, {"vt": 2.0}), rule, 0.5, CLOCK, [weight, alone, nothing])
    assert weight.grad is not None and alone.grad is not None and nothing.grad is None
    torch.testing.assert_close(weight.grad, torch.tensor([0.25, 0.75]))
    assert alone.grad == 1.5 and float(told["cosine.va.vt"]) == pytest.approx(-0.707107, abs=1e-6)


def add(terms: Mapping[str, Gradients], clock: Clock) -> tuple[Gradients, dict[str, float]]:
    """Do what ``sum`` does."""
    columns = zip(*terms.values(), strict=True)
    return [
        sum(g for g in column if g is not None) if any(g is not None for g in column) else None for column in columns
    ], {"progress": clock.progress}


def test_adding_up_the_terms_is_the_sum() -> None:
    found = []
    for rule in (None, add, Harmonization(mode="none")):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 2))
        out = net(torch.randn(5, 3))
        losses = Losses(
            {"a": out[:, 0].square().mean(), "b": out[:, 1].exp().mean(), "told": torch.tensor(1.0)}, {"b": 0.3}
        )
        told = backward(losses, rule, 0.5, CLOCK, list(net.parameters()))
        assert rule is not add or told == {"progress": 0.25}
        found.append([parameter.grad for parameter in net.parameters()])
    for one, *others in zip(*found, strict=True):
        for other in others:
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (GradientSpec(rule="product"), "there is no 'product'; there are sum, harmonize, and module:function"),
        (GradientSpec(rule="tests.training.test_gradients:nothing"), "cannot be used: module .* has no attribute"),
        (GradientSpec(rule="nowhere:nothing"), "cannot be used: No module named 'nowhere'"),
        (
            GradientSpec(rule="tests.training.test_gradients:add", options={"ceiling": 1.0}),
            "cannot be used: got an unexpected keyword argument 'ceiling'",
        ),
        (GradientSpec(options={"ceiling": 1.0}), "the rule 'sum' has no option 'ceiling'"),
        (
            GradientSpec(rule="harmonize", options={"gamma_begin": 1.0}),
            r"gradients.options: unknown key 'gamma_begin'; did you mean gamma_",
        ),
        (GradientSpec(rule="harmonize", options={"mode": "some"}), "gradients.options: mode: Input should be 'none'"),
    ],
)
def test_a_rule_that_is_not_there_is_told(spec: GradientSpec, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_rule(spec)


class Pulled(Method):
    """Two terms that pull a number in opposite directions, at odd steps only."""

    config_class: ClassVar[type[Config]] = Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.place = nn.Parameter(torch.ones(2))

    def objective(self, batch: Batch, clock: Clock) -> Losses:
        side = -1 if clock.step % 2 else 1
        return Losses({"va": self.place.sum(), "vt": side * self.place.sum()})


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rows]:
    monkeypatch.setattr(loop, "Loader", FakeLoader)
    (tmp_path / "m.csv").write_text("path\n" + "".join(f"clip{n}.mp4\n" for n in range(test_loop.ROWS)))
    yield Rows.open(tmp_path / "m.csv")


def test_a_step_that_a_rule_drops_moves_nothing_and_is_told(rows: Rows, tmp_path: Path) -> None:
    recipe = test_loop._recipe(
        method="tests.training.test_gradients:Pulled",
        gradients={"rule": "harmonize", "options": {"gamma_start": -0.5}},
        checkpoint_steps=1,
        rounds=1,
        steps=4,
        ema=None,
    )
    out = loop.fit(Pulled(Config()), recipe, rows, tmp_path / "run").parent
    places, counts = [], []
    for folder in loop.checkpoint.find(out):
        tensors = {**test_loop.load_file(folder / "model" / "model.safetensors")}
        moments = test_loop.load_file(folder / "optimizer.safetensors")
        places.append(float(tensors["place"][0]))
        counts.append(float(moments.get("place|step", Tensor([0]))))
    assert counts == [0, 1, 1, 2, 2]  # Adam's moments do not move, either
    assert places[1] == places[2] != places[3] == places[4]
    lines = test_loop._log(out)
    assert [line["kept"] for line in lines] == [1, 0, 1, 0]
    assert [line["cosine.va.vt"] for line in lines] == pytest.approx([1, -1, 1, -1])
    assert [line["conflict"] for line in lines] == [0, 1, 0, 1]
