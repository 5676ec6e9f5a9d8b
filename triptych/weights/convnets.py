"""Key names of published convolutional networks, to those of our encoders (convnets-common, section 2 and 8)."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from triptych.encoders.audio_resnet import AudioResNetConfig, resnet18
from triptych.encoders.video_resnet import VideoResNetConfig, middle_planes
from triptych.errors import TriptychError

VIDEO = {
    r"^stem\.0\.weight$": "stem.{space}weight",
    r"^stem\.1\.(\w+)$": "{stem_norm}.{0}",
    r"^stem\.3\.weight$": "stem.temporal.weight",
    r"^stem\.4\.(\w+)$": "stem_norm.{0}",
    r"^layer(\d+)\.(\d+)\.conv([12])\.0\.weight$": "blocks.{block}.convolution{2}.weight",
    r"^layer(\d+)\.(\d+)\.conv([12])\.0\.0\.weight$": "blocks.{block}.convolution{2}.spatial.weight",
    r"^layer(\d+)\.(\d+)\.conv([12])\.0\.1\.(\w+)$": "blocks.{block}.convolution{2}.spatial_norm.{3}",
    r"^layer(\d+)\.(\d+)\.conv([12])\.0\.3\.weight$": "blocks.{block}.convolution{2}.temporal.weight",
    r"^layer(\d+)\.(\d+)\.conv([12])\.1\.(\w+)$": "blocks.{block}.norm{2}.{3}",
    r"^layer(\d+)\.(\d+)\.downsample\.0\.weight$": "blocks.{block}.shortcut.weight",
    r"^layer(\d+)\.(\d+)\.downsample\.1\.(\w+)$": "blocks.{block}.shortcut_norm.{2}",
}
"""Patterns of torchvision's names of video networks, which VMZ's and XDC's files have, too, and ours."""
IMAGE = {
    r"^conv1\.weight$": "stem.weight",
    r"^bn1\.(\w+)$": "stem_norm.{0}",
    r"^layer(\d+)\.(\d+)\.conv([12])\.weight$": "blocks.{block}.convolution{2}.weight",
    r"^layer(\d+)\.(\d+)\.bn([12])\.(\w+)$": "blocks.{block}.norm{2}.{3}",
    r"^layer(\d+)\.(\d+)\.downsample\.0\.weight$": "blocks.{block}.shortcut.weight",
    r"^layer(\d+)\.(\d+)\.downsample\.1\.(\w+)$": "blocks.{block}.shortcut_norm.{2}",
}
"""The same of its networks of images, of basic blocks, on spectrograms."""
CLASSIFIER = re.compile(r"^fc\.(weight|bias)$")
"""Of what the networks were trained on; no part of an encoder."""


def configure_video(tensors: Mapping[str, Tensor]) -> VideoResNetConfig:
    """Return the form and sizes of an R(2+1)D or R3D network or its kin, by the shapes of its tensors.

    Raises:
        TriptychError: If they are those of none.
    """
    blocks = _count_blocks(tensors)
    widths = tuple(_shape(tensors, f"layer{stage}.0.conv2.1.weight")[0] for stage in range(1, len(blocks) + 1))
    if "stem.3.weight" not in tensors:
        deep = [_shape(tensors, f"layer{stage}.0.conv1.0.weight")[2] == 3 for stage in range(1, len(blocks) + 1)]
        form = "r3d" if all(deep) else "mc" if deep[0] or _shape(tensors, "stem.0.weight")[2] == 3 else "rmc"
        turn = 2 + (deep.index(deep[-1]) if form != "r3d" else 0)
        return VideoResNetConfig(form=form, turn=turn, widths=widths, blocks=blocks, planes="torchvision", eps=1e-5)
    planes, eps = "vmz", 1e-3
    for stage in range(1, len(widths)):
        between = _shape(tensors, f"layer{stage + 1}.0.conv2.0.0.weight")[0]
        if between == middle_planes(widths[stage - 1], widths[stage]):
            planes, eps = "torchvision", 1e-5
        elif between != middle_planes(widths[stage], widths[stage]):
            raise TriptychError(f"'layer{stage + 1}.0.conv2.0.0.weight' has {between} channels, as no R(2+1)D has.")
    stem = _shape(tensors, "stem.0.weight")[0]
    return VideoResNetConfig(widths=widths, blocks=blocks, planes=planes, stem=stem, eps=eps)


def configure_spectrogram(tensors: Mapping[str, Tensor]) -> AudioResNetConfig:
    """Return the sizes of an image network of basic blocks on spectrograms."""
    blocks = _count_blocks(tensors)
    widths = tuple(_shape(tensors, f"layer{stage}.0.conv1.weight")[0] for stage in range(1, len(blocks) + 1))
    return resnet18().model_copy(update={"widths": widths, "blocks": blocks})


def rename_video(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a video network under the names of ``encoders.video_resnet.VideoResNet``.

    Raises:
        TriptychError: If a key is unknown; it names the key.
    """
    halves = "stem.3.weight" in tensors
    words = {"space": "spatial." if halves else "", "stem_norm": "stem.spatial_norm" if halves else "stem_norm"}
    return _rename(tensors, VIDEO, words)


def rename_spectrogram(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of an image network under the names of ``encoders.audio_resnet.AudioResNet``.

    Raises:
        TriptychError: If a key is unknown; it names the key.
    """
    return _rename(tensors, IMAGE, {})


def _rename(tensors: Mapping[str, Tensor], patterns: Mapping[str, str], words: Mapping[str, str]) -> dict[str, Tensor]:
    blocks = _count_blocks(tensors)
    renamed = {}
    for key, tensor in tensors.items():
        if CLASSIFIER.match(key):
            continue
        for pattern, name in patterns.items():
            match = re.match(pattern, key)
            if match:
                found = match.groups()
                place = _place(blocks, found) if "{block}" in name else ""
                renamed[name.format(*found, block=place, **words)] = tensor
                break
        else:
            raise TriptychError(f"The key '{key}' is none of a residual network's that is known here.")
    return renamed


def _place(blocks: Sequence[int], found: Sequence[str]) -> int:
    return sum(blocks[: int(found[0]) - 1]) + int(found[1])


def _count_blocks(tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    counts: dict[int, int] = {}
    for key in tensors:
        match = re.match(r"^layer(\d+)\.(\d+)\.", key)
        if match:
            stage, number = map(int, match.groups())
            counts[stage] = max(counts.get(stage, 0), number + 1)
    if not counts or sorted(counts) != list(range(1, len(counts) + 1)):
        raise TriptychError("These are no weights of a residual network: there is no 'layer1.0.' among the keys.")
    return tuple(counts[stage] for stage in sorted(counts))


def _shape(tensors: Mapping[str, Tensor], key: str) -> torch.Size:
    if key not in tensors:
        raise TriptychError(f"The key '{key}' is missing; these are no weights of a residual network of video.")
    return tensors[key].shape
