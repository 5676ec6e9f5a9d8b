"""LAVISH's AVE model against the authors' code: adapters, features, probabilities, loss, gradients.

The authors put (rows, width, places) into convolutions and batch norms of pictures by one axis more, of size 1. On such
views torch's batch norm in evaluation mode, on the CPU (2.13), gives a wrong gradient of its input: finite differences
show it, and that ours is right. The gradients of a case are therefore compared with those of our model in the authors'
layout, and ours with finite differences.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from triptych.batch import Batch, Clip, View
from triptych.layers.adapters import GroupedLinear, LatentAdapter
from triptych.layers.batch_norm import BatchNorm
from triptych.method import Clock
from triptych.methods.lavish import IMAGES, LAVISH, ImageBackboneConfig, LAVISHConfig, SwinSize
from triptych.model import load_tensors
from triptych.weights.lavish import configure, rename, rename_trained


def _build(case: Path) -> LAVISH:
    sizes = json.loads((case / "meta.json").read_text())["config"]
    options = sizes["opt"]
    assert options["vis_encoder_type"] == "swin", "a case of another backbone needs its sizes read"
    assert options["is_audio_adapter_p1"] and options["is_audio_adapter_p2"] and not options["start_tune_layers"]
    weights = load_file(case / "weights.safetensors")
    size = SwinSize(
        size=sizes["img"],
        width=sizes["embed"],
        depths=tuple(sizes["depths"]),
        heads=tuple(sizes["heads"]),
        window=sizes["window"],
    )
    config = LAVISHConfig(
        base=IMAGES,
        base_config=ImageBackboneConfig(size=size),
        classes=tuple(map(str, range(load_file(case / "inputs.safetensors")["gt"].shape[1]))),
        tokens=options["num_tokens"] if options["is_multimodal"] else 0,
        reduction=options["Adapter_downsample"],
        groups=options["num_conv_group"],
        batch_norm=bool(options["is_bn"]),
        norm_before=bool(options["is_before_layernorm"]),
        norm_after=bool(options["is_post_layernorm"]),
        audio_gate=bool(options["is_gate"]),
        hidden=sizes["hidden"],
    )
    read = configure(weights).model_copy(update={"base_config": config.base_config})  # the shapes tell no window
    assert read == config
    method = LAVISH(config).eval()
    assert method.encoder("video").width == sizes["final_dim"]
    load_tensors(method, rename(weights), str(case))
    return method


def _listen(method: LAVISH, found: dict[str, Tensor]) -> None:
    """Keep what every adapter reads and says, under the authors' names; theirs are (rows, width, places, 1)."""
    for stream, name in (("audio", "audio"), ("video", "vis")):
        blocks = method.adapters[stream]
        assert isinstance(blocks, nn.ModuleList)
        for number, pair in enumerate(blocks):
            for part, place in ((pair.attend, "p1"), (pair.feed, "p2")):
                assert isinstance(part, LatentAdapter)

                def keep(
                    module: nn.Module,
                    given: tuple[Tensor, ...],
                    said: Tensor,
                    key: str = f"{name}_adapter_blocks_{place}.{number}",
                ) -> None:
                    for kind, value in (("in_x", given[0]), ("in_other", given[1]), ("out", said)):
                        found[f"adapter_{kind}/{key}"] = value.transpose(1, 2)[..., None]

                part.register_forward_hook(keep)


def _in_authors_layout(
    self: LatentAdapter, x: Tensor, other: Tensor | None = None, pairs: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """The forward of ``LatentAdapter`` on (rows, width, places, 1)."""

    def picture(x: Tensor) -> Tensor:
        return x.transpose(1, 2).unsqueeze(-1)

    def linear(x: Tensor, layer: GroupedLinear) -> Tensor:
        return functional.conv2d(x, layer.weight[..., None, None], groups=layer.groups)

    def normalise(x: Tensor, norm: nn.Module) -> Tensor:
        if not isinstance(norm, BatchNorm):
            return x
        return functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)

    if self.tokens is not None and other is not None:
        x = x + self.read_gate * self.read(x, other)
    x = normalise(linear(picture(self.norm_before(x)), self.down), self.down_norm)
    if self.tokens is not None:
        x = x.relu()
    x = normalise(linear(x, self.up), self.up_norm)
    x = self.norm_after(x.squeeze(-1).transpose(1, 2))
    return x if self.gate is None else self.gate * x


def check(case: Path) -> None:
    """Compare every output of a case (slug lavish, part model)."""
    inputs, outputs = load_file(case / "inputs.safetensors"), load_file(case / "outputs.safetensors")
    tolerance = re.search(r"atol (\S+) rtol (\S+)", json.loads((case / "meta.json").read_text())["suggested_tolerance"])
    assert tolerance
    close = {"atol": float(tolerance[1]), "rtol": float(tolerance[2])}
    method, batch = _build(case), _batch(inputs)
    found: dict[str, Tensor] = {}
    _listen(method, found)
    rows = _rows(batch.views[0])
    found["classifier_input"] = method.features(rows)["video+audio"].pooled
    found["logits_before_softmax"] = method.predict(rows)["events"]
    found["probs"] = found["logits_before_softmax"].softmax(dim=-1)
    found["loss"] = method.objective(batch, Clock()).total

    ours = {key: rename_trained(key.removeprefix("grad/")) for key in outputs if key.startswith("grad/")}
    _check_gates(method, batch, [name for name in ours.values() if name.endswith("gate")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LatentAdapter, "forward", _in_authors_layout)
        gradients = _gradients(method, batch)
    found |= {key: gradients[name] for key, name in ours.items()}
    for key, wanted in outputs.items():
        torch.testing.assert_close(
            found[key].detach().reshape(wanted.shape), wanted, **close, msg=lambda m, key=key: f"{key}: {m}"
        )


def _batch(inputs: dict[str, Tensor]) -> Batch:
    """Return the segments of a case as windows of a second."""
    rows, count = inputs["image"].shape[:2]
    span = torch.zeros(rows, count, 2)
    steps = torch.full((rows, count), inputs["audio_spec"].shape[2])
    view = {
        "video": Clip(inputs["image"].movedim(2, -1)[:, :, None], torch.ones_like(steps), span),
        "audio": Clip(inputs["audio_spec"], steps, span),
    }
    seconds = torch.arange(count, dtype=torch.float32)
    drawn = {"windows": torch.stack([seconds, seconds + 1], dim=1).expand(rows, -1, -1), "start": torch.zeros(rows)}
    return Batch((view,), torch.arange(rows), drawn, {"segments": inputs["gt"].argmax(dim=1).view(rows, count)})


def _rows(view: View) -> View:
    """Return each window as a row, which is what all but the objective see."""
    return {
        s: Clip(clip.data.flatten(0, 1), clip.length.flatten(), clip.span.flatten(0, 1)) for s, clip in view.items()
    }


def _gradients(method: LAVISH, batch: Batch) -> dict[str, Tensor]:
    """Return the gradient of the loss by our names; the frozen base has none."""
    method.zero_grad()
    method.objective(batch, Clock()).total.backward()
    found = {name: x.grad.clone() for name, x in method.named_parameters() if x.grad is not None}
    assert not any(name.startswith("base.") for name in found)
    return found


def _check_gates(method: LAVISH, batch: Batch, names: list[str]) -> None:
    """Compare our gradients of some scalars with finite differences, in double precision."""
    method.double()
    view = {s: replace(clip, data=clip.data.double()) for s, clip in batch.views[0].items()}
    batch = replace(batch, views=(view,))
    gradients = _gradients(method, batch)

    def loss() -> float:
        # The house computes losses in float32, which is too coarse for differences.
        probabilities = method.predict(_rows(view))["events"][:, 0].softmax(dim=1)
        labels = functional.one_hot(batch.targets["segments"].flatten(), probabilities.shape[1]).double()
        return float(functional.binary_cross_entropy(probabilities, labels))

    with torch.no_grad():
        for name in names:
            gate = method.get_parameter(name)
            values = []
            for step in (1e-6, -2e-6):
                gate += step
                values.append(loss())
            gate += 1e-6
            assert float(gradients[name]) == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-3), name
    method.float()
