"""Convolutional networks (slug convnets-common): official state dicts filled by rule, and what is made of inputs.

Every network of a case is built from the shapes of its keys alone.
"""

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from triptych.encoders.audio_resnet import AudioResNet
from triptych.encoders.avid import AVIDAudio, AVIDVideo
from triptych.encoders.bottleneck_resnet import BottleneckResNet
from triptych.encoders.encoder import Encoder, Features
from triptych.encoders.s3d import S3D
from triptych.encoders.video_resnet import VideoResNet
from triptych.weights import convnets
from triptych.weights.s3d import configure_s3d, rename_s3d

FAMILIES: dict[str, tuple[type[Encoder], Callable[..., Any], Callable[..., Any]]] = {
    "audio_resnet": (AudioResNet, convnets.configure_spectrogram, convnets.rename_spectrogram),
    "avid_audio": (AVIDAudio, convnets.configure_avid_audio, convnets.rename_avid_audio),
    "avid_r2plus1d": (AVIDVideo, convnets.configure_avid_video, convnets.rename_avid_video),
    "coclr_r2d3d": (BottleneckResNet, convnets.configure_bottlenecks, convnets.rename_bottlenecks),
    "coclr_s3d": (S3D, configure_s3d, rename_s3d),
    "howto100m_s3d": (S3D, configure_s3d, rename_s3d),
    "slow": (BottleneckResNet, convnets.configure_bottlenecks, convnets.rename_bottlenecks),
    "torchvision": (VideoResNet, convnets.configure_video, convnets.rename_video),
    "tsm": (BottleneckResNet, convnets.configure_bottlenecks, convnets.rename_bottlenecks),
    "vmz": (VideoResNet, convnets.configure_video, convnets.rename_video),
    "xdc": (VideoResNet, convnets.configure_video, convnets.rename_video),
}
"""By the beginning of a network's name: our encoder, its configuration and its names from an official state dict."""
HEADS = ("fc", "blocks.5.proj")
"""Official names of the layer behind the pooled features."""
STAGES = (
    ("layer1", "layer2", "layer3", "layer4"),
    ("blocks.1", "blocks.2", "blocks.3", "blocks.4"),
    ("conv2x", "conv3x", "conv4x", "conv5x"),
    ("block1", "block2", "block3", "block4", "block5"),
    ("block1", "block2", "block3", "block4"),
    ("conv1", "gating", "mixed_3c", "mixed_4f", "mixed_5c"),
)
"""Official names of the stages whose maps ``Features.layers`` are."""


def fill(key: str, shape: list[int]) -> Tensor:
    """Return the tensor of a key by the rule of convnets-common, section 9."""
    if key.endswith("num_batches_tracked"):
        return torch.tensor(0)
    x = np.arange(int(np.prod(shape)), dtype=np.uint32) * np.uint32(2654435761) + np.uint32(zlib.crc32(key.encode()))
    x = (x ^ (x >> 15)) * np.uint32(2246822519)
    x = (x ^ (x >> 13)) * np.uint32(3266489917)
    s = torch.from_numpy((x ^ (x >> 16)) * (2 / 2**32) - 1)
    if key.endswith("running_mean"):
        s = 0.2 * s
    elif key.endswith("running_var") or (len(shape) == 1 and key.endswith("weight")):
        s = 1 + 0.2 * s
    elif len(shape) > 1:
        s = s * (6 / np.prod(shape[1:])) ** 0.5
    else:
        s = 0.2 * s
    return s.float().reshape(shape)


def check(case: Path) -> None:
    meta = json.loads((case / "meta.json").read_text())
    inputs, outputs = load_file(case / "inputs.safetensors"), load_file(case / "outputs.safetensors")
    for name, shown in meta["fill_examples"].items():
        found = fill(name, shown["shape"]).flatten()[:5]
        torch.testing.assert_close(found, torch.tensor(shown["first5"]), atol=1e-7, rtol=0)
    for name, facts in meta["nets"].items():
        keys = json.loads((case / f"{name}.keys.json").read_text())
        tensors = {key: fill(key, shape) for key, shape in dict(keys).items()}
        (family,) = [each for beginning, each in FAMILIES.items() if name.startswith(beginning)]
        build, configure, rename = family
        config = configure(tensors)
        encoder = build(config)
        encoder.load_state_dict(rename(tensors))
        assert sum(p.numel() for p in encoder.parameters()) == facts["params_no_head"], name
        data = inputs[facts["input"]]
        if encoder.modality == "audio":
            seen = data[:, 0]
        elif data.ndim == 4:  # the frames of one clip
            seen = data.permute(0, 2, 3, 1)[None]
        else:
            seen = data.permute(0, 2, 3, 4, 1)
        with torch.inference_mode():
            _compare(name, facts, encoder.eval()(seen, layers=True), tensors, outputs)
        if name.startswith("xdc"):
            other = build(config.model_copy(update={"eps": 1e-5}))  # the other family's (section 10, check 9)
            other.load_state_dict(rename(tensors))
            with torch.inference_mode(), pytest.raises(AssertionError, match="output: 0"):
                _compare(name, facts | {"stats": {}}, other.eval()(seen), tensors, outputs)


def _compare(
    name: str, facts: dict[str, Any], found: Features, tensors: dict[str, Tensor], outputs: dict[str, Tensor]
) -> None:
    layers = found.layers or ()
    stages = next((each for each in STAGES if len(each) == len(layers) and set(each) <= set(facts["stats"])), ())
    for stage, layer in list(zip(stages, layers, strict=True))[:-1]:  # the last map is in the output
        stats = facts["stats"][stage]
        if layer.numel() == np.prod(stats["shape"]):  # else what is cut off belongs to the stage here
            assert float(layer.mean()) == pytest.approx(stats["mean"], abs=1e-4 * stats["std"]), (name, stage)
            assert float(layer.std()) == pytest.approx(stats["std"], rel=1e-4), (name, stage)
    pooled = found.pooled
    assert found.grid is not None
    places = found.tokens.unflatten(1, found.grid)
    if name.startswith("tsm"):
        pooled = places.mean(dim=(2, 3))[0]  # of each frame
    elif name.startswith("slow"):  # the head reads windows of 2 x 2 x 2 places and takes the mean of its scores
        windows = functional.avg_pool3d(places.movedim(-1, 1), 2, 1)
        pooled = windows.mean(dim=(2, 3, 4))
    heads = [head for head in HEADS if f"{head}.weight" in tensors]
    scores = [functional.linear(pooled, tensors[f"{head}.weight"], tensors[f"{head}.bias"]) for head in heads]
    for output, shape in facts["output_shapes"].items():
        wanted = outputs[f"{name}/{output}"]
        value = pooled
        if heads and output != "mixed_5c":
            (value,) = scores
        elif found.tokens.numel() == np.prod(shape) and len(shape) == 5 and np.prod(shape[2:]) > 1:
            value = places.movedim(-1, 1)  # the last map itself
        error = float((value.flatten()[: wanted.numel()] - wanted.flatten()).abs().max() / wanted.abs().max())
        assert error <= 1e-4, f"{name}/{output}: {error}"
