"""Key names of published convolutional networks, to those of our encoders (convnets-common, sections 2 to 8)."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from triptych.encoders.audio_resnet import AudioResNetConfig, resnet18
from triptych.encoders.avid import AVIDAudioConfig, AVIDVideoConfig
from triptych.encoders.bottleneck_resnet import BottleneckResNetConfig
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
    r"^layer(\d+)\.(\d+)\.conv([123])(?:\.net)?\.weight$": "blocks.{block}.convolution{2}.weight",
    r"^layer(\d+)\.(\d+)\.bn([123])\.(\w+)$": "blocks.{block}.norm{2}.{3}",
    r"^layer(\d+)\.(\d+)\.downsample\.0\.weight$": "blocks.{block}.shortcut.weight",
    r"^layer(\d+)\.(\d+)\.downsample\.1\.(\w+)$": "blocks.{block}.shortcut_norm.{2}",
}
"""The same of its networks of images, which those of spectrograms, R2D3D-50 and TSM (with ``net``) keep."""
SLOW = {
    r"^blocks\.0\.conv\.weight$": "stem.weight",
    r"^blocks\.0\.norm\.(\w+)$": "stem_norm.{0}",
    r"^blocks\.(\d+)\.res_blocks\.(\d+)\.branch2\.conv_a\.weight$": "blocks.{block}.convolution1.weight",
    r"^blocks\.(\d+)\.res_blocks\.(\d+)\.branch2\.conv_b\.weight$": "blocks.{block}.convolution2.weight",
    r"^blocks\.(\d+)\.res_blocks\.(\d+)\.branch2\.conv_c\.weight$": "blocks.{block}.convolution3.weight",
    r"^blocks\.(\d+)\.res_blocks\.(\d+)\.branch2\.norm_a\.(\w+)$": "blocks.{block}.norm1.{2}",
    r"^blocks\.(\d+)\.res_blocks\.(\d+)\.branch2\.norm_b\.(\w+)$": "blocks.{block}.norm2.{2}",
    r"^blocks\.(\d+)\.res_blocks\.(\d+)\.branch2\.norm_c\.(\w+)$": "blocks.{block}.norm3.{2}",
    r"^blocks\.(\d+)\.res_blocks\.(\d+)\.branch1_conv\.weight$": "blocks.{block}.shortcut.weight",
    r"^blocks\.(\d+)\.res_blocks\.(\d+)\.branch1_norm\.(\w+)$": "blocks.{block}.shortcut_norm.{2}",
}
"""The same of pytorchvideo's Slow-R50."""
AVID_VIDEO = {
    r"^conv1\.0\.weight$": "stem.weight",
    r"^conv1\.1\.(\w+)$": "stem_norm.{0}",
    r"^conv(\d+)x\.(\d+)\.spt_conv([12])\.weight$": "blocks.{block}.space{2}.weight",
    r"^conv(\d+)x\.(\d+)\.tmp_conv([12])\.weight$": "blocks.{block}.time{2}.weight",
    r"^conv(\d+)x\.(\d+)\.spt_bn([12])\.(\w+)$": "blocks.{block}.space{2}_norm.{3}",
    r"^conv(\d+)x\.(\d+)\.tmp_bn1\.(\w+)$": "blocks.{block}.time1_norm.{2}",
    r"^conv(\d+)x\.(\d+)\.out_bn\.(\w+)$": "blocks.{block}.norm.{2}",
    r"^conv(\d+)x\.(\d+)\.res_conv\.weight$": "blocks.{block}.shortcut.weight",
}
"""The same of AVID's R(2+1)D."""
AVID_AUDIO = {
    r"^conv1\.0\.weight$": "stem.weight",
    r"^conv1\.1\.(\w+)$": "stem_norm.{0}",
    r"^block(\d+)()\.conv([12])\.weight$": "blocks.{block}.convolution{2}.weight",
    r"^block(\d+)()\.bn([12])\.(\w+)$": "blocks.{block}.norm{2}.{3}",
}
"""The same of AVID's Conv2D, whose stages are one block each, without a number."""
STAGES = (r"^layer(\d+)\.(\d+)\.", r"^blocks\.(\d+)\.res_blocks\.(\d+)\.", r"^conv(\d+)x\.(\d+)\.", r"^block(\d+)()\.")
"""Stage and block in the names of each family; stages count from 1, AVID's of video from 2."""
CLASSIFIER = re.compile(r"^((new_)?fc|blocks\.\d+\.proj)\.(weight|bias)$")
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
    """Return the sizes of an image network, of basic blocks or of bottlenecks, on spectrograms."""
    blocks = _count_blocks(tensors)
    widths = tuple(_shape(tensors, f"layer{stage}.0.conv2.weight")[0] for stage in range(1, len(blocks) + 1))
    deep = "layer1.0.conv3.weight" in tensors
    return resnet18().model_copy(update={"widths": widths, "blocks": blocks, "bottleneck": deep})


def configure_bottlenecks(tensors: Mapping[str, Tensor]) -> BottleneckResNetConfig:
    """Return the sizes of Slow-R50, R2D3D-50 or TSM by the shapes of its tensors.

    The first convolution moves by as many frames as R2D3D-50's does where it looks at several; TSM is MIT's.
    """
    blocks = _count_blocks(tensors)
    ours = rename_bottlenecks(tensors)
    firsts = [sum(blocks[:stage]) for stage in range(len(blocks))]
    stem = _shape(ours, "stem.weight")
    return BottleneckResNetConfig(
        stem=stem[0],
        stem_steps=stem[2],
        stem_stride=2 if stem[2] > 1 else 1,
        inner=tuple(_shape(ours, f"blocks.{first}.convolution2.weight")[0] for first in firsts),
        blocks=blocks,
        steps=tuple(_shape(ours, f"blocks.{first}.convolution1.weight")[2] for first in firsts),
        shift="mit" if any(".net." in key for key in tensors) else None,
    )


def configure_avid_video(tensors: Mapping[str, Tensor]) -> AVIDVideoConfig:
    """Return the sizes of AVID's R(2+1)D by the shapes of its tensors."""
    blocks = _count_blocks(tensors)
    widths = (_shape(tensors, f"conv{stage}x.0.out_bn.weight")[0] for stage in range(2, len(blocks) + 2))
    return AVIDVideoConfig(stem=_shape(tensors, "conv1.0.weight")[0], widths=tuple(widths), blocks=blocks)


def configure_avid_audio(tensors: Mapping[str, Tensor]) -> AVIDAudioConfig:
    """Return the sizes of AVID's Conv2D by the shapes of its tensors."""
    stages = range(1, len(_count_blocks(tensors)) + 1)
    widths = tuple(_shape(tensors, f"block{stage}.conv2.weight")[0] for stage in stages)
    return AVIDAudioConfig(stem=_shape(tensors, "conv1.0.weight")[0], widths=widths)


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


def rename_bottlenecks(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of Slow-R50, R2D3D-50 or TSM under the names of ``encoders.bottleneck_resnet``.

    TSM's come from a network of images: they get an axis of time. The prefix of its wrapper does not count.

    Raises:
        TriptychError: If a key is unknown; it names the key.
    """
    plain = {key.removeprefix("base_model."): tensor for key, tensor in tensors.items()}
    renamed = _rename(plain, SLOW if "blocks.0.conv.weight" in plain else IMAGE, {})
    return {name: tensor[:, :, None] if tensor.ndim == 4 else tensor for name, tensor in renamed.items()}


def rename_avid_video(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of AVID's R(2+1)D under the names of ``encoders.avid.AVIDVideo``.

    Raises:
        TriptychError: If a key is unknown; it names the key.
    """
    return _rename(tensors, AVID_VIDEO, {})


def rename_avid_audio(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of AVID's Conv2D under the names of ``encoders.avid.AVIDAudio``.

    Raises:
        TriptychError: If a key is unknown; it names the key.
    """
    return _rename(tensors, AVID_AUDIO, {})


def _rename(tensors: Mapping[str, Tensor], patterns: Mapping[str, str], words: Mapping[str, str]) -> dict[str, Tensor]:
    blocks = _blocks_by_stage(tensors)
    renamed = {}
    for key, tensor in tensors.items():
        if CLASSIFIER.match(key):
            continue
        for pattern, name in patterns.items():
            match = re.match(pattern, key)
            if match:
                found = match.groups()
                block = _place(blocks, found) if "{block}" in name else None
                renamed[name.format(*found, block=block, **words)] = tensor
                break
        else:
            raise TriptychError(f"The key '{key}' is none of a residual network's that is known here.")
    return renamed


def _place(blocks: Mapping[int, int], found: Sequence[str]) -> int:
    """Return the number, over all stages, of the block that a key's stage and number in it name."""
    return sum(count for stage, count in blocks.items() if stage < int(found[0])) + int(found[1] or 0)


def _count_blocks(tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    counts = _blocks_by_stage(tensors)
    return tuple(counts[stage] for stage in sorted(counts))


def _blocks_by_stage(tensors: Mapping[str, Tensor]) -> dict[int, int]:
    """Return how many blocks each stage has, by the number that their names give it."""
    counts: dict[int, int] = {}
    for key in tensors:
        for pattern in STAGES:
            match = re.match(pattern, key.removeprefix("base_model."))
            if match:
                stage, number = int(match[1]), int(match[2] or 0)
                counts[stage] = max(counts.get(stage, 0), number + 1)
    if not counts or sorted(counts) != list(range(min(counts), min(counts) + len(counts))):
        some = f"the key '{next(iter(tensors))}'" if tensors else "no key"
        raise TriptychError(f"These are no weights of a residual network: {some} names no stage of one.")
    return counts


def _shape(tensors: Mapping[str, Tensor], key: str) -> torch.Size:
    if key not in tensors:
        raise TriptychError(f"The key '{key}' is missing; these are no weights of a residual network of video.")
    return tensors[key].shape
