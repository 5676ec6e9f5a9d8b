"""Image backbones of timm 0.6.7, Swin V2 and vision transformers: their names to those of ``lavish.ImageBackbone``.

Every tensor of ours must be there; classifiers, and the tables that Swin computes anew, are dropped.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from triptych.encoders.vit import ViTConfig
from triptych.errors import TriptychError
from triptych.methods import lavish
from triptych.methods.lavish import ImageBackboneConfig, SwinSize, ViTSize
from triptych.recipe import Config, Viewing
from triptych.weights import mae

LICENCE = "timm is Apache-2.0; weights keep the licence of their makers (Swin V2: MIT, in21k ViT: Apache-2.0)."

DROPPED = re.compile(
    r"^head\.|^pre_logits\.|(?:^|\.)(?:attn_mask|relative_coords_table|relative_position_index|k_bias)$"
)
"""The classifier, and what is computed from sizes."""

SWIN_BLOCK = {
    "attn.qkv": "attention.qkv",
    "attn.q_bias": "attention.query_bias",
    "attn.v_bias": "attention.value_bias",
    "attn.logit_scale": "attention.logit_scale",
    "attn.cpb_mlp": "attention.position",
    "attn.proj": "attention.output",
    "norm1": "norm1",
    "norm2": "norm2",
    "mlp.fc1": "linear1",
    "mlp.fc2": "linear2",
}
"""Layers and parameters of Swin's block, and ours."""
SWIN_FRONT = {"patch_embed.proj": "project", "patch_embed.norm": "embedding_norm", "norm": "norm"}
"""Layers outside the stages."""


def configure(tensors: Mapping[str, Tensor]) -> ImageBackboneConfig:
    """Return the sizes that the shapes say.

    Window and frame size of Swin are not among them, unless the masks of its shifted windows were saved; they are then
    taken to be 12 and 192, as in the model that LAVISH builds on. The heads of a vision transformer are taken to be 64
    wide.

    Raises:
        TriptychError: If these are no weights of Swin V2 or of a vision transformer.
    """
    kernel = tensors.get("patch_embed.proj.weight")
    if kernel is None or kernel.ndim != 4:
        raise TriptychError("There is no 'patch_embed.proj.weight' of an image backbone; is this a model of timm?")
    width, patch = kernel.shape[0], kernel.shape[2]
    if "pos_embed" in tensors:
        layers = 1 + max(int(match[1]) for key in tensors if (match := re.match(r"blocks\.(\d+)\.", key)))
        side = round((tensors["pos_embed"].shape[1] - 1) ** 0.5)
        ratio = tensors["blocks.0.mlp.fc1.weight"].shape[0] / width
        like = ViTSize().transformer
        sizes = {"width": width, "layers": layers, "heads": max(width // 64, 1), "ratio": ratio}
        transformer = ViTConfig(**{**like.model_dump(), **sizes})
        return ImageBackboneConfig(size=ViTSize(size=side * patch, patch=patch, transformer=transformer))
    depths = _depths(tensors)
    if not depths:
        raise TriptychError("There are neither 'pos_embed' nor 'layers.0.blocks.0'; is this Swin V2 or a ViT of timm?")
    scales = [tensors[f"layers.{stage}.blocks.0.attn.logit_scale"] for stage in range(len(depths))]
    mask = tensors.get("layers.0.blocks.1.attn_mask")
    window, side = SwinSize().window, SwinSize().size // patch
    if mask is not None:
        window = round(mask.shape[1] ** 0.5)
        side = window * round(mask.shape[0] ** 0.5)
    size = SwinSize(
        size=side * patch,
        patch=patch,
        width=width,
        depths=depths,
        heads=tuple(scale.shape[0] for scale in scales),
        window=window,
        ratio=tensors["layers.0.blocks.0.mlp.fc1.weight"].shape[0] / width,
    )
    return ImageBackboneConfig(size=size)


def look(config: Config) -> Viewing:
    """Return how LAVISH's AVE runs look at a video through such a backbone."""
    assert isinstance(config, ImageBackboneConfig)
    return lavish.look(config.size)


def rename(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return timm's tensors under the names of ``ImageBackbone``, whose one encoder reads both streams.

    Raises:
        TriptychError: If a key is unknown; it names the key.
    """
    kept = {key: tensor for key, tensor in tensors.items() if not DROPPED.search(key)}
    if "pos_embed" in kept:
        return {f"encoders.video.{name.removeprefix('encoder.')}": x for name, x in mae.rename(kept).items()}
    depths = _depths(kept)
    return {f"encoders.video.{_swin_name(key, depths)}": tensor for key, tensor in kept.items()}


def _depths(tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Return the number of blocks of each stage of Swin."""
    places = {
        (int(match[1]), int(match[2])) for key in tensors if (match := re.match(r"layers\.(\d+)\.blocks\.(\d+)\.", key))
    }
    stages = 1 + max((stage for stage, _ in places), default=-1)
    return tuple(len([1 for stage, _ in places if stage == number]) for number in range(stages))


def _swin_name(key: str, depths: tuple[int, ...]) -> str:
    """Return our name of a tensor of Swin: its stages are one list of blocks, with the mergings between them."""
    block = re.fullmatch(r"layers\.(\d+)\.blocks\.(\d+)\.(attn\.[a-z_]+|mlp\.fc[12]|norm[12])(\..+)?", key)
    if block and block[3] in SWIN_BLOCK:
        stage, place = int(block[1]), int(block[2])
        return f"blocks.{sum(depths[:stage]) + stage + place}.{SWIN_BLOCK[block[3]]}{block[4] or ''}"
    merging = re.fullmatch(r"layers\.(\d+)\.downsample\.(reduction|norm)\.(weight|bias)", key)
    if merging:
        stage = int(merging[1])
        return f"blocks.{sum(depths[: stage + 1]) + stage}.{merging[2]}.{merging[3]}"
    layer, _, kind = key.rpartition(".")
    if layer in SWIN_FRONT:
        return f"{SWIN_FRONT[layer]}.{kind}"
    raise TriptychError(f"The key '{key}' is none of Swin V2's; are these weights of timm 0.6.7?")
