"""Weights of LAVISH and of timm's image backbones: the names that the specification lists."""

import re

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from triptych.encoders.vit import ViTConfig
from triptych.errors import TriptychError
from triptych.methods.lavish import IMAGES, LAVISH, ImageBackbone, ImageBackboneConfig, LAVISHConfig, SwinSize, ViTSize
from triptych.model import load_tensors, model_tensors
from triptych.weights import lavish, timm

SWIN = SwinSize(size=32, patch=4, width=8, depths=(2, 1), heads=(2, 4), window=4)
VIT = ViTSize(size=32, patch=8, transformer=ViTConfig(width=64, layers=2, heads=1, pool="class", resampling="flat"))

SWIN_KEYS = (
    (r"^project\.", "patch_embed.proj."),
    (r"^embedding_norm\.", "patch_embed.norm."),
    (r"^blocks\.0\.", "layers.0.blocks.0."),
    (r"^blocks\.1\.", "layers.0.blocks.1."),
    (r"^blocks\.2\.", "layers.0.downsample."),
    (r"^blocks\.3\.", "layers.1.blocks.0."),
    (r"attention\.position\.", "attn.cpb_mlp."),
    (r"attention\.query_bias", "attn.q_bias"),
    (r"attention\.value_bias", "attn.v_bias"),
    (r"attention\.output\.", "attn.proj."),
    (r"attention\.", "attn."),
    (r"linear([12])\.", r"mlp.fc\1."),
)
VIT_KEYS = (
    (r"^project\.", "patch_embed.proj."),
    (r"^class_token$", "cls_token"),
    (r"^positions\.table$", "pos_embed"),
    (r"attention\.output\.", "attn.proj."),
    (r"attention\.", "attn."),
    (r"linear([12])\.", r"mlp.fc\1."),
)


def _authors(tensors: dict[str, Tensor], keys: tuple[tuple[str, str], ...], patch: int) -> dict[str, Tensor]:
    """Return an encoder's tensors under timm's names and in its shapes, with a classifier."""
    found = {"head.weight": torch.zeros(3, 3), "head.bias": torch.zeros(3)}
    for name, tensor in tensors.items():
        for ours, theirs in keys:
            name = re.sub(ours, theirs, name)
        if name == "patch_embed.proj.weight":
            tensor = tensor if tensor.ndim == 4 else tensor.unflatten(1, (patch, patch, 3)).permute(0, 3, 1, 2)
        found[name] = tensor[None] if name in ("cls_token", "pos_embed") else tensor
    return found


def _backbone(size: SwinSize | ViTSize) -> tuple[ImageBackbone, dict[str, Tensor]]:
    torch.manual_seed(0)
    method = ImageBackbone(ImageBackboneConfig(size=size))
    for parameter in method.parameters():
        torch.nn.init.normal_(parameter)
    keys = SWIN_KEYS if isinstance(size, SwinSize) else VIT_KEYS
    return method, _authors(method.encoder("video").state_dict(), keys, size.patch)


@pytest.mark.parametrize("size", [SWIN, VIT], ids=["swin", "vit"])
def test_timm_both_ways(size: SwinSize | ViTSize) -> None:
    method, authors = _backbone(size)
    if isinstance(size, SwinSize):  # a mask tells the window and the size
        mask = method.encoder("video").blocks[1].mask  # type: ignore[index, union-attr]
        authors["layers.0.blocks.1.attn_mask"] = mask[:, 0]
        authors["layers.0.blocks.0.attn.relative_coords_table"] = torch.zeros(1, 7, 7, 2)
    config = timm.configure(authors)
    assert config == method.config
    again = ImageBackbone(config)
    load_tensors(again, timm.rename(authors), "here")
    for name, tensor in model_tensors(method).items():
        assert torch.equal(model_tensors(again)[name], tensor), name
    assert timm.look(config).views[0]["video"].transform.model_dump()["size"] == 32


def test_kernels_of_patches_keep_their_places() -> None:
    method, authors = _backbone(VIT)
    picture = torch.randn(2, 1, 32, 32, 3)
    maps = functional.conv2d(
        picture[:, 0].permute(0, 3, 1, 2),
        authors["patch_embed.proj.weight"],
        authors["patch_embed.proj.bias"],
        stride=8,
    )
    wanted = maps.flatten(2).transpose(1, 2) + authors["pos_embed"][0, 1:]
    tokens, _ = method.encoder("video").enter(picture)  # type: ignore[operator]
    torch.testing.assert_close(tokens[:, 1:], wanted, atol=1e-4, rtol=1e-4)


def test_an_unknown_window_is_that_of_the_large_model() -> None:
    sizes = SwinSize(width=8, depths=(1, 1, 1, 1), heads=(1, 2, 4, 8))
    method = ImageBackbone(ImageBackboneConfig(size=sizes))
    keys = (*SWIN_KEYS[:2], *((rf"^blocks\.{2 * s}\.", f"layers.{s}.blocks.0.") for s in range(4)), *SWIN_KEYS[6:])
    merging = tuple((rf"^blocks\.{2 * s + 1}\.", f"layers.{s}.downsample.") for s in range(3))
    assert timm.configure(_authors(method.encoder("video").state_dict(), (*keys, *merging), 4)).size == sizes


@pytest.mark.parametrize(("size", "prefix"), [(SWIN, "swin."), (VIT, "ViT.v.")], ids=["swin", "vit"])
def test_lavish_both_ways(size: SwinSize | ViTSize, prefix: str) -> None:
    torch.manual_seed(0)
    config = LAVISHConfig(
        base=IMAGES,
        base_config=ImageBackboneConfig(size=size),
        streams=("video", "audio") if prefix == "swin." else ("audio", "video"),
        classes=("0", "1", "2"),
        tokens=3,
        reduction=4,
        batch_norm=prefix == "swin.",
        audio_gate=prefix == "swin.",
        norm_after=prefix == "swin.",
        hidden=6,
    )
    method = LAVISH(config)
    for parameter in method.parameters():
        torch.nn.init.normal_(parameter)
    keys = SWIN_KEYS if isinstance(size, SwinSize) else VIT_KEYS
    authors = _authors(method.encoder("video").state_dict(), keys, size.patch)
    authors = {f"{prefix}{name}": tensor for name, tensor in authors.items()}
    authors["adapter_token_downsampler.0.weight"] = torch.zeros(2, 2)
    names = {ours: theirs for theirs, ours in lavish.ADAPTER.items()}
    for name, tensor in model_tensors(method).items():
        match = re.fullmatch(r"adapters\.(video|audio)\.(\d+)\.(attend|feed)\.(\w+)(\.\w+)?", name)
        if match:
            stream, part = {"video": "vis", "audio": "audio"}[match[1]], {"attend": "p1", "feed": "p2"}[match[3]]
            kernel = match[4] in ("down", "up")
            key = f"{stream}_adapter_blocks_{part}.{match[2]}.{names[match[4]]}{match[5] or ''}"
            authors[key] = tensor[:, :, None, None] if kernel else tensor
        elif name.startswith("head."):
            authors[name.replace("head.0", "mlp_class").replace("head.1", "mlp_class_2")] = tensor
    found = lavish.configure(authors)
    sized = found.model_copy(update={"base_config": config.base_config})  # Swin's shapes tell no window
    assert sized == config and lavish.look(config).views
    again = LAVISH(sized)
    load_tensors(again, lavish.rename(authors), "here")
    for name, tensor in model_tensors(method).items():
        assert torch.equal(model_tensors(again)[name], tensor), name


def test_other_files_are_refused() -> None:
    _, authors = _backbone(SWIN)
    with pytest.raises(TriptychError, match=r"'layers.0.blocks.0.attn.wrong' is none of Swin V2's"):
        timm.rename({**authors, "layers.0.blocks.0.attn.wrong": torch.zeros(1)})
    with pytest.raises(TriptychError, match=r"no 'patch_embed.proj.weight'"):
        timm.configure({"conv1.weight": torch.zeros(1)})
    with pytest.raises(TriptychError, match=r"neither 'pos_embed' nor 'layers.0.blocks.0'"):
        timm.configure({"patch_embed.proj.weight": torch.zeros(8, 3, 4, 4)})
    with pytest.raises(TriptychError, match="no 'audio_adapter_blocks_p1"):
        lavish.configure(authors)
    with pytest.raises(TriptychError, match=r"'mlp_class_3.weight' is none of LAVISH's"):
        lavish.rename({**{f"swin.{key}": x for key, x in authors.items()}, "mlp_class_3.weight": torch.zeros(1)})
