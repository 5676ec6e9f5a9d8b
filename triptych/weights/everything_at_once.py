"""Published weights of Everything at Once: key names of its authors' module to ours."""

import re
from collections.abc import Mapping

from torch import Tensor

from triptych.errors import TriptychError
from triptych.methods.everything_at_once import EverythingAtOnceConfig, paper, published
from triptych.recipe import Recipe

LICENCE = (
    "No licence is stated for these weights (ninatu/everything_at_once); parts of the code are BSD-3 and Apache-2.0."
)

DROPPED = re.compile(r"^(?:fusion\.norm|davenet\.batchnorm1)\.")
"""Layers of the authors' module that are never applied."""

RANDOM = re.compile(r"^words\.weight$")
"""The table of words, which the checkpoints lack: a word2vec file fills it (`--tokenizer FILE`)."""

HEAD_WIDTH = 64
"""Of the published models; no shape tells it."""
FEATURES = {
    4096: {"resnet152": 2048, "resnext101": 2048},
    1024: {"s3d": 1024},
    512: {"clip": 512},
}
"""By the width of their video tokens, the streams of the published models."""

NAMES = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"fusion\.(masking_token)", "fusion.{}"),
        (r"fusion\.blocks\.(\d+)\.(norm[12]\.\w+)", "fusion.blocks.{}.{}"),
        (r"fusion\.blocks\.(\d+)\.attn\.qkv\.(\w+)", "fusion.blocks.{}.attention.qkv.{}"),
        (r"fusion\.blocks\.(\d+)\.attn\.proj\.(\w+)", "fusion.blocks.{}.attention.output.{}"),
        (r"fusion\.blocks\.(\d+)\.mlp\.fc([12]\.\w+)", "fusion.blocks.{}.linear{}"),
        (r"(text|video|audio)_token_proj\.fc\.(\w+)", "tokens.{}.0.linear.{}"),
        (r"(text|video|audio)_token_proj\.cg\.fc\.(\w+)", "tokens.{}.0.gate.{}"),
        (r"(text|video|audio)_norm_layer\.(\w+)", "tokens.{}.1.{}"),
        (r"(text|video|audio)_proj\.fc\.(\w+)", "heads.{}.linear.{}"),
        (r"(text|video|audio)_proj\.cg\.fc\.(\w+)", "heads.{}.gate.{}"),
        (r"davenet\.conv1\.(weight)", "davenet.project.{}"),
        (r"davenet\.bn1\.(\w+)", "davenet.norm.{}"),
        (r"davenet\.layer(\d+)\.(\d+)\.(conv[12]\.weight)", "davenet.blocks.{}.{}.{}"),
        (r"davenet\.layer(\d+)\.(\d+)\.bn([12]\.\w+)", "davenet.blocks.{}.{}.norm{}"),
        (r"davenet\.layer(\d+)\.(\d+)\.downsample\.0\.(weight)", "davenet.blocks.{}.{}.shortcut.{}"),
        (r"davenet\.layer(\d+)\.(\d+)\.downsample\.1\.(\w+)", "davenet.blocks.{}.{}.shortcut_norm.{}"),
    )
)
"""Pattern of the authors' key and ours; stages of the audio network count from 1 there."""


def configure(tensors: Mapping[str, Tensor]) -> EverythingAtOnceConfig:
    """Return the configuration that the shapes tell; text comes as vectors, for the table of words is not among them.

    Raises:
        TriptychError: If a tensor is missing that tells a size, or the video tokens are of no published width.
    """
    named = {_bare(key): tensor for key, tensor in tensors.items()}
    try:
        width, video = named["video_token_proj.fc.weight"].shape
        first = named["davenet.conv1.weight"]
        stages = sorted({int(key.split(".")[1].removeprefix("layer")) for key in named if ".layer" in key})
        widths = [named[f"davenet.layer{stage}.0.conv1.weight"].shape[0] for stage in stages]
        config = {
            "word_width": named["text_token_proj.fc.weight"].shape[1],
            "dim": named["video_proj.fc.weight"].shape[0],
            "ratio": named["fusion.blocks.0.mlp.fc1.weight"].shape[0] / width,
        }
    except KeyError as error:
        raise TriptychError(f"The tensor {error} is missing; are these weights of Everything at Once?") from None
    if video not in FEATURES:
        raise TriptychError(
            f"Video tokens have {video} values; the published models' have {', '.join(map(str, FEATURES))}."
        )
    return EverythingAtOnceConfig(
        video=tuple(FEATURES[video]),
        video_widths=tuple(FEATURES[video].values()),
        mels=first.shape[2],
        audio_widths=(first.shape[0], *widths),
        audio_blocks=tuple(_count(named, rf"davenet\.layer{stage}\.(\d+)\.") for stage in stages),
        width=width,
        depth=_count(named, r"fusion\.blocks\.(\d+)\."),
        heads=width // HEAD_WIDTH,
        **config,
    )


def recipe(config: EverythingAtOnceConfig) -> Recipe:
    """Return the published recipe with the streams of these weights; CLIP's words are vectors of its own."""
    return published(config, None if config.video == ("clip",) else paper().tokenizer)


def rename(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the authors' tensors under the names of ``EverythingAtOnce``; its table of words, if any, is not there.

    Raises:
        TriptychError: If a key is unknown; it names the key.
    """
    renamed = {}
    for key, tensor in tensors.items():
        bare = _bare(key)
        if DROPPED.match(bare):
            continue
        for pattern, name in NAMES:
            match = pattern.fullmatch(bare)
            if match:
                parts = list(match.groups())
                if bare.startswith("davenet.layer"):
                    parts[0] = str(int(parts[0]) - 1)
                # A convolution over all mel bands is a linear layer.
                renamed[name.format(*parts)] = tensor.flatten(1) if bare == "davenet.conv1.weight" else tensor
                break
        else:
            raise TriptychError(f"The key '{key}' is none of Everything at Once's; are these its authors' weights?")
    return renamed


def _bare(key: str) -> str:
    """Return a key without what a module of several devices puts before it."""
    return key.removeprefix("module.")


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    return len({match.group(1) for key in tensors if (match := re.match(pattern, key))})
