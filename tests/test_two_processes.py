"""Two processes see together what one would: losses, gradients and whole runs are the same, and they end together."""

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.methods.test_lava import _view
from tests.methods.test_vatt import _build as _vatt
from tests.methods.test_vatt import _view as _vatt_view
from tests.processes import in_two_processes
from tests.tiny import tiny_lava
from tests.training.test_loop import FakeLoader, _log
from triptych import distributed
from triptych.batch import Batch, Clip
from triptych.errors import TriptychError
from triptych.layers.batch_norm import BatchNorm
from triptych.media.collection import Rows
from triptych.method import Clock, Losses, Method
from triptych.methods.lava import LAVA
from triptych.model import model_tensors
from triptych.recipe import Config, OptimizerSpec, Recipe, validate
from triptych.training import loop, parallel
from triptych.training.gradients import Harmonization, backward
from triptych.training.optimizers import build_optimizer, clip

pytestmark = pytest.mark.slow
ROWS = 6
Found = dict[str, Tensor]


def _mine(x: Tensor, rank: int, world: int) -> Tensor:
    return x[rank * len(x) // world : (rank + 1) * len(x) // world]


# ---------------------------------------------------------------- one step


def _lava(rank: int, world: int, kind: str, *changes: str) -> Found:
    recipe, _ = tiny_lava("config.gather=grad", *changes)
    torch.manual_seed(0)
    method = LAVA(recipe.config)  # type: ignore[arg-type]
    module = parallel.wrap(method, kind, torch.device("cpu"))
    rows = 16  # batch norm over a handful of rows would blow rounding up
    _, whole = _view(rows)
    told = torch.arange(rows) % 5 != 1
    whole["text"] = Clip(whole["text"].data, whole["text"].length * told, whole["text"].span)
    view = {n: Clip(*(_mine(x, rank, world) for x in (c.data, c.length, c.span))) for n, c in whole.items()}
    losses = module(Batch(views=(view,), rows=_mine(torch.arange(rows), rank, world)), Clock())
    losses.total.backward()
    found = {f"gradient of {n}": parallel.whole(p.grad) for n, p in method.named_parameters() if p.grad is not None}
    found |= {f"loss {name}": distributed.average(term) for name, term in losses.terms.items()}
    method.after_step(Clock())
    with torch.no_grad():  # evaluation during training, of sharded parameters too
        vectors = method.eval().embed(view)["joint"]
    found |= {f"vectors of {stream}": distributed.gather(x, "detached") for stream, x in vectors.items()}
    return found | {f"kept {name}": parallel.whole(tensor) for name, tensor in model_tensors(method).items()}


def _norm(rank: int, world: int) -> Found:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4), BatchNorm(4), nn.GELU(), nn.Linear(4, 1))
    module = nn.parallel.DistributedDataParallel(net) if world > 1 else net
    loss = module(_mine(torch.randn(ROWS, 5), rank, world)).square().mean()
    loss.backward()
    found = {f"gradient of {name}": p.grad for name, p in net.named_parameters() if p.grad is not None}
    return {**found, "loss": distributed.average(loss), "variance": net[1].running_var}


def _gathered(rank: int, world: int) -> Found:
    """Keys from rows that do not lie in one piece, added to what has the same gradient."""
    keys, shift = torch.arange(12.0).view(2, 6).T.requires_grad_(), torch.zeros(6, 2, requires_grad=True)
    moved = 3 * shift  # before the keys are gathered, so after them on the way back
    everyone = distributed.gather(_mine(keys, rank, world) * 2)
    loss = ((everyone + moved) * torch.arange(6)[:, None]).sum() / world
    loss.backward()
    assert keys.grad is not None and shift.grad is not None
    found = {"keys": everyone.detach(), "gradient": keys.grad, "shift": shift.grad}
    return {name: distributed.average(x) * (1 if name == "keys" else world) for name, x in found.items()}


class RareConfig(Config):
    """Options of the toy method."""

    rare: bool = True


class Rare(Method):
    """A mean over rows, of which one layer sees only some (where FSDP2 allows that), and batch norm."""

    config_class: ClassVar[type[Config]] = RareConfig

    def __init__(self, config: RareConfig) -> None:
        super().__init__(config)
        self.options = config
        # No biases before batch norms: their gradients are rounding alone, which Adam would blow up.
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4, bias=False), BatchNorm(4), nn.Tanh()) for width in (2, 4, 4)
        )
        self.head = nn.Linear(4, 1)
        self.rare = nn.Linear(4, 1)

    def objective(self, batch: Batch, clock: Clock) -> Losses:
        x = torch.stack([batch.rows.float().sin(), batch.rows.float().cos()], dim=1)
        for block in self.blocks:
            x = block(x)
        error = self.head(x)[:, 0] - batch.rows / 10
        if (batch.rows < 3).any() or not self.options.rare:
            error = error + (self.rare(x)[:, 0] * (batch.rows < 3))
        if clock.step == Rare.explode_at and distributed.rank() == 1:
            error = error * math.inf
        return Losses({"error": error.square().mean()})

    explode_at: ClassVar[int] = -1


def _accumulated(rank: int, world: int) -> Found:
    """A layer that has a gradient in the first part of one process only."""
    torch.manual_seed(0)
    method = Rare(RareConfig())
    module = parallel.wrap(method, "ddp", torch.device("cpu"))
    for number, rows in enumerate((torch.tensor([1, 9, 5, 8]), torch.tensor([4, 6, 10, 7]))):
        part = Batch(views=(), rows=_mine(rows, rank, world))
        with module.no_sync() if world > 1 and number == 0 else torch.enable_grad():  # type: ignore[operator]
            backward(module(part, Clock()), None, 0.5, Clock(), [])
    return {f"gradient of {name}": p.grad for name, p in method.named_parameters() if p.grad is not None}


def _optimized(rank: int, world: int, kind: str, name: str) -> Found:
    """Three steps with clipping, of every optimizer."""
    torch.manual_seed(0)
    method = Rare(RareConfig())
    module = parallel.wrap(method, kind, torch.device("cpu"))
    optimizer = build_optimizer(method, OptimizerSpec.model_validate({"name": name, "lr": 0.1, "weight_decay": 0.1}))
    found = {}
    for step in range(3):
        optimizer.zero_grad()
        module(Batch(views=(), rows=_mine(torch.tensor([1, 4, 0, 8]), rank, world)), Clock()).total.backward()
        found[f"loss norm {step}"] = clip(optimizer, 0.5, None)
        optimizer.step()
    return found | {f"kept {key}": parallel.whole(tensor) for key, tensor in model_tensors(method).items()}


def _by_rule(rank: int, world: int) -> Found:
    """Each process harmonises its own gradients; the mean of both is applied (gradient-harmonization, section 10)."""
    weight, other = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    tables = [((1.0, 0.0), (-1.0, 1.0)), ((1.0, 2.0), (3.0, -1.0))]
    for va, vt in tables if world == 1 else tables[rank : rank + 1]:
        terms = {"va": weight @ torch.tensor(va), "vt": weight @ torch.tensor(vt)}
        if va[1] == 0:
            terms["va"] = terms["va"] + 2 * other[0]  # a gradient on one rank only
        backward(Losses(terms), Harmonization(mode="realign"), 0.5 if world == 1 else 1.0, Clock(), [weight, other])
    parallel.average_gradients([weight, other])
    assert weight.grad is not None and other.grad is not None
    torch.testing.assert_close(weight.grad, torch.tensor([2.25, 1.25]))
    return {"weight": weight.grad, "other": other.grad}


def _gathering_terms(rank: int, world: int) -> Found:
    """Gradients of VATT's two terms, taken one by one, each back through the gathering of keys."""
    method = _vatt(mean="global").double().train()
    module = parallel.wrap(method, "ddp", torch.device("cpu"))
    rows = 8
    view = {n: Clip(*(_mine(x, rank, world) for x in (c.data, c.length, c.span))) for n, c in _vatt_view(rows).items()}
    view = {n: replace(c, data=c.data.double() if c.data.is_floating_point() else c.data) for n, c in view.items()}
    drawn = {f"{stream}_permutation": torch.arange(8) for stream in ("video", "audio")}
    with method.given(drawn), module.no_sync() if world > 1 else nullcontext():  # type: ignore[operator]
        losses = module(Batch(views=(view,), rows=_mine(torch.arange(rows), rank, world)), Clock())
    parameters = list(method.parameters())
    backward(losses, Harmonization(mode="none"), 1.0, Clock(), parameters)
    parallel.average_gradients(parameters)
    return {f"gradient of {n}": p.grad for n, p in method.named_parameters() if p.grad is not None}


CASES: dict[str, tuple[Callable[..., Found], tuple[str, ...]]] = {
    "lava, ddp": (_lava, ("ddp",)),
    "lava, fsdp": (_lava, ("fsdp",)),
    "lava, ddp, batch norm, clamp": (_lava, ("ddp", "config.projection=mlp_bn", "config.temperature_max=10")),
    "lava, fsdp, batch norm, clamp": (_lava, ("fsdp", "config.projection=mlp_bn", "config.temperature_max=10")),
    "lava, ddp, zeroed text": (_lava, ("ddp", "config.mask_text=zero_embed")),
    "batch norm": (_norm, ()),
    "gathered keys": (_gathered, ()),
    "accumulation and an unused layer": (_accumulated, ()),
    "a rule over terms": (_by_rule, ()),
    "a rule over terms that gather": (_gathering_terms, ()),
    **{f"{name}, {kind}": (_optimized, (kind, name)) for kind in ("ddp", "fsdp") for name in ("adamw", "sgd", "lars")},
}


# ---------------------------------------------------------------- whole runs


def _recipe(**changes: Any) -> Recipe:
    look = {"windows": {"kind": "aligned"}, "views": [{"video": {"transform": {"kind": "video"}}}]}
    values = {
        "method": "tests.test_two_processes:Rare",
        "config": {},
        "train": look,
        "test": look,
        "batch": {"rows": 8, "accumulate": 2},
        "steps": 7,
        "optimizer": {"lr": 0.02, "weight_decay": 0.01},
        "gradients": {"clip_norm": 0.5},
        "ema": 0.9,
        "log_steps": 1,
        "keep": 100,
        "checkpoint_minutes": 0,
        "checkpoint_steps": 3,
    }
    return validate(Recipe, values | changes, "test")


class SharedLoader(FakeLoader):
    """Of each part of a batch, its rank's share."""

    def __init__(self, *arguments: Any, rank: int, world: int, **options: Any) -> None:
        super().__init__(*arguments, rank=rank, world=world, **options)
        self.rank, self.world = rank, world

    def epoch(self, *arguments: Any, **options: Any) -> Any:
        for batch in super().epoch(*arguments, **options):
            yield Batch(views=(), rows=_mine(batch.rows, self.rank, self.world))


def _fit(folder: str, name: str, **changes: Any) -> str:
    """Train, and return how it ended."""
    loop.Loader = SharedLoader  # type: ignore[misc]
    torch.manual_seed(0)
    recipe = _recipe(config={"rare": changes.get("parallel") != "fsdp"}, **changes)
    assert isinstance(recipe.config, RareConfig)
    try:
        loop.fit(Rare(recipe.config), recipe, Rows.open(Path(folder) / "m.csv"), Path(folder) / name)
    except TriptychError as error:
        return str(error)
    return "done"


def _work(rank: int, folder: str) -> tuple[dict[str, Found], dict[str, str]]:
    found = {name: function(rank, 2, *arguments) for name, (function, arguments) in CASES.items()}
    ends = {kind: _fit(folder, f"two-{kind}", parallel=kind) for kind in ("ddp", "fsdp")}
    Rare.explode_at = 4
    ends["not finite"] = _fit(folder, "not-finite")
    ends["not finite, fsdp"] = _fit(folder, "not-finite-fsdp", parallel="fsdp")
    Rare.explode_at = -1
    if rank == 1:
        FakeLoader.fails_at = 1
    ends["no data"] = _fit(folder, "no-data")
    (Path(folder) / "a-file").touch()
    ends["not writable"] = _fit(folder, "no-data/log.jsonl/run")
    ends["resumed"] = _fit(folder, "no-data")
    return found, ends


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("two")
    (path / "m.csv").write_text("path\n" + "".join(f"clip{n}.mp4\n" for n in range(20)))
    return path


@pytest.fixture(scope="module")
def two(folder: Path) -> list[tuple[dict[str, Found], dict[str, str]]]:
    return in_two_processes(_work, str(folder))


@pytest.fixture
def alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Found]:
    """Train, or go on, in one process, and return the weights."""
    monkeypatch.setattr(loop, "Loader", SharedLoader)

    def run(name: str, kind: str) -> Found:
        assert _fit(str(folder), name, parallel=kind) == "done"
        return load_file(folder / name / "model" / "model.safetensors")

    return run


def _assert_same(found: Mapping[str, Tensor], alone: Mapping[str, Tensor]) -> None:
    """Losses within 1e-5 of their value, gradients and weights within 1e-5 of the largest among them."""
    assert alone.keys() == found.keys()
    scale = max(float(value.abs().max()) for key, value in alone.items() if not key.startswith("loss"))
    for key, value in alone.items():
        if key.startswith("loss"):
            torch.testing.assert_close(found[key], value, rtol=1e-5, atol=0, msg=lambda text, key=key: f"{key}: {text}")
        else:
            assert float((found[key] - value).abs().max()) <= 1e-5 * scale, key


@pytest.mark.parametrize("name", CASES)
def test_two_are_one(two: list[tuple[dict[str, Found], dict[str, str]]], name: str) -> None:
    function, arguments = CASES[name]
    for found, _ in two:
        _assert_same(found[name], function(0, 1, *arguments))


@pytest.mark.parametrize(("name", "kind"), [("two-ddp", "ddp"), ("two-fsdp", "fsdp"), ("no-data", "ddp")])
def test_a_run_of_two_is_a_run_of_one(
    two: list[Any], alone: Callable[[str, str], Found], folder: Path, name: str, kind: str
) -> None:
    _assert_same(load_file(folder / name / "model" / "model.safetensors"), alone(f"one-{kind}", kind))
    for mine, theirs in zip(_log(folder / name), _log(folder / f"one-{kind}"), strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            assert value == pytest.approx(theirs[key], rel=2e-5), (key, mine["step"])


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_one_process_goes_on_where_two_stopped(
    two: list[Any], alone: Callable[[str, str], Found], folder: Path, kind: str
) -> None:
    run = folder / f"goes-on-{kind}"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "step-00000003").symlink_to(folder / f"two-{kind}" / "checkpoints" / "step-00000003")
    _assert_same(alone(run.name, kind), alone(f"one-{kind}", kind))


def test_both_end_together_and_say_the_same(two: list[tuple[dict[str, Found], dict[str, str]]]) -> None:
    (_, ends), (_, other) = two
    assert ends == other
    assert ends["ddp"] == ends["fsdp"] == ends["resumed"] == "done"
    for name in ("not finite", "not finite, fsdp"):
        assert ends[name].startswith("At step 4 the loss 'error' became inf; the batch held "), ends[name]
    assert ends["no data"] == "A decoding process ended unexpectedly."
    assert "cannot be written: Not a directory" in ends["not writable"]


def test_one_process_gathers_nothing() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    assert distributed.gather(x) is x and distributed.offset(x) == 0
    assert distributed.mean(torch.tensor(6.0), torch.tensor(3.0)) == 2
    assert distributed.mean(torch.tensor(0.0), torch.tensor(0.0)) == 0
    assert distributed.agree("a") == "a" and distributed.every(3) == [3]
