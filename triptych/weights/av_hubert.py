"""Weights of AV-HuBERT's released code (fairseq checkpoints): key names of its model to ours."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from triptych.encoders.speech import SpeechConfig
from triptych.errors import TriptychError
from triptych.methods.av_hubert import LAST, SPECIAL, AVHuBERTConfig, RoundConfig

LICENCE = (
    "AV-HuBERT licence (Meta): non-commercial research only; no biometric processing, surveillance or military use; "
    "it names derivative works and what the software produces."
)

DROPPED = re.compile(r"^(?:decoder|ctc_proj|w2v_encoder\.proj)\.")
"""What a fine-tuned checkpoint holds besides the encoder."""
RANDOM = re.compile(r"^(?:head\.|classes$)")
"""What a fine-tuned checkpoint lacks of the pretrained model."""
PREFIX = re.compile(r"^(?:w2v_encoder|encoder)\.w2v_model\.")
"""Where a fine-tuned checkpoint keeps the encoder."""

NAMES = tuple(
    (re.compile(f"^{pattern}$"), name)
    for pattern, name in (
        (r"label_embs_concat", "classes"),
        (r"final_proj\.(weight|bias)", "head.{}"),
        (r"feature_extractor_(audio|video)\.proj\.(weight|bias)", "speech.project.{}.{}"),
        (r"feature_extractor_video\.resnet\.frontend3D\.0\.weight", "speech.frames.convolution.weight"),
        (r"feature_extractor_video\.resnet\.frontend3D\.1\.(\w+)", "speech.frames.norm.{}"),
        (r"feature_extractor_video\.resnet\.frontend3D\.2\.weight", "speech.frames.activation.weight"),
        (
            r"feature_extractor_video\.resnet\.trunk\.layer(\d)\.(\d+)\.(conv|bn|relu|downsample\.)([012])\.(\w+)",
            "STAGE",
        ),
        (r"layer_norm\.(weight|bias)", "speech.joint_norm.{}"),
        (r"post_extract_proj\.(weight|bias)", "speech.joint.{}"),
        (r"encoder\.pos_conv\.0\.(bias|weight_g|weight_v)", "speech.positions.{}"),
        (r"encoder\.layers\.(\d+)\.self_attn\.out_proj\.(weight|bias)", "speech.blocks.{}.attention.output.{}"),
        (r"encoder\.layers\.(\d+)\.self_attn_layer_norm\.(weight|bias)", "speech.blocks.{}.norm1.{}"),
        (r"encoder\.layers\.(\d+)\.final_layer_norm\.(weight|bias)", "speech.blocks.{}.norm2.{}"),
        (r"encoder\.layers\.(\d+)\.fc([12])\.(weight|bias)", "speech.blocks.{}.linear{}.{}"),
        (r"encoder\.layer_norm\.(weight|bias)", "speech.norm.{}"),
    )
)
"""Pattern of the authors' key, and ours."""
QKV = re.compile(r"^encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)$")
WORDS = {
    "weight_g": "scale",
    "weight_v": "direction",
    "conv": "convolution",
    "bn": "norm",
    "relu": "activation",
}
"""Parts of names that differ."""
SHORTCUT = ("shortcut", "shortcut_norm")


def rename(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the authors' tensors under the names of ``triptych.methods.av_hubert.AVHuBERT``.

    Of a fine-tuned checkpoint only the encoder is taken, which is what ``AVHuBERT.speech`` is.

    Raises:
        TriptychError: If a key is unknown; it names the key.
    """
    renamed: dict[str, Tensor] = {}
    apart: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if DROPPED.match(key):
            continue
        inner = PREFIX.sub("", key)
        part = QKV.match(inner)
        if part:
            name = f"speech.blocks.{part[1]}.attention.qkv.{part[3]}"
            apart.setdefault(name, {})[part[2]] = tensor
        elif inner == "mask_emb":
            renamed[f"instead.{_hidden(tensors, tensor)}"] = tensor
        else:
            renamed[_name(key, inner)] = tensor
    return renamed | {name: torch.cat([parts[letter] for letter in "qkv"]) for name, parts in apart.items()}


def _name(key: str, inner: str) -> str:
    for pattern, name in NAMES:
        match = pattern.match(inner)
        if match is None:
            continue
        if name != "STAGE":
            return name.format(*(WORDS.get(group, group) for group in match.groups()))
        stage, block, kind, number, leaf = match.groups()
        layer = SHORTCUT[int(number)] if kind == "downsample." else WORDS[kind] + number
        return f"speech.frames.stages.{int(stage) - 1}.{block}.{layer}.{leaf}"
    raise TriptychError(f"The key '{key}' is none of AV-HuBERT's; are these weights of the released code?")


def _hidden(tensors: Mapping[str, Tensor], vector: Tensor) -> str:
    """Return what a vector stands in the place of: sound before its linear layer, or fused steps."""
    (sound,) = (tensor for key, tensor in tensors.items() if key.endswith("feature_extractor_audio.proj.weight"))
    return "input" if len(vector) == sound.shape[1] else "features"


def configure(tensors: Mapping[str, Tensor]) -> AVHuBERTConfig:
    """Return the configuration of a pretrained model that the shapes say; heads are 64 wide, as in all published ones.

    Raises:
        TriptychError: As ``rename``, or if there are several sets of targets, whose sizes no shape tells.
    """
    ours = rename(tensors)
    width = len(ours["speech.joint.bias"])
    stages: dict[str, set[str]] = {}
    for name in ours:
        parts = name.split(".")
        if parts[1:3] == ["frames", "stages"]:
            stages.setdefault(parts[3], set()).add(parts[4])
    channels = [len(ours[f"speech.frames.stages.{number}.0.norm1.weight"]) for number in range(len(stages))]
    if "head.bias" in ours and len(ours["head.bias"]) != ours["classes"].shape[1]:
        raise TriptychError("The checkpoint has several sets of targets, and its shapes do not tell their sizes.")
    encoder = SpeechConfig(
        width=width,
        layers=len({name.split(".")[2] for name in ours if name.startswith("speech.blocks.")}),
        heads=width // 64,
        hidden=len(ours["speech.blocks.0.linear1.bias"]),
        stem=len(ours["speech.frames.norm.weight"]),
        stages=tuple(channels),
        stage_blocks=len(stages["0"]),
        sound_values=ours["speech.project.audio.weight"].shape[1],
        position_kernel=ours["speech.positions.direction"].shape[2],
        position_groups=width // ours["speech.positions.direction"].shape[1],
    )
    hide = "input" if "instead.input" in ours else "features"
    last = RoundConfig(**LAST.model_dump() | {"hide": hide, "layer": None})
    if "classes" not in ours:
        return AVHuBERTConfig(encoder=encoder, rounds=(last,))
    classes, class_width = ours["classes"].shape
    last = last.model_copy(update={"clusters": (classes - SPECIAL,)})
    return AVHuBERTConfig(encoder=encoder, class_width=class_width, rounds=(last,))
