"""XDC by hand: whose clusters each network predicts, new heads, and draws over clusters."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from triptych.batch import Batch, Clip
from triptych.clustering import mutual_information
from triptych.method import Clock
from triptych.methods.xdc import XDC, XDCConfig, paper, small
from triptych.recipe import Recipe

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
    body, heads = XDC(_config()).parameter_groups()
    assert heads.options == {"momentum": 0.0, "nesterov": False} and not body.options
    assert all(name.startswith("heads.") for name in heads.parameters)


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


@pytest.mark.parametrize("recipe", [paper(), paper("cdc"), small()])
def test_published_sizes(recipe: Recipe) -> None:
    assert isinstance(recipe.config, XDCConfig)
    if recipe.method == "xdc" and recipe.config.clusters == 128:
        with torch.device("meta"):
            method = XDC(recipe.config)
        assert sum(p.numel() for p in method.encoders["video"].parameters()) == 33_165_639
        assert recipe.optimizer.name == "sgd"
