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
from triptych.training.gradients import Gradients, backward, find_rule

CLOCK = Clock(progress=0.25)


def realign(terms: Mapping[str, Gradients], clock: Clock, floor: float = -1.0) -> tuple[Gradients, dict[str, Any]]:
    """Take from each of two gradients what points against the other (gradient-harmonization, section 5)."""
    one, other = terms.values()
    shared = [place for place, pair in enumerate(zip(one, other, strict=True)) if None not in pair]
    flat = [torch.cat([each[place].flatten() for place in shared]) for each in (one, other)]  # type: ignore[union-attr]
    dot, norms = flat[0] @ flat[1], [vector.square().sum() for vector in flat]
    cosine = dot / (norms[0] * norms[1]).sqrt() if min(norms) > 0 else None
    report = {"cosine": cosine if cosine is not None else 0.0, "kept": 1.0}
    if cosine is not None and cosine <= floor:
        return [None] * len(one), report | {"kept": 0.0}
    answer: Gradients = []
    for a, b in zip(one, other, strict=True):
        if a is None or b is None:
            answer.append(a if b is None else b)
        elif cosine is None or dot >= 0:
            answer.append(a + b)
        else:
            answer.append((a - dot / norms[1] * b) + (b - dot / norms[0] * a))
    return answer, report


@pytest.mark.parametrize(
    ("va", "vt", "cosine", "update"),
    [
        ([1, 0], [-1, 1], -0.707107, [0.5, 1.5]),
        ([3, 4], [-4, 3], 0.0, [-1, 7]),
        ([1, 2], [3, -1], 0.141421, [4, 1]),
        ([1, 0], [-2, 0], -1.0, [0, 0]),
        ([2, 1, 0], [-1, 0, 1], -0.632456, [0.8, 1.4, 2]),
        ([0, 0], [1, -1], 0.0, [1, -1]),
    ],
)
def test_a_rule_gets_each_terms_gradient_from_one_forward_pass(
    va: list[float], vt: list[float], cosine: float, update: list[float]
) -> None:
    weight = nn.Parameter(torch.zeros(len(va)))
    alone = nn.Parameter(torch.zeros(1))  # reached by one term only
    nothing = nn.Parameter(torch.zeros(1))
    terms = {"va": weight @ torch.tensor(va).float() + 3 * alone[0], "vt": weight @ torch.tensor(vt).float() / 2}
    rule = find_rule(GradientSpec(rule="tests.training.test_gradients:realign", options={"floor": -2.0}))
    told = backward(Losses(terms, {"vt": 2.0}), rule, 0.5, CLOCK, [weight, alone, nothing])
    assert weight.grad is not None and alone.grad is not None and nothing.grad is None
    torch.testing.assert_close(weight.grad, torch.tensor(update).float() / 2)
    assert alone.grad == 1.5 and float(told["cosine"]) == pytest.approx(cosine, abs=1e-6)


def add(terms: Mapping[str, Gradients], clock: Clock) -> tuple[Gradients, dict[str, float]]:
    """Do what ``sum`` does."""
    columns = zip(*terms.values(), strict=True)
    return [
        sum(g for g in column if g is not None) if any(g is not None for g in column) else None for column in columns
    ], {"progress": clock.progress}


def test_adding_up_the_terms_is_the_sum() -> None:
    found = []
    for rule in (None, add):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 2))
        out = net(torch.randn(5, 3))
        losses = Losses(
            {"a": out[:, 0].square().mean(), "b": out[:, 1].exp().mean(), "told": torch.tensor(1.0)}, {"b": 0.3}
        )
        told = backward(losses, rule, 0.5, CLOCK, list(net.parameters()))
        assert told == ({} if rule is None else {"progress": 0.25})
        found.append([parameter.grad for parameter in net.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (GradientSpec(rule="product"), "there is no 'product'; there are sum, and module:function"),
        (GradientSpec(rule="tests.training.test_gradients:nothing"), "cannot be used: module .* has no attribute"),
        (GradientSpec(rule="nowhere:nothing"), "cannot be used: No module named 'nowhere'"),
        (
            GradientSpec(rule="tests.training.test_gradients:realign", options={"ceiling": 1.0}),
            "cannot be used: got an unexpected keyword argument 'ceiling'",
        ),
        (GradientSpec(options={"ceiling": 1.0}), "the rule 'sum' has no option 'ceiling'"),
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
        gradients={"rule": "tests.training.test_gradients:realign"},
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
    assert [line["cosine"] for line in lines] == pytest.approx([1, -1, 1, -1])
