"""XDC by hand: whose clusters each network predicts, new heads, and draws over clusters."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.processes import in_two_processes
from triptych.batch import Batch, Clip
from triptych.clustering import mutual_information
from triptych.data.loader import Loader
from triptych.media.collection import Rows
from triptych.method import Clock
from triptych.methods.xdc import SOURCES, XDC, XDCConfig, paper
from triptych.recipe import OptimizerSpec, Recipe, validate
from triptych.training import loop
from triptych.training.optimizers import build_optimizer

ROWS = 48


def _config(**changes: Any) -> XDCConfig:
    video = {"widths": (4, 8), "blocks": (1, 1), "stem": 4, "eps": 1e-5}
    audio = {"stem": 4, "widths": (4, 8), "blocks": (1, 1), "eps": 1e-5}
    return XDCConfig.model_validate({"video": video, "audio": audio, "clusters": 4, "dim": 4} | changes)


def _clip(data: Tensor) -> Clip:
    return Clip(data, torch.full((len(data),), data.shape[1]), torch.tensor([[0.0, 2.0]]).expand(len(data), 2))


class World:
    """Rows whose picture shows one of two brightnesses, whose sound is one of two others, of two levels."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.seen, self.heard = torch.randint(2, (2, ROWS), generator=generator)
        noise = 0.05 * torch.randn(ROWS, 4, 16, 16, 3, generator=generator)
        self.video = noise + (2.0 * self.seen - 1)[:, None, None, None, None]
        self.audio = 0.05 * torch.randn(ROWS, 16, 8, generator=generator) + (2.0 * self.heard - 1)[:, None, None]

    def batch(self, rows: Tensor) -> Batch:
        return Batch(({"video": _clip(self.video[rows]), "audio": _clip(self.audio[rows])},), rows)

    def batches(self, rows: Tensor | None = None) -> Iterator[Batch]:
        for part in torch.arange(ROWS).split(20):
            yield self.batch(part)

    def __len__(self) -> int:
        return ROWS


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def _begun(world: World, **changes: Any) -> XDC:
    torch.manual_seed(0)
    method = XDC(_config(**{"clusters": 2} | changes))
    method.before_epoch(Clock(), world)
    return method


def test_the_picture_learns_clusters_of_sounds_and_the_sound_those_of_pictures(world: World) -> None:
    method = _begun(world)
    assert {s: list(heads) for s, heads in method.heads.items()} == {"video": ["audio"], "audio": ["video"]}  # type: ignore[call-overload]
    labels = {source: method.targets.labels[:, number] for number, source in enumerate(method.sources)}
    assert (
        mutual_information(labels["audio"], world.heard) > 0.9 > 0.2 > mutual_information(labels["audio"], world.seen)
    )
    assert mutual_information(labels["video"], world.seen) > 0.9
    alone = _begun(world, variant="sdc")
    assert {s: list(heads) for s, heads in alone.heads.items()} == {"video": ["video"], "audio": ["audio"]}  # type: ignore[call-overload]


@pytest.mark.parametrize(("variant", "stream"), [("xdc", "audio"), ("sdc", "video"), ("mdc", "audio")])
def test_what_the_picture_predicts_is_what_the_variant_says(world: World, variant: str, stream: str) -> None:
    """Two classes are only seen, two others only heard (xdc, section 10, check 6)."""
    method = _begun(world, variant=variant)
    labels = method.targets.labels[:, method.sources.index(SOURCES[variant]["video"][0])]
    told = {"video": mutual_information(labels, world.seen), "audio": mutual_information(labels, world.heard)}
    assert max(told, key=lambda name: told[name]) == stream and told[stream] > 0.9


def test_mdc_without_its_cross_heads_is_sdc(world: World) -> None:
    both, alone = _begun(world, variant="mdc"), _begun(world, variant="sdc")
    alone.load_state_dict(both.state_dict() | {"targets.labels": both.targets.labels}, strict=False)
    batch = world.batch(torch.arange(8))
    for epoch, term in enumerate(("video_of_video", "audio_of_audio")):
        torch.testing.assert_close(
            both(batch, Clock(epoch=epoch)).terms[term], alone(batch, Clock(epoch=epoch)).terms[term]
        )


def test_the_networks_share_no_gradient(world: World) -> None:
    method = _begun(world, turns="joint")
    method(world.batch(torch.arange(8)), Clock()).terms["video_of_audio"].backward()
    for name, parameter in method.named_parameters():
        assert (parameter.grad is not None) is (name.split(".")[1] == "video"), name


def test_features_may_be_clustered_as_they_are(world: World) -> None:
    labels = _begun(world, dim=None).targets.labels
    assert mutual_information(labels[:, 0], world.heard) > 0.9


def test_epochs_train_the_networks_in_turn(world: World) -> None:
    method = _begun(world)
    batch = world.batch(torch.arange(8))
    for epoch, trained in ((0, "video"), (1, "audio")):
        method.zero_grad()
        losses = method(batch, Clock(epoch=epoch))
        assert list(losses.terms) == [f"{trained}_of_{'audio' if trained == 'video' else 'video'}"]
        losses.total.backward()
        reached = {name.split(".")[1] for name, p in method.named_parameters() if p.grad is not None}
        assert reached == {trained}
    joint = _begun(world, turns="joint")
    assert set(joint(batch, Clock()).terms) == {"video_of_audio", "audio_of_video"}
    assert joint.before_epoch(Clock(epoch=1), world).order is None


def test_two_heads_are_the_sum_of_both_and_one_cluster_of_both_is_shared(world: World) -> None:
    batch = world.batch(torch.arange(8))
    both = _begun(world, variant="mdc")
    assert set(both(batch, Clock()).terms) == {"video_of_audio", "video_of_video"}
    shared = _begun(world, variant="cdc")
    assert shared.sources == ["both"]
    assert set(shared(batch, Clock()).terms) == {"video_of_both"}


def test_clusters_of_both_do_not_see_how_loud_one_of_them_is(world: World) -> None:
    found = []
    for factor in (1.0, 1000.0):
        torch.manual_seed(0)
        method = XDC(_config(clusters=2, variant="cdc")).eval()
        encoder = method.encoders["audio"]
        plain = encoder.forward
        encoder.forward = lambda *a, plain=plain, f=factor: _louder(plain(*a), f)  # type: ignore[method-assign]
        torch.manual_seed(1)
        method.before_epoch(Clock(), world)
        found.append(method.targets.labels)
    assert torch.equal(*found)


def _louder(features: Any, factor: float) -> Any:
    features.pooled.mul_(factor)
    return features


def test_a_round_begins_with_new_heads_and_the_networks_go_on(world: World) -> None:
    method = _begun(world, clusters=4)
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    plan = method.before_epoch(Clock(epoch=1), world)
    assert plan.fresh == ()
    assert all(torch.equal(before[name], tensor) for name, tensor in method.state_dict().items())
    plan = method.before_epoch(Clock(epoch=2, round=1), world)
    assert set(plan.fresh) == {name for name, _ in method.named_parameters() if name.startswith("heads.")}
    for name, tensor in method.named_parameters():
        changed = not torch.equal(before[name], tensor)
        assert changed is (name.startswith("heads.") and name.endswith("weight")), name
    weight = torch.cat(
        [head.detach().flatten() for name, head in method.named_parameters() if name in plan.fresh and head.ndim > 1]
    )
    assert 0.007 < float(weight.std()) < 0.013
    assert all(
        not tensor.any() for name, tensor in method.named_parameters() if name in plan.fresh and tensor.ndim == 1
    )
    assert method.targets.agreement.min() > 0.3  # nothing was learnt between: the clusters are much the same


def test_heads_have_no_momentum() -> None:
    method = XDC(_config(turns="joint"))
    optimizer = build_optimizer(method, OptimizerSpec(name="sgd", momentum=0.9))
    for parameter in method.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in method.named_parameters():
        kept = optimizer.state.get(parameter, {}).get("momentum_buffer")
        assert (kept is None) is name.startswith("heads."), name


def test_rows_are_drawn_over_the_clusters_that_the_network_predicts(world: World) -> None:
    method = _begun(world)
    labels = torch.zeros(ROWS, 2, dtype=torch.long)
    labels[:3, method.sources.index("audio")] = 1  # three sounds in a cluster of their own: half of the draws
    labels[:, method.sources.index("video")] = -1
    labels[40:, method.sources.index("video")] = 0
    method.targets.labels = labels
    order = method.before_epoch(Clock(epoch=0), world).order
    assert order is not None and 0.4 < float((order < 3).float().mean()) < 0.6
    order = method.before_epoch(Clock(epoch=1), world).order
    assert order is not None and int(order.min()) >= 40  # rows without a picture have no cluster


def test_before_the_first_round_there_is_a_loss(world: World) -> None:
    losses = XDC(_config())(world.batch(torch.arange(4)), Clock())
    assert losses.total.isfinite()


def test_published_sizes() -> None:
    config = paper("mdc").config
    assert isinstance(config, XDCConfig)
    with torch.device("meta"):
        method = XDC(config)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in method.encoders.items()}
    assert counts == {"video": 33_165_639, "audio": 11_202_528}
    assert sum(p.numel() for p in method.heads.parameters()) == 4 * (512 + 1) * 128


class FromWorld(Loader):
    """Eight rows a step in the order of the epoch, which trains one network, so it is planned."""

    world: ClassVar[World]  # type: ignore[assignment]

    def __init__(self, rows: Rows, *arguments: Any, **options: Any) -> None:
        self.rows, self.device = rows, torch.device("cpu")
        self.problems: list[tuple[str, str]] = []

    def steps(self, order: Tensor | None = None) -> int:
        return ROWS // 8

    def epoch(self, epoch: int, order: Tensor | None = None, skip: int = 0) -> Iterator[Batch]:
        assert order is not None
        for part in order.split(8)[skip:]:
            yield self.world.batch(part)

    def sweep(self, rows: Any = None, batch_rows: int = 32) -> Iterator[Batch]:
        yield from self.world.batches()

    def close(self) -> None:
        pass


def test_a_run_goes_on_in_the_middle_of_a_round(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "Loader", FromWorld)
    monkeypatch.setattr(FromWorld, "world", world, raising=False)
    (tmp_path / "m.csv").write_text("path\n" + "".join(f"clip{number}.mp4\n" for number in range(ROWS)))
    look = {"windows": {"kind": "aligned"}, "views": [{"video": {"transform": {"kind": "video"}}}]}
    values = {"method": "xdc", "config": _config(), "train": look, "test": look, "batch": {"rows": 8}, "rounds": 2}
    values |= {"steps": 9, "checkpoint_steps": 1, "keep": 99, "optimizer": {"name": "sgd", "lr": 0.01}}
    recipe = validate(Recipe, values, "test")

    def train(name: str, seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        model = loop.fit(XDC(_config()), recipe, Rows.open(tmp_path / "m.csv"), tmp_path / name)
        return load_file(model / "model.safetensors")

    wanted = train("whole", seed=0)
    # Six steps an epoch, nine a round: among the sounds of the first round, the pictures and the sounds of the second.
    for step in (8, 12, 17):
        folder = f"step-{step:08d}"
        (tmp_path / str(step) / "checkpoints").mkdir(parents=True)
        (tmp_path / str(step) / "checkpoints" / folder).symlink_to(tmp_path / "whole" / "checkpoints" / folder)
        found = train(str(step), seed=1)
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert torch.equal(found[name], tensor), (step, name)


class Share(World):
    """A process's share of the rows, in order."""

    def __init__(self, rank: int, processes: int) -> None:
        super().__init__()
        self.mine = torch.arange(ROWS).tensor_split(processes)[rank]

    def batches(self, rows: Tensor | None = None) -> Iterator[Batch]:
        for part in self.mine.split(20):
            yield self.batch(part)


def _planned(rank: int, processes: int, variant: str) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    method = XDC(_config(variant=variant, clusters=6))
    torch.manual_seed(3)
    order = method.before_epoch(Clock(), Share(rank, processes)).order
    assert order is not None
    return method.targets.labels, order


def _planned_by_two(rank: int) -> list[tuple[Tensor, Tensor]]:
    return [_planned(rank, 2, variant) for variant in ("xdc", "cdc")]


@pytest.mark.slow
def test_two_processes_come_to_the_clusters_and_the_order_of_one() -> None:
    for found in in_two_processes(_planned_by_two):
        for (labels, order), variant in zip(found, ("xdc", "cdc"), strict=True):
            alone, wanted = _planned(0, 1, variant)
            assert torch.equal(labels, alone) and torch.equal(order, wanted)
