"""The base of downstream tasks: what is kept of a method, what is trained, how fast; and the linear head."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny import tiny_lava
from triptych.batch import Batch, Clip, View
from triptych.errors import TriptychError, UsageError
from triptych.method import Clock
from triptych.methods.lava import LAVA, LAVAConfig
from triptych.methods.supervised import Supervised, SupervisedConfig, like, upon
from triptych.recipe import Aligned, VideoTransform
from triptych.training.optimizers import build_optimizer


def _lava(*changes: str) -> LAVAConfig:
    config = tiny_lava(*changes)[0].config
    assert isinstance(config, LAVAConfig)
    return config


def _head(*changes: str, **options: Any) -> Supervised:
    torch.manual_seed(0)
    options = {"streams": ("video",), "classes": ("a", "b", "c"), "label": "kind", **options}
    return Supervised(SupervisedConfig(base="lava", base_config=_lava(*changes), **options))


def _view(config: LAVAConfig, rows: int = 4) -> View:
    generator = torch.Generator().manual_seed(1)
    video = torch.randn(rows, config.frames, config.size, config.size, 3, generator=generator)
    audio = torch.randn(rows, config.audio_steps, config.mels, generator=generator)

    def clip(data: Tensor) -> Clip:
        return Clip(data, torch.full((rows,), data.shape[1]), torch.zeros(rows, 2))

    return {"video": clip(video), "audio": clip(audio)}


def _batch(head: Supervised, targets: Tensor) -> Batch:
    view = _view(head.base.config, len(targets))  # type: ignore[arg-type]
    return Batch((view,), torch.arange(len(targets)), targets={"kind": targets})


def test_only_what_the_features_run_through_is_kept() -> None:
    head = _head()
    names = [name for name, _ in head.named_parameters()]
    assert all(name.startswith(("base.encoders.video.", "head.")) for name in names)
    assert head.width == 16 and head.encoder("video") is head.base.encoder("video")
    both = _head(streams=("video", "audio"))
    assert both.width == 32 and {name.split(".")[2] for name, _ in both.base.named_parameters(prefix="base")} == {
        "audio",
        "video",
    }


def test_pretrained_weights_are_put_in_and_checked() -> None:
    config = _lava()
    torch.manual_seed(5)
    pretrained, head = LAVA(config), _head()
    head.begin_with(pretrained.state_dict(), "model")
    view = _view(config)
    with torch.inference_mode():
        wanted = pretrained.eval().features(view)["video"].pooled
        assert torch.equal(head.eval().features(view)["video"].pooled, wanted)
    less = {name: tensor for name, tensor in pretrained.state_dict().items() if "video.project" not in name}
    with pytest.raises(TriptychError, match=r"model: the tensor 'encoders.video.project.weight' is missing"):
        head.begin_with(less, "model")
    with pytest.raises(TriptychError, match=r"'encoders.video.positions' has the shape \(\d+, 8\), the base wants"):
        head.begin_with(LAVA(_lava("config.width=8")).state_dict(), "model")


def test_a_base_of_other_sizes_resizes_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    head = _head()
    other = {name: torch.zeros_like(tensor) for name, tensor in head.base.state_dict().items()}
    monkeypatch.setattr(type(head.base), "resize", lambda self, tensors: {**other, **tensors})
    head.begin_with({"encoders.video.project.bias": torch.ones(16)}, "model")
    state = head.base.state_dict()
    assert state["encoders.video.project.bias"].eq(1).all() and state["encoders.video.positions"].eq(0).all()


def test_rates_fall_from_layer_to_layer() -> None:
    # vision-transformers-common, section 7: 12 blocks at 0.75 give 0.0238 for the patch embedding, 0.75 for the last.
    head = _head("config.layers=12", "config.width=8", layer_decay=0.75, base_lr=0.5)
    rates = {name: group.lr for group in head.parameter_groups() for name in group.parameters}
    assert rates["head.weight"] == 1.0
    assert rates["base.encoders.video.head.1.weight"] == 0.5
    assert rates["base.encoders.video.blocks.11.linear1.weight"] == 0.5 * 0.75
    assert rates["base.encoders.video.blocks.0.norm1.bias"] == 0.5 * 0.75**12
    for first in ("project.weight", "positions", "feature_token"):
        assert rates[f"base.encoders.video.{first}"] == pytest.approx(0.5 * 0.0238, rel=2e-3)
    assert len(rates) == len(list(head.parameters()))
    optimizer = build_optimizer(head, upon("lava", _lava(), tiny_lava()[0].test, ("video",), "kind").optimizer)
    decayed = {name for group in optimizer.param_groups if group["weight_decay"] for name in group["names"]}
    assert "base.encoders.video.blocks.0.linear1.weight" in decayed
    assert not {"base.encoders.video.positions", "base.encoders.video.feature_token", "head.bias"} & decayed


def test_layer_decay_wants_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    head = _head(layer_decay=0.5)
    del head.base.encoder("video").blocks
    with pytest.raises(UsageError, match="layer_decay needs blocks; VideoTokens of lava has none"):
        head.parameter_groups()


def test_a_frozen_base_stays_as_it_is() -> None:
    head = _head("config.dropout=0.5", frozen=True).train()
    assert head.training and not head.base.encoder("video").training
    assert [group.parameters for group in head.parameter_groups()] == [("head.weight", "head.bias")]
    head(_batch(head, torch.tensor([0, 1, 2, 0])), Clock()).total.backward()
    assert all(parameter.grad is None for parameter in head.base.parameters())
    assert head.head.weight.grad is not None


def test_a_base_may_be_frozen_until_a_step() -> None:
    head = _head(frozen_until=3).train()
    assert head.base.encoder("video").training
    assert {group.frozen_until for group in head.parameter_groups()} == {0, 3}
    batch = _batch(head, torch.tensor([0, 1, 2, 0]))
    for step, trained in ((0, False), (2, False), (3, True)):
        head.zero_grad()
        head(batch, Clock(step=step)).total.backward()
        assert all((parameter.grad is not None) is trained for parameter in head.base.parameters()), step


def test_a_base_may_be_trained_in_evaluation_mode() -> None:
    head = _head("config.dropout=0.5", base_mode="eval").train()
    assert not head.base.encoder("video").training
    head(_batch(head, torch.tensor([0, 1, 2, 0])), Clock()).total.backward()
    assert all(parameter.grad is not None for parameter in head.base.parameters())


def test_rows_without_labels_or_streams_do_not_count() -> None:
    head = _head(streams=("video", "audio")).eval()
    batch = _batch(head, torch.tensor([0, -100, 2, 1]))
    view = dict(batch.views[0])
    view["audio"] = Clip(view["audio"].data, torch.tensor([96, 96, 0, 0]), view["audio"].span)
    view["video"] = Clip(view["video"].data, torch.tensor([8, 8, 8, 0]), view["video"].span)
    whole = head.pooled(view)
    assert whole[2, 16:].eq(0).all() and whole[3].eq(0).all() and whole[:2].ne(0).any()
    scores = head.predict(view)["classes"]
    wanted = torch.nn.functional.cross_entropy(scores[[0, 2]], torch.tensor([0, 2]))
    found = head.objective(Batch((view,), batch.rows, targets=batch.targets), Clock())
    torch.testing.assert_close(found.total, wanted)
    only = head.pooled({"video": view["video"]})
    torch.testing.assert_close(only[:, :16], whole[:, :16])
    assert only[:, 16:].eq(0).all()


def test_fused_features_are_read_of_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    head = _head(streams=("video", "audio"))
    fused = _head()
    fused.options = fused.options.model_copy(update={"streams": ("video+audio",)})
    fused._widths = {"video+audio": 16}
    single = head.base.features

    def features(view: View) -> Any:
        found = single(view)
        return found | ({"video+audio": found["audio"]} if len(found) == 2 else {})

    monkeypatch.setattr(fused.base, "features", features)
    view = _view(head.base.config)  # type: ignore[arg-type]
    assert torch.equal(fused.pooled(view), single(view)["audio"].pooled)
    assert torch.equal(fused.pooled({"video": view["video"]}), single(view)["video"].pooled)


@pytest.mark.parametrize("over", ["mean", "sum"])
def test_several_labels_are_learned_by_the_sigmoid(over: str) -> None:
    head = _head(task="multilabel", smoothing=0.1, over_classes=over, weighting="inverse_frequency").eval()
    targets = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [math.nan] * 3])
    batch = _batch(head, targets)
    scores = head.predict(batch.views[0])["classes"][:3]
    smoothed = targets[:3] * 0.9 + 0.05
    each = torch.nn.functional.binary_cross_entropy_with_logits(scores, smoothed, reduction="none")
    each = each.sum(dim=1) if over == "sum" else each.mean(dim=1)
    # The first class is there once and the second twice, so the rows weigh (1 + 1/2) / 2, 1/2 and, without any, 0.
    wanted = (each * torch.tensor([0.75, 0.5, 0.0])).sum() / 3
    torch.testing.assert_close(head.objective(batch, Clock()).total, wanted)


def test_forms_of_the_head() -> None:
    assert _head(prior_bias=True).head.bias.tolist() == pytest.approx([-math.log(2)] * 3)
    small = _head(head_std=1e-3)
    assert 1e-4 < float(small.head.weight.detach().std()) < 2e-3 and small.head.bias.eq(0).all()
    group = _head(head_clipped=False).parameter_groups()[0]
    assert group.clip == math.inf and group.parameters == ("head.weight", "head.bias")
    view = _view(_lava())
    unit = _head(head_norm="unit").eval()
    unit.head.weight.data.copy_(torch.eye(16)[:3])
    unit.head.bias.data.zero_()
    pooled = unit.pooled(view)
    torch.testing.assert_close(unit.predict(view)["classes"], pooled[:, :3] / pooled.norm(dim=1, keepdim=True))
    batch = _head(head_norm="batch").train()
    inputs: list[Tensor] = []
    batch.head.register_forward_hook(lambda module, x, y: inputs.append(x[0]))
    batch.predict(view)
    torch.testing.assert_close(inputs[0].mean(dim=0), torch.zeros(16), atol=1e-5, rtol=0)
    assert not [name for name, p in batch.named_parameters() if name.startswith("norm") and p.requires_grad]
    layer = _head(head_norm="layer")
    assert {"norm.weight", "norm.bias"} <= set(layer.parameter_groups()[0].parameters)
    dropped = _head(head_dropout=0.9).train()
    assert not torch.equal(dropped.predict(view)["classes"], dropped.predict(view)["classes"])


def test_recipes_on_a_base_look_as_it_does() -> None:
    recipe = tiny_lava()[0]
    made = upon("lava", recipe.config, recipe.test, ("video",), "colour", frozen=True)
    assert set(made.train.views[0]) == set(made.test.views[0]) == {"video"}
    assert isinstance(made.train.windows, Aligned) and made.train.windows.seconds == 2.0
    transform = made.train.views[0]["video"].transform
    assert isinstance(transform, VideoTransform) and transform.crop == "random" and transform.flip == 0.5
    assert made.test.views[0]["video"] == recipe.test.views[0]["video"]
    assert isinstance(made.config, SupervisedConfig) and made.config.frozen and made.config.label == "colour"
    twin = like("lava", ("audio",), "kind")
    assert set(twin.train.views[0]) == {"audio"} and twin.tokenizer is None
