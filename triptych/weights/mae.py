"""Weights of the MAE family (MAE, AudioMAE, mae_st) and of timm's vision transformers: names and layouts to ours."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from triptych.errors import TriptychError

LICENCE = "CC BY-NC 4.0 (facebookresearch/mae, AudioMAE and mae_st): not for commercial use."

BLOCK = {"attn.qkv": "attention.qkv", "attn.proj": "attention.output", "mlp.fc1": "linear1", "mlp.fc2": "linear2"}
"""Layers of timm's block and of ours; ``norm1`` and ``norm2`` are called alike."""
WHOLE = {
    "cls_token": "encoder.class_token",
    "pos_embed": "encoder.positions.table",
    "pos_embed_temporal": "encoder.positions.time",
    "pos_embed_spatial": "encoder.positions.space",
    "pos_embed_class": "encoder.positions.token",
    "mask_token": "decoder.mask_token",
    "decoder_cls_token": "decoder.own_token",
    "decoder_pos_embed": "decoder.positions.table",
    "decoder_pos_embed_temporal": "decoder.positions.time",
    "decoder_pos_embed_spatial": "decoder.positions.space",
    "decoder_pos_embed_class": "decoder.positions.token",
}
"""Tensors with a first axis of one, which ours lack."""
LAYERS = {
    "patch_embed.proj": "encoder.project",
    "norm": "encoder.norm",
    "fc_norm": "encoder.norm",
    "decoder_embed": "decoder.embed",
    "decoder_norm": "decoder.norm",
    "decoder_pred": "decoder.predict",
}
"""Layers with weight and bias."""


def rename(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the authors' tensors as those of a ``ViT`` under ``encoder.`` and a ``MaskedDecoder`` under ``decoder.``.

    Raises:
        TriptychError: If a key is unknown; it names the key.
    """
    renamed = {}
    for key, tensor in _join_attention(tensors).items():
        layer, _, kind = key.rpartition(".")
        block = re.fullmatch(r"(decoder_)?blocks\.(\d+)\.(.+)", layer)
        if key in WHOLE:
            renamed[WHOLE[key]] = tensor.squeeze(0)
        elif layer in LAYERS:
            renamed[f"{LAYERS[layer]}.{kind}"] = flatten_kernel(tensor)
        elif block:
            half = "decoder" if block[1] else "encoder"
            renamed[f"{half}.blocks.{block[2]}.{rename_in_block(block[3], key)}.{kind}"] = tensor
        else:
            raise TriptychError(f"The key '{key}' is none of MAE's; are these weights of MAE, AudioMAE or mae_st?")
    return renamed


def rename_in_block(layer: str, key: str) -> str:
    """Return our name of a layer of timm's block; ``key`` is named in the error if there is no such layer."""
    if layer in ("norm1", "norm2"):
        return layer
    if layer not in BLOCK:
        raise TriptychError(f"The key '{key}' names no layer of a transformer block.")
    return BLOCK[layer]


def flatten_kernel(tensor: Tensor) -> Tensor:
    """Return the kernel of a patch convolution as a linear layer's weight: place by place, channels last."""
    return tensor.movedim(1, -1).flatten(1) if tensor.ndim > 2 else tensor


def _join_attention(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put the layers ``attn.q``, ``attn.k`` and ``attn.v`` of mae_st into one."""
    joined = {}
    for key, tensor in tensors.items():
        part = re.fullmatch(r"(.*\.attn\.)[qkv]\.(weight|bias)", key)
        if part is None:
            joined[key] = tensor
            continue
        names = [f"{part[1]}{name}.{part[2]}" for name in "qkv"]
        missing = [name for name in names if name not in tensors]
        if missing:
            raise TriptychError(f"There is '{key}', but no '{missing[0]}'.")
        joined[f"{part[1]}qkv.{part[2]}"] = torch.cat([tensors[name] for name in names])
    return joined
