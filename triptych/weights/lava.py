"""Weights made with the authors' code of LAVA (none were published): key names of its module to ours."""

import re
from collections.abc import Mapping

from torch import Tensor

from triptych.errors import TriptychError
from triptych.methods.lava import LAVAConfig

LICENCE = "No weights were published and no licence is known; yours are what you have made."

STREAMS = {"a": "audio", "v": "video", "t": "text"}
RENAMES = (
    (r"^(?:encoder\.)?([avt])_encoder\.pos_embedding$", "encoders.{}.positions"),
    (r"^(?:encoder\.)?([avt])_encoder\.feat_token$", "encoders.{}.feature_token"),
    (r"^(?:encoder\.)?([avt])_encoder\.proj\.(weight|bias)$", "encoders.{}.project.{}"),
    (r"^(?:encoder\.)?(t)_encoder\.token_embedding\.weight$", "encoders.{}.embedding.weight"),
    (
        r"^(?:encoder\.)?([avt])_encoder\.encoder\.layers\.(\d+)\.self_attn\.in_proj_(weight|bias)$",
        "encoders.{}.blocks.{}.attention.qkv.{}",
    ),
    (
        r"^(?:encoder\.)?([avt])_encoder\.encoder\.layers\.(\d+)\.self_attn\.out_proj\.(weight|bias)$",
        "encoders.{}.blocks.{}.attention.output.{}",
    ),
    (
        r"^(?:encoder\.)?([avt])_encoder\.encoder\.layers\.(\d+)\.((?:linear|norm)[12]\.(?:weight|bias))$",
        "encoders.{}.blocks.{}.{}",
    ),
    (r"^(?:encoder\.)?([avt])_encoder\.fc\.([01]\.(?:weight|bias))$", "encoders.{}.head.{}"),
    (r"^(?:encoder\.)?([avt])_proj\.(weight|bias)$", "heads.{}.{}"),
)
"""Pattern of the authors' key (with the prefix of a Lightning wrapper or without) and ours."""
DROPPED = re.compile(r"\.encoder_layer\.")
"""A template layer of the authors' module that is never run."""


def configure(tensors: Mapping[str, Tensor]) -> LAVAConfig:
    """Return the sizes that the shapes say; those that no shape tells (heads, frames, mels) are the authors' defaults.

    Raises:
        TriptychError: As ``rename``, or if a tensor is missing that tells a size.
    """
    ours = rename(tensors)
    try:
        words, width = ours["encoders.text.embedding.weight"].shape
        hidden = len(ours["encoders.video.blocks.0.linear1.bias"])
        text_steps = len(ours["encoders.text.positions"]) - 1
    except KeyError as error:
        raise TriptychError(f"There is nothing that becomes {error}; are these weights of LAVA?") from None
    return LAVAConfig(
        width=width,
        layers=len({name.split(".")[3] for name in ours if name.startswith("encoders.video.blocks.")}),
        ratio=hidden / width,
        vocabulary=words,
        text_steps=text_steps,
        projection="linear" if "heads.video.weight" in ours else "none",
    )


def rename(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the authors' tensors under the names of ``triptych.methods.lava.LAVA``.

    Raises:
        TriptychError: If a key is unknown; it names the key.
    """
    renamed = {}
    for key, tensor in tensors.items():
        if DROPPED.search(key):
            continue
        if key.removeprefix("encoder.") == "temperature":
            renamed["temperature"] = tensor
            continue
        for pattern, name in RENAMES:
            match = re.match(pattern, key)
            if match:
                stream, *rest = match.groups()
                renamed[name.format(STREAMS[stream], *rest)] = tensor
                break
        else:
            raise TriptychError(f"The key '{key}' is none of LAVA's; are these weights of the authors' code?")
    return renamed
