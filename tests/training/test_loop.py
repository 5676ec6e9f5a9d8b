"""The loop on a method of its own: exact resume, rounds, clean stops, and losses that are not finite."""

import json
import os
import re
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from triptych.batch import Batch, View
from triptych.data.loader import Loader
from triptych.encoders.encoder import Features
from triptych.errors import TriptychError, UsageError
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
    width: int = 6


class Queue(RunState):
    last: torch.Tensor
    targets: torch.Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(0))
        self.register_buffer("targets", None)  # sized by the first before_epoch


class Tiny(Method):
    """Learns a number for each row, with dropout, batch norm, a queue and a head that a new round makes anew."""

    config_class: ClassVar[type[Config]] = TinyConfig
    stop_at: ClassVar[int] = -1
    """Step at which the process is told to stop, once."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__(config)
        self.options = config
        self.net = nn.Sequential(
            nn.Linear(3, config.width), nn.BatchNorm1d(config.width), nn.Dropout(0.3), nn.Linear(config.width, 1)
        )
        self.head = nn.Linear(1, 1)
        self.queue = Queue()

    def objective(self, batch: Batch, clock: Clock) -> Losses:
        if clock.step == Tiny.stop_at:
            Tiny.stop_at = -1
            os.kill(os.getpid(), signal.SIGTERM)
        x = torch.stack([batch.rows.float().sin(), batch.rows.float().cos(), torch.ones(len(batch))], dim=1)
        noise = self.draw("noise", lambda: torch.randn(len(batch), 1))
        error = (self.head(self.net(x)) + 0.1 * noise - batch.rows[:, None] / 10).square().mean()
        if self.queue.targets is not None:
            error = error + 0.1 * (self.net(x) - self.queue.targets[batch.rows]).square().mean()
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
            self.queue.targets = torch.randn(len(sweep), 1)
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

    fails_at: ClassVar[int] = -1
    """Step of an epoch whose data cannot be had, once."""

    def epoch(self, epoch: int, order: torch.Tensor | None = None, skip: int = 0) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(epoch)
        rows = torch.randperm(ROWS, generator=generator) if order is None else order
        for number in range(skip, self.steps()):
            if number == FakeLoader.fails_at:
                FakeLoader.fails_at = -1
                raise TriptychError("A decoding process ended unexpectedly.")
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


def _run(recipe: Recipe, rows: Rows, out: Path, **options: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(recipe.seed)
    assert isinstance(recipe.config, TinyConfig)
    return load_file(fit(Tiny(recipe.config), recipe, rows, out, **options) / "model.safetensors")


def _log(out: Path) -> list[dict[str, Any]]:
    """Return the lines of the log without what the clock of the machine says."""
    timing = ("rows_per_second", "waiting", "seconds", "memory_gib")
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in timing} for line in lines]


def _interrupted(recipe: Recipe, rows: Rows, out: Path, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run until the process is told to stop in the step after ``step``."""
    monkeypatch.setattr(Tiny, "stop_at", step)
    with pytest.raises(Stopped):
        _run(recipe, rows, out)


def test_resuming_from_any_checkpoint_changes_nothing(rows: Rows, tmp_path: Path) -> None:
    recipe = _recipe(checkpoint_steps=1)
    options: dict[str, Any] = {"watch": lambda method, clock: {"progress": clock.progress}, "watch_epochs": 1}
    whole = _run(recipe, rows, tmp_path / "whole", **options)
    kept = checkpoint.find(tmp_path / "whole")
    assert [path.name for path in kept] == [f"step-{step:08d}" for step in range(19)]
    # The beginning, inside epochs, the end of an epoch (5, 14), of a round (9), and of the run.
    for step in (0, 1, 5, 7, 9, 11, 14, 17, 18):
        out = tmp_path / f"resumed-{step}"
        (out / "checkpoints").mkdir(parents=True)
        for folder in kept[: step + 1]:
            (out / "checkpoints" / folder.name).symlink_to(folder)
        (out / "log.jsonl").write_text((tmp_path / "whole" / "log.jsonl").read_text() + '{"step": 3')
        again = _run(recipe, rows, out, **options)
        assert whole.keys() == again.keys()
        for name, tensor in whole.items():
            assert torch.equal(tensor, again[name]), (step, name)
        assert _log(tmp_path / "whole") == _log(out), step


def test_the_clock_of_the_last_scores_is_the_end_of_the_last_round(rows: Rows, tmp_path: Path) -> None:
    clocks: list[Clock] = []
    _run(_recipe(), rows, tmp_path / "run", watch=lambda method, clock: clocks.append(clock) or {}, watch_epochs=1)
    assert [(clock.step, clock.epoch, clock.round, clock.progress) for clock in clocks] == [
        (5, 1, 0, 5 / 9),
        (9, 2, 0, 1.0),
        (14, 3, 1, 5 / 9),
        (18, 3, 1, 1.0),
    ]


class Plain(Method):
    """A mean over rows, without draws."""

    config_class: ClassVar[type[Config]] = Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))

    def objective(self, batch: Batch, clock: Clock) -> Losses:
        x = torch.stack([batch.rows.float().sin(), batch.rows.float().cos()], dim=1)
        return Losses({"error": (self.net(x)[:, 0] - batch.rows / 10).square().mean()})


def test_accumulated_parts_make_the_step_of_the_whole_batch(rows: Rows, tmp_path: Path) -> None:
    found = []
    for parts in (1, 2, 4):
        changes = {"method": "tests.training.test_loop:Plain", "batch": {"rows": 4, "accumulate": parts}}
        recipe = _recipe(**changes, ema=None, gradients={"clip_norm": 0.5})
        torch.manual_seed(0)
        out = tmp_path / str(parts)
        found.append(load_file(fit(Plain(Config()), recipe, rows, out) / "model.safetensors"))
        found[-1]["losses"] = torch.tensor([[line["loss"], line["loss.error"]] for line in _log(out)])
    for other in found[1:]:
        for name, tensor in found[0].items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"optimizer": {"lr": 0.02, "weight_decay": 0.02}}, "optimizer.weight_decay"),
        ({"config": {"width": 7}}, "config.width"),
        ({"ema": None}, "ema"),
        ({"schedules": {"main": {}, "late": {"shape": "constant"}}}, "schedules.late"),
    ],
)
@pytest.mark.parametrize("ended", [False, True])
def test_a_folder_with_a_run_of_another_recipe_is_refused(
    rows: Rows, tmp_path: Path, changes: dict[str, Any], key: str, ended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if ended:
        _run(_recipe(), rows, tmp_path / "run")
    else:
        _interrupted(_recipe(), rows, tmp_path / "run", 3, monkeypatch)
    with pytest.raises(UsageError, match=f"holds a run of another recipe: '{key}' differs"):
        _run(_recipe(**changes), rows, tmp_path / "run")


def test_a_folder_with_a_run_on_other_data_is_refused(rows: Rows, tmp_path: Path) -> None:
    _run(_recipe(), rows, tmp_path / "run")
    (tmp_path / "m.csv").write_text("path\n" + "".join(f"other{n}.mp4\n" for n in range(ROWS)))
    with pytest.raises(UsageError, match="has changed since"):
        _run(_recipe(), Rows.open(tmp_path / "m.csv"), tmp_path / "run")


def test_the_average_is_what_the_model_folder_holds(rows: Rows, tmp_path: Path) -> None:
    plain = _run(_recipe(ema=None), rows, tmp_path / "plain")
    averaged = _run(_recipe(), rows, tmp_path / "averaged")
    assert plain.keys() == averaged.keys() and "queue.last" not in plain
    assert not torch.equal(plain["net.0.weight"], averaged["net.0.weight"])


def test_a_frozen_group_stays_until_its_step(rows: Rows, tmp_path: Path) -> None:
    recipe = _recipe(checkpoint_steps=1, ema=None)
    _run(recipe, rows, tmp_path / "run")
    heads = [load_file(f / "model" / "model.safetensors")["head.weight"] for f in checkpoint.find(tmp_path / "run")]
    assert torch.equal(heads[0], heads[2]) and not torch.equal(heads[2], heads[3])


def test_sigterm_writes_a_checkpoint_and_the_run_goes_on(
    rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _run(_recipe(), rows, tmp_path / "whole")
    monkeypatch.setattr(Tiny, "stop_at", 5)
    with pytest.raises(Stopped, match=r"stopped at step 6 .*--resume"):
        _run(_recipe(), rows, tmp_path / "run")
    again = _run(_recipe(), rows, tmp_path / "run")
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())


def test_a_second_signal_is_held_back_only_if_it_echoes_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    with loop._stop_signals() as stop:
        for _ in range(2):  # torchrun passes a terminal's Ctrl-C on to processes that had it already
            os.kill(os.getpid(), signal.SIGINT)
        assert len(stop) == 2
        monkeypatch.setattr(loop, "ECHO", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_data_that_cannot_be_had_end_the_run_with_a_checkpoint(
    rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _run(_recipe(), rows, tmp_path / "whole")
    monkeypatch.setattr(FakeLoader, "fails_at", 3)
    with pytest.raises(TriptychError, match="A decoding process ended unexpectedly"):
        _run(_recipe(), rows, tmp_path / "run")
    assert checkpoint.find(tmp_path / "run")[-1].name == "step-00000003"
    again = _run(_recipe(), rows, tmp_path / "run")
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())


def test_a_signal_that_also_ends_the_workers_is_a_stop(
    rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeLoader, "fails_at", 3)
    real = FakeLoader.epoch

    def epoch(self: FakeLoader, *arguments: Any, **options: Any) -> Iterator[Batch]:
        for number, batch in enumerate(real(self, *arguments, **options)):
            if number == 5:  # of the last step before the failure, whose data is there already
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    monkeypatch.setattr(FakeLoader, "epoch", epoch)
    with pytest.raises(Stopped, match="stopped at step 2"):
        _run(_recipe(), rows, tmp_path / "run")


def test_a_loss_that_is_not_finite_names_step_term_and_files(rows: Rows, tmp_path: Path) -> None:
    with pytest.raises(TriptychError, match=r"At step 7 the loss 'error' became nan; the batch held .*clip\d+\.mp4"):
        _run(_recipe(config={"explode_at": 7}, checkpoint_steps=3), rows, tmp_path / "run")
    assert checkpoint.find(tmp_path / "run")[-1].name == "step-00000006"


def test_a_gradient_that_is_not_finite_is_not_applied(rows: Rows, tmp_path: Path) -> None:
    with pytest.raises(TriptychError, match="At step 4 the gradient became nan"):
        _run(_recipe(config={"steep_at": 4}, checkpoint_steps=1), rows, tmp_path / "run")
    kept = load_file(checkpoint.find(tmp_path / "run")[-1] / "model" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in kept.values())


def test_a_gradient_that_is_not_finite_counts_as_zero_if_asked_for(rows: Rows, tmp_path: Path) -> None:
    changes = {"config": {"steep_at": 4}, "gradients": {"not_finite": "zero"}}
    tensors = _run(_recipe(**changes), rows, tmp_path / "run")
    assert all(tensor.isfinite().all() for tensor in tensors.values())


@contextmanager
def _largest_file(size: int) -> Iterator[None]:
    """Let no file grow beyond ``size`` bytes: what a full disk looks like to whoever writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_full_disk_is_one_sentence_and_the_older_checkpoint_stays(
    rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = _recipe(config={"width": 2000})
    whole = _run(recipe, rows, tmp_path / "whole")
    out = tmp_path / "run"
    _interrupted(recipe, rows, out, 3, monkeypatch)
    before = sorted(out.rglob("*"))
    monkeypatch.setattr(Tiny, "stop_at", 6)
    with _largest_file(20_000), pytest.raises(TriptychError) as told:
        _run(recipe, rows, out)
    assert re.fullmatch(
        r"\S*step-00000007 cannot be written: .*File too large.*; what was there before is as it was. "
        r"Set this right, then resume the run\.",
        str(told.value),
    )
    assert sorted(out.rglob("*")) == before
    again = _run(recipe, rows, out)
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())


def test_a_disk_that_is_full_from_the_start_is_told_before_the_first_step(rows: Rows, tmp_path: Path) -> None:
    with _largest_file(10_000), pytest.raises(TriptychError, match="step-00000000 cannot be written"):
        _run(_recipe(config={"width": 2000}), rows, tmp_path / "run")
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_a_log_that_cannot_grow_is_one_sentence(rows: Rows, tmp_path: Path) -> None:
    with _largest_file(12_000), pytest.raises(TriptychError, match=r"log\.jsonl cannot be written: File too large"):
        _run(_recipe(steps=100), rows, tmp_path / "run")


def test_what_a_killed_process_left_is_cleared_away(rows: Rows, tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints" / ".step-00000003.77.partial" / "model").mkdir(parents=True)
    (tmp_path / "run" / ".recipe.77.partial.json").write_text("{")
    (tmp_path / "run" / ".model.77.partial").mkdir()
    _run(_recipe(), rows, tmp_path / "run")
    assert not [path for path in (tmp_path / "run").rglob("*") if "partial" in path.name]


def test_before_epoch_must_set_parameters_in_place_and_know_their_names(
    rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replace(self: Tiny, clock: Clock, sweep: Sweep) -> Plan:
        self.head = nn.Linear(1, 1)
        return Plan()

    monkeypatch.setattr(Tiny, "before_epoch", replace)
    with pytest.raises(TriptychError, match=r"replaced the parameter 'head\.\w+'; it must set it in place"):
        _run(_recipe(), rows, tmp_path / "one")
    monkeypatch.setattr(Tiny, "before_epoch", lambda self, clock, sweep: Plan(fresh=("heed.weight",)))
    with pytest.raises(TriptychError, match=r"calls 'heed\.weight' fresh"):
        _run(_recipe(), rows, tmp_path / "other")


def test_fresh_parameters_lose_their_moments_and_their_average(rows: Rows, tmp_path: Path) -> None:
    recipe = _recipe()
    training = loop._prepare(Tiny(TinyConfig()), recipe)
    named = dict(training.method.named_parameters())
    for parameter in named.values():
        parameter.grad = torch.ones_like(parameter)
    training.optimizer.step()
    fake = FakeLoader(rows, None, recipe.batch, rank=0, world=1)
    run = loop._Run(training, recipe, fake, fake, training.method, 9, None, tmp_path, None, (), [])
    training.position.round = 1
    run._plan()
    assert named["head.weight"] not in training.optimizer.state
    assert {"exp_avg", "exp_avg_sq", "step"} == training.optimizer.state[named["head.bias"]].keys()
    assert training.average is not None and torch.equal(training.average["head.weight"], torch.zeros(1, 1))
    assert not torch.equal(training.average["head.bias"], named["head.bias"])


def test_every_curve_is_in_the_log_and_terms_are_means_over_the_parts(rows: Rows, tmp_path: Path) -> None:
    _run(_recipe(schedules={"main": {"shape": "linear"}}), rows, tmp_path / "run")
    lines = _log(tmp_path / "run")
    assert [line["lr"] for line in lines[:2]] == [pytest.approx(0.02), pytest.approx(0.02 * 8 / 9)]
    assert [line["lr.main.0.04"] for line in lines[:2]] == [pytest.approx(0.04), pytest.approx(0.04 * 8 / 9)]
    for line in lines:
        assert line["loss"] == pytest.approx(line["loss.error"] + 0.5 * line["loss.drag"], rel=1e-5)
        assert line["seen"] == 2  # rows of a part


def test_half_precision_is_autocast_over_weights_and_losses_in_float32(rows: Rows, tmp_path: Path) -> None:
    half = _run(_recipe(precision="bfloat16", ema=None), rows, tmp_path / "half")
    whole = _run(_recipe(ema=None), rows, tmp_path / "whole")
    assert all(tensor.dtype == whole[name].dtype for name, tensor in half.items())
    losses = [[line["loss"] for line in _log(tmp_path / name)] for name in ("half", "whole")]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.2)


def test_tensorboard_tells_losses_and_scores(rows: Rows, tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    _run(_recipe(), rows, tmp_path / "run", tensorboard=True, watch=lambda method, clock: {"R@1": 2.0})
    events = reader.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 19))
    assert [(event.step, event.value) for event in events.Scalars("R@1")] == [(18, 2.0)]


def test_only_the_newest_checkpoints_are_kept(rows: Rows, tmp_path: Path) -> None:
    _run(_recipe(checkpoint_steps=2, keep=2), rows, tmp_path / "run")
    assert not [path for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.startswith(".")]
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


def test_a_damaged_checkpoint_is_named(rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _interrupted(_recipe(), rows, tmp_path / "run", 5, monkeypatch)
    folder = checkpoint.find(tmp_path / "run")[-1]
    tensors = ("optimizer.safetensors", "run.safetensors", "model/model.safetensors")
    for name in (*tensors, "state.json", "model/config.json"):
        whole = (folder / name).read_bytes()
        for cut in (whole[:0], whole[:7], whole[:-10]):
            (folder / name).write_bytes(cut)
            with pytest.raises(TriptychError, match=f"step-00000006/{name}.*(is missing or damaged|cannot be read)"):
                checkpoint.restore(folder, loop._prepare(Tiny(TinyConfig()), _recipe()))
        (folder / name).write_bytes(whole)
    checkpoint.restore(folder, loop._prepare(Tiny(TinyConfig()), _recipe()))


def test_a_checkpoint_of_another_format_or_shape_is_named(
    rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _interrupted(_recipe(), rows, tmp_path / "run", 5, monkeypatch)
    folder = checkpoint.find(tmp_path / "run")[-1]
    weights = load_file(folder / "model" / "model.safetensors")
    save_file(weights | {"head.bias": torch.zeros(())}, folder / "model" / "model.safetensors")
    with pytest.raises(TriptychError, match=r"'head\.bias' has the shape \(\), the configuration wants \(1,\)"):
        _run(_recipe(), rows, tmp_path / "run")
    config = json.loads((folder / "model" / "config.json").read_text())
    (folder / "model" / "config.json").write_text(json.dumps(config | {"format": 7}))
    with pytest.raises(TriptychError, match=r"model has model format 7 .*this version reads format 1"):
        _run(_recipe(), rows, tmp_path / "run")


def test_loading_weights_of_another_shape_names_the_tensor() -> None:
    with pytest.raises(
        TriptychError, match=r"'net\.0\.weight' has the shape \(6, 3\), the configuration wants \(4, 3\)"
    ):
        tensors = {n: t for n, t in Tiny(TinyConfig()).state_dict().items() if "queue" not in n}
        load_tensors(Tiny(TinyConfig(width=4)), tensors, "x")


def _selected(**changes: Any) -> Recipe:
    return _recipe(rounds=1, steps=20, batch={"rows": 4}, keep=1, selection={"score": "good", **changes})


def _watch(*values: float) -> Any:
    """Return a watch that gives these scores for the ends of the epochs (of five steps), in order."""
    return lambda method, clock: {"good": values[clock.step // 5 - 1], "other": 0.0}


def test_the_best_weights_are_kept_and_become_the_model(rows: Rows, tmp_path: Path) -> None:
    everything = _recipe(rounds=1, steps=20, batch={"rows": 4}, checkpoint_steps=5)
    _run(everything, rows, tmp_path / "all")
    for lower, values in ((False, (1.0, 3.0, 2.0, 3.0)), (True, (0.0, -3.0, -2.0, -3.0))):
        out = tmp_path / f"lower-{lower}"
        model = _run(_selected(lower=lower), rows, out, watch=_watch(*values))
        kept = [folder.name for folder in checkpoint.find(out)]
        assert kept == ["step-00000010", "step-00000020"]  # the best of keep=1, and the last
        wanted = checkpoint.weights_at(tmp_path / "all" / "checkpoints" / "step-00000010")
        assert (
            all(torch.equal(model[name], tensor) for name, tensor in wanted.items()) and model.keys() == wanted.keys()
        )
    last = _run(_selected(keep="last"), rows, tmp_path / "last", watch=_watch(1.0, 3.0, 2.0, 3.0))
    assert torch.equal(last["head.weight"], load_file(tmp_path / "all" / "model" / "model.safetensors")["head.weight"])


def test_a_run_ends_when_it_gets_no_better(rows: Rows, tmp_path: Path) -> None:
    _run(_selected(patience=2), rows, tmp_path / "run", watch=_watch(5.0, 4.0, float("nan"), 9.0))
    lines = _log(tmp_path / "run")
    assert [line["scores"]["good"] for line in lines if "scores" in line][:2] == [5.0, 4.0]
    assert max(line["step"] for line in lines) == 15
    assert [folder.name for folder in checkpoint.find(tmp_path / "run")] == ["step-00000005", "step-00000015"]


def test_a_selecting_run_goes_on_exactly(rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = _watch(1.0, 3.0, 2.0, 2.5)
    whole = _run(_selected(), rows, tmp_path / "whole", watch=watch)
    for step in (4, 5, 9, 11, 16):
        out = tmp_path / str(step)
        monkeypatch.setattr(Tiny, "stop_at", step)
        with pytest.raises(Stopped):
            _run(_selected(), rows, out, watch=watch)
        again = _run(_selected(), rows, out, watch=watch)
        assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items()), step
        assert [folder.name for folder in checkpoint.find(out)] == ["step-00000010", "step-00000020"], step


def test_a_selecting_run_needs_its_score(rows: Rows, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="selects by 'good' on held-out rows; there are none"):
        _run(_selected(), rows, tmp_path / "none")
    with pytest.raises(UsageError, match="selects by 'good'; measured are bad"):
        _run(_selected(), rows, tmp_path / "bad", watch=lambda method, clock: {"bad": 1.0})
