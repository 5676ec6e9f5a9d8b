"""The loop on a method of its own: exact resume, rounds, clean stops, and losses that are not finite."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from triptych.batch import Batch, View
from triptych.data.loader import Loader
from triptych.encoders.encoder import Features
from triptych.errors import TriptychError
from triptych.media.collection import Rows
from triptych.method import Clock, Group, Losses, Method, Plan, RunState, Sweep
from triptych.model import load_tensors
from triptych.recipe import Config, Recipe, validate
from triptych.training import checkpoint, loop
from triptych.training.loop import Stopped, fit

ROWS = 20


class TinyConfig(Config):
    """Options of the toy method."""

    explode_at: int = -1
    steep_at: int = -1
    stop_at: int = -1
    width: int = 6


class Queue(RunState):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(0))


class Tiny(Method):
    """Learns a number for each row, with dropout, batch norm, a queue and a head that a new round makes anew."""

    config_class: ClassVar[type[Config]] = TinyConfig

    def __init__(self, config: TinyConfig) -> None:
        super().__init__(config)
        self.options = config
        self.net = nn.Sequential(
            nn.Linear(3, config.width), nn.BatchNorm1d(config.width), nn.Dropout(0.3), nn.Linear(config.width, 1)
        )
        self.head = nn.Linear(1, 1)
        self.queue = Queue()
        self.signalled = False

    def objective(self, batch: Batch, clock: Clock) -> Losses:
        if clock.step == self.options.stop_at and not self.signalled:
            self.signalled = True  # once: a second signal is not held back
            os.kill(os.getpid(), signal.SIGTERM)
        x = torch.stack([batch.rows.float().sin(), batch.rows.float().cos(), torch.ones(len(batch))], dim=1)
        noise = self.draw("noise", lambda: torch.randn(len(batch), 1))
        error = (self.head(self.net(x)) + 0.1 * noise - batch.rows[:, None] / 10).square().mean()
        if clock.step == self.options.explode_at:
            error = error * float("nan")
        if clock.step == self.options.steep_at:
            error = error + (error - error).clamp(min=0).sqrt()  # 0, with a slope that is not finite
        drag = 1e-3 * self.queue.last.sum() * error.detach()
        self.queue.last = torch.cat([self.queue.last, error.detach()[None]])[-5:]
        return Losses({"error": error + 0 * drag, "drag": drag + 0 * error}, {"drag": 0.5}, {"seen": len(batch)})

    def features(self, view: View) -> dict[str, Features]:
        return {}

    def parameter_groups(self) -> list[Group]:
        names = [name for name, _ in self.named_parameters()]
        head = tuple(name for name in names if name.startswith("head"))
        rest = tuple(name for name in names if not name.startswith("head"))
        return [Group(rest), Group(head, lr=2.0, decay="none", frozen_until=2, clip=0.5)]

    def before_epoch(self, clock: Clock, sweep: Sweep) -> Plan:
        if clock.round == 1 and clock.progress == 0:
            nn.init.zeros_(self.head.weight)
            return Plan(fresh=("head.weight",))
        return Plan(order=torch.randperm(ROWS) if clock.epoch % 2 else None)


class FakeLoader(Loader):
    """Batches without media, drawn like the real loader's: from the epoch alone."""

    def __init__(self, rows: Rows, viewing: Any, batch: Any = None, *, rank: int, world: int, **_: Any) -> None:
        self.rows, self.batch, self.device = rows, batch, torch.device("cpu")
        self.problems: list[tuple[str, str]] = []

    def steps(self, order: torch.Tensor | None = None) -> int:
        return ROWS // self.batch.rows

    def epoch(self, epoch: int, order: torch.Tensor | None = None, skip: int = 0) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(epoch)
        rows = torch.randperm(ROWS, generator=generator) if order is None else order
        for number in range(skip, self.steps()):
            part = rows[number * self.batch.rows : (number + 1) * self.batch.rows]
            for piece in part.chunk(self.batch.accumulate):
                yield Batch(views=(), rows=piece)

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def fake_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "Loader", FakeLoader)


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    (tmp_path / "m.csv").write_text("path\n" + "".join(f"clip{n}.mp4\n" for n in range(ROWS)))
    return Rows.open(tmp_path / "m.csv")


def _recipe(**changes: Any) -> Recipe:
    look = {"windows": {"kind": "aligned"}, "views": [{"video": {"transform": {"kind": "video"}}}]}
    values = {
        "method": "tests.training.test_loop:Tiny",
        "config": {},
        "train": look,
        "test": look,
        "batch": {"rows": 4, "accumulate": 2},
        "rounds": 2,
        "steps": 9,
        "optimizer": {"lr": 0.02, "weight_decay": 0.01},
        "gradients": {"clip_norm": 1.0},
        "ema": 0.9,
        "log_steps": 1,
        "keep": 100,
        "checkpoint_minutes": 0,
    }
    return validate(Recipe, values | changes, "test")


def _run(recipe: Recipe, rows: Rows, out: Path) -> dict[str, torch.Tensor]:
    torch.manual_seed(recipe.seed)
    assert isinstance(recipe.config, TinyConfig)
    return load_file(fit(Tiny(recipe.config), recipe, rows, out) / "model.safetensors")


def test_resuming_from_any_checkpoint_changes_nothing(rows: Rows, tmp_path: Path) -> None:
    recipe = _recipe(checkpoint_steps=1)
    whole = _run(recipe, rows, tmp_path / "whole")
    kept = checkpoint.find(tmp_path / "whole")
    assert len(kept) == 18
    for number in (1, 5, 9, 12, 17):
        out = tmp_path / f"resumed-{number}"
        (out / "checkpoints").mkdir(parents=True)
        for folder in kept[:number]:
            (out / "checkpoints" / folder.name).symlink_to(folder)
        (out / "log.jsonl").write_text((tmp_path / "whole" / "log.jsonl").read_text() + '{"step": 3')
        again = _run(recipe, rows, out)
        assert whole.keys() == again.keys()
        for name, tensor in whole.items():
            assert torch.equal(tensor, again[name]), (number, name)
        timing = ("rows_per_second", "waiting", "seconds", "memory_gib")
        logs = []
        for run in (tmp_path / "whole", out):
            lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
            logs.append([{k: v for k, v in line.items() if k not in timing} for line in lines])
        assert logs[0] == logs[1]


def test_the_average_is_what_the_model_folder_holds(rows: Rows, tmp_path: Path) -> None:
    plain = _run(_recipe(ema=None), rows, tmp_path / "plain")
    averaged = _run(_recipe(), rows, tmp_path / "averaged")
    assert plain.keys() == averaged.keys() and "queue.last" not in plain
    assert not torch.equal(plain["net.0.weight"], averaged["net.0.weight"])


def test_a_frozen_group_stays_until_its_step(rows: Rows, tmp_path: Path) -> None:
    recipe = _recipe(checkpoint_steps=1, ema=None)
    _run(recipe, rows, tmp_path / "run")
    heads = [load_file(f / "model" / "model.safetensors")["head.weight"] for f in checkpoint.find(tmp_path / "run")]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[1], heads[2])


def test_sigterm_writes_a_checkpoint_and_the_run_goes_on(rows: Rows, tmp_path: Path) -> None:
    whole = _run(_recipe(), rows, tmp_path / "whole")
    with pytest.raises(Stopped, match=r"stopped at step 6 .*--resume"):
        _run(_recipe(config={"stop_at": 5}), rows, tmp_path / "run")
    again = _run(_recipe(), rows, tmp_path / "run")
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())


def test_a_loss_that_is_not_finite_names_step_term_and_files(rows: Rows, tmp_path: Path) -> None:
    with pytest.raises(TriptychError, match=r"At step 7 the loss 'error' became nan; the batch held .*clip\d+\.mp4"):
        _run(_recipe(config={"explode_at": 7}, checkpoint_steps=3), rows, tmp_path / "run")
    assert checkpoint.find(tmp_path / "run")[-1].name == "step-00000006"


def test_a_gradient_that_is_not_finite_is_not_applied(rows: Rows, tmp_path: Path) -> None:
    with pytest.raises(TriptychError, match="At step 4 the gradient became nan"):
        _run(_recipe(config={"steep_at": 4}, checkpoint_steps=1), rows, tmp_path / "run")
    kept = load_file(checkpoint.find(tmp_path / "run")[-1] / "model" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in kept.values())


def test_a_full_disk_is_one_sentence_and_the_older_checkpoint_stays(rows: Rows, tmp_path: Path) -> None:
    import resource

    recipe = _recipe(checkpoint_steps=3, config={"width": 2000})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(TriptychError, match="cannot be written"):
            _run(recipe, rows, tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert checkpoint.find(tmp_path / "run") == [] and not list((tmp_path / "run" / "checkpoints").glob("*"))


def test_only_the_newest_checkpoints_are_kept(rows: Rows, tmp_path: Path) -> None:
    _run(_recipe(checkpoint_steps=2, keep=2), rows, tmp_path / "run")
    assert [path.name for path in checkpoint.find(tmp_path / "run")] == ["step-00000016", "step-00000018"]


def test_watch_is_asked_and_its_scores_are_logged(rows: Rows, tmp_path: Path) -> None:
    torch.manual_seed(0)
    recipe = _recipe()
    asked = []

    def watch(method: Method, clock: Clock) -> dict[str, float]:
        assert not method.training
        asked.append(clock.step)
        return {"score": 1.5}

    fit(Tiny(TinyConfig()), recipe, rows, tmp_path / "run", watch=watch, watch_epochs=2)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert asked[-1] == 18 and len(asked) >= 2
    assert sum("scores" in line for line in lines) == len(asked)


def test_a_damaged_checkpoint_is_named(rows: Rows, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        _run(_recipe(config={"stop_at": 5}), rows, tmp_path / "run")
    (path,) = (tmp_path / "run" / "checkpoints").glob("*/optimizer.safetensors")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(TriptychError, match=r"optimizer\.safetensors is missing or damaged"):
        _run(_recipe(), rows, tmp_path / "run")


def test_loading_weights_of_another_shape_names_the_tensor() -> None:
    with pytest.raises(
        TriptychError, match=r"'net\.0\.weight' has the shape \(6, 3\), the configuration wants \(4, 3\)"
    ):
        tensors = {n: t for n, t in Tiny(TinyConfig()).state_dict().items() if "queue" not in n}
        load_tensors(Tiny(TinyConfig(width=4)), tensors, "x")
