"""Weights of XKD's released code: the four bare encoders that its training writes, or all of its model, to ours.

The authors count the mel bands of a spectrogram before its steps, ours the steps first: position tables, and what reads
or writes the values of an audio patch, are turned round. Names of the released files are not verified (xkd, section 8).
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from triptych.errors import TriptychError
from triptych.methods.xkd import XKDConfig
from triptych.weights.mae import BLOCK, rename_in_block

LICENCE = "CC BY-NC 4.0 (pritamqu/XKD): not for commercial use."

STREAMS = {"vid": "video", "aud": "audio"}
NETWORKS = {"student": "students.{}", "teacher": "teachers.{}.network"}
CENTERS = {"vt2as_ce_loss.center": "video_center", "at2vs_ce_loss.center": "audio_center"}
DROPPED = re.compile(r"^(?:vid|aud)_ae\.encoder\.")
"""Another name of the students' encoders."""
RANDOM = re.compile(r"^(?:decoders|students|teachers)\.|_center$")
"""What a bare encoder lacks: heads, decoders, and the other stream."""
BACKBONE = {
    "cls_token": "class_token",
    "enc_pos_embed": "positions.table",
    "cuboid_embed.proj.weight": "project.weight",
    "cuboid_embed.proj.bias": "project.bias",
    "patch_embed.proj.weight": "project.weight",
    "patch_embed.proj.bias": "project.bias",
    "encoder_norm.weight": "norm.weight",
    "encoder_norm.bias": "norm.bias",
}
DECODER = {
    "mask_token": "mask_token",
    "dec_pos_embed": "positions.table",
    "mid_proj.weight": "embed.weight",
    "mid_proj.bias": "embed.bias",
    "out_proj.weight": "predict.weight",
    "out_proj.bias": "predict.bias",
}


def rename(tensors: Mapping[str, Tensor], config: XKDConfig | None = None) -> dict[str, Tensor]:
    """Return the authors' tensors under the names, and in the order of values, of ``triptych.methods.xkd.XKD``.

    A bare encoder becomes both the student's and the teacher's of its stream. Blocks that both modalities share are
    returned once.

    Args:
        tensors: Of a file.
        config: Says how a spectrogram is cut; the published configuration where None.

    Raises:
        TriptychError: If a key is unknown, or a bare encoder lacks one; it names the key.
    """
    config = config or XKDConfig()
    if "cls_token" in tensors:
        _check_whole(tensors)
        stream = "video" if "cuboid_embed.proj.weight" in tensors else "audio"
        encoder = {_backbone_name(key): _turned(_backbone_name(key), x, stream, config) for key, x in tensors.items()}
        places = [f"{network.format(stream)}.encoder." for network in NETWORKS.values()]
        return {place + name: tensor for place in places for name, tensor in encoder.items()}
    shared = shared_blocks(tensors)
    renamed = {}
    for key, tensor in tensors.items():
        if DROPPED.search(key) or key.startswith(tuple(f"aud_{who}.backbone.encoder.blocks." for who in shared)):
            continue
        if key in CENTERS:
            renamed[CENTERS[key]] = tensor.squeeze(0)
            continue
        network = re.fullmatch(r"(vid|aud)_(student|teacher)\.(backbone|head)\.(.+)", key)
        decoder = re.fullmatch(r"(vid|aud)_ae\.(.+)", key)
        if network:
            stream, place = STREAMS[network[1]], NETWORKS[network[2]].format(STREAMS[network[1]])
            if network[3] == "backbone":
                name = f"encoder.{_backbone_name(network[4])}"
            else:
                name = f"head.{_head_name(network[4], key, config.head_layers)}"
        elif decoder:
            stream, place = STREAMS[decoder[1]], f"decoders.{STREAMS[decoder[1]]}"
            name = DECODER.get(decoder[2]) or _block_name(decoder[2], "decoder")
        else:
            raise TriptychError(f"The key '{key}' is none of XKD's; are these weights of the released code?")
        renamed[f"{place}.{name}"] = _turned(name.removeprefix("encoder."), tensor, stream, config)
    return renamed


def configure(tensors: Mapping[str, Tensor]) -> XKDConfig:
    """Return the configuration that the shapes say; clips, patches and the width of attention heads are as published.

    Raises:
        TriptychError: If these are no weights of XKD, or the tokens are not as many as in the published encoders.
    """
    for key, tensor in tensors.items():
        if key.endswith("enc_pos_embed") and tensor.shape[1] - 1 not in (392, 560):
            raise TriptychError(f"'{key}' has {tensor.shape[1] - 1} tokens; XKD's encoders have 392 (video) or 560.")
    place = "" if "cls_token" in tensors else "vid_student.backbone."
    if f"{place}cls_token" not in tensors:
        raise TriptychError("There is no 'cls_token' of an encoder; are these weights of XKD's released code?")
    config = XKDConfig().model_dump()
    config["encoder"] |= _stack(tensors, f"{place}encoder.blocks", tensors[f"{place}cls_token"].shape[-1], 64)
    if not place:
        return XKDConfig(**config)
    head = {key.removeprefix("vid_student.head."): x for key, x in tensors.items() if "vid_student.head." in key}
    config["decoder"] |= _stack(tensors, "vid_ae.decoder.blocks", tensors["vid_ae.mid_proj.weight"].shape[0], 32)
    config["prototypes"], config["bottleneck"] = head["last_layer.weight_v"].shape
    config["head_hidden"] = head["mlp.0.weight"].shape[0]
    config["head_layers"] = len([x for key, x in head.items() if key.startswith("mlp.") and x.ndim == 2])
    config["variant"] = ("xkd", "mas", "mats")[len(shared_blocks(tensors))]
    return XKDConfig(**config)


def shared_blocks(tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return for which of student and teacher both modalities have the same blocks (MAS, MATS), in a whole model."""
    key = "{}_{}.backbone.encoder.blocks.0.attn.qkv.weight"
    found = []
    for who in ("student", "teacher"):
        video, audio = (tensors.get(key.format(stream, who)) for stream in STREAMS)
        if video is not None and (audio is None or torch.equal(video, audio)):
            found.append(who)
    return tuple(found)


def _check_whole(tensors: Mapping[str, Tensor]) -> None:
    """Raise if a bare encoder lacks a tensor."""
    embed = "cuboid_embed" if "cuboid_embed.proj.weight" in tensors else "patch_embed"
    wanted = [key for key in BACKBONE if not key.endswith(("proj.weight", "proj.bias")) or key.startswith(embed)]
    for number in range(_stack(tensors, "encoder.blocks", 64, 64)["layers"]):
        layers = [f"{layer}.{kind}" for layer in ("norm1", "norm2", *BLOCK) for kind in ("weight", "bias")]
        wanted += [f"encoder.blocks.{number}.{layer}" for layer in layers if layer != "attn.qkv.bias"]
    for key in wanted:
        if key not in tensors:
            raise TriptychError(f"There is no '{key}', which every encoder of XKD has.")


def _backbone_name(key: str) -> str:
    return BACKBONE.get(key) or _block_name(key, "encoder")


def _block_name(key: str, part: str) -> str:
    block = re.fullmatch(part + r"\.blocks\.(\d+)\.(.+)\.(weight|bias)", key)
    if block is None:
        raise TriptychError(f"The key '{key}' is none of XKD's; are these weights of the released code?")
    return f"blocks.{block[1]}.{rename_in_block(block[2], key)}.{block[3]}"


def _head_name(name: str, key: str, layers: int) -> str:
    """Return our name of a tensor of a head: of each three, the first is linear, the second the one layer norm."""
    if name in ("last_layer.weight_g", "last_layer.weight_v"):
        return {"g": "gain", "v": "prototypes"}[name[-1]]
    match = re.fullmatch(r"mlp\.(\d+)\.(weight|bias)", name)
    if match is None:
        raise TriptychError(f"The key '{key}' names no layer of XKD's heads.")
    number, kind = divmod(int(match[1]), 3)
    if kind == 1:
        return f"norm.{match[2]}"
    return f"{'bottleneck' if number == layers - 1 else f'hidden.{number}'}.{match[2]}"


def _turned(name: str, tensor: Tensor, stream: str, config: XKDConfig) -> Tensor:
    """Drop a first axis of one; of an audio network, put steps before mel bands, among tokens and in patches."""
    if name in ("class_token", "mask_token", "positions.table"):
        tensor = tensor.squeeze(0)
    if stream == "video":
        return tensor
    steps, mels = config.patch
    if name == "positions.table":
        places = tensor[1:].unflatten(0, (config.mels // mels, config.steps // steps)).transpose(0, 1)
        return torch.cat([tensor[:1], places.flatten(0, 1)])
    if name == "project.weight":
        return tensor.unflatten(1, (mels, steps)).transpose(1, 2).flatten(1)
    if name in ("predict.weight", "predict.bias"):
        return tensor.unflatten(0, (mels, steps)).transpose(0, 1).flatten(0, 1)
    return tensor


def _stack(tensors: Mapping[str, Tensor], part: str, width: int, head: int) -> dict[str, Any]:
    """Return the sizes of a stack of blocks of a width, whose heads have another.

    Raises:
        TriptychError: If there is none.
    """
    places = [match for key in tensors if (match := re.search(re.escape(part) + r"\.(\d+)\.mlp\.fc1\.weight$", key))]
    if not places:
        raise TriptychError(f"There is no '{part}.0.mlp.fc1.weight'; are these weights of XKD's released code?")
    hidden = tensors[places[0].string].shape[0]
    layers = 1 + max(int(match[1]) for match in places)
    return {"width": width, "layers": layers, "heads": max(width // head, 1), "ratio": hidden / width}
