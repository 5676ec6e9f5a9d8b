"""MAE, AudioMAE and mae_st (slug vision-transformers-common): latents, predictions, masks, losses, gradients."""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from triptych.encoders.audio_vit import AudioViT
from triptych.encoders.masked_decoder import MaskedDecoder, MaskedDecoderConfig
from triptych.encoders.vit import VideoViT, ViT, ViTConfig
from triptych.layers.grid_positions import PositionKind
from triptych.layers.masks import count_kept, hidden, keep_lowest
from triptych.layers.patches import patchify_video
from triptych.losses.regression import masked_regression, normalize_patches
from triptych.weights.mae import rename


def _encoder(part: str, sizes: dict, options: dict) -> ViT:
    config = ViTConfig(width=sizes["dim"], layers=sizes["depth"], heads=sizes["heads"], **options)
    side = sizes["p"]
    if part == "audiomae":
        return AudioViT(config, *sizes["img"], patch=(side, side))
    if part == "mae_st":
        return VideoViT(config, sizes["T"], sizes["size"], tubelet=(sizes["tp"], side))
    return VideoViT(config, 1, sizes["img"][0], tubelet=(1, side))


def _target(part: str, sizes: dict, encoder: ViT, data: Tensor) -> Tensor:
    if part != "mae_st":
        return encoder.patches(data)
    chosen = torch.linspace(0, sizes["T"] - 1, sizes["pred_t"]).long()
    depth = sizes["tp"] * sizes["pred_t"] // sizes["T"]
    return patchify_video(data[:, chosen], (depth, sizes["p"], sizes["p"]))


def _gradient(model: nn.Module, key: str) -> Tensor:
    """Return our gradient of the authors' tensor: of queries, keys or values it is a third of ours."""
    part = re.fullmatch(r"(.*\.attn\.)([qkv])(\.weight)", key)
    name = f"{part[1]}qkv{part[3]}" if part else key
    ((ours, _),) = rename({name: torch.zeros(1, 1)}).items()
    gradient = model.get_parameter(ours).grad
    assert gradient is not None, key
    return gradient.chunk(3)["qkv".index(part[2])] if part else gradient


def check(case: Path) -> None:
    meta = json.loads((case / "meta.json").read_text())
    part, sizes = meta["part"], meta["config"]
    inputs, outputs = load_file(case / "inputs.safetensors"), load_file(case / "outputs.safetensors")
    kind: PositionKind = "sincos"
    if part == "mae_st":
        kind = "separable" if sizes["sep"] else "learned"
    data = inputs["x"]
    data = data[:, 0] if part == "audiomae" else data.movedim(1, -1)
    data = data[:, None] if part == "mae" else data
    encoder = _encoder(part, sizes, {"positions": kind})
    target = _target(part, sizes, encoder, data)
    token = "own" if part == "mae_st" else "encoder"
    decoding = MaskedDecoderConfig(
        width=sizes["ddim"], layers=sizes["ddepth"], heads=sizes["dheads"], class_token=token, positions=kind
    )
    decoder = MaskedDecoder(decoding, sizes["dim"], encoder.grid, target.shape[-1])
    model = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
    model.load_state_dict(rename(load_file(case / "weights.safetensors")))

    noise = inputs["noise"]
    keep = keep_lowest(noise, count_kept(noise.shape[1], meta["mask_ratio"]))
    features = encoder(data, keep=keep)
    assert features.special is not None
    prediction = decoder(features.tokens, keep, features.special)
    mask = hidden(keep, noise.shape[1])
    loss = masked_regression(prediction, normalize_patches(target), mask).mean()
    loss.backward()
    latent = features.tokens if part == "mae_st" else torch.cat([features.special, features.tokens], dim=1)
    found = {
        "latent": latent,
        "pred": prediction,
        "mask": mask.float(),
        "ids_restore": noise.argsort(dim=1).argsort(dim=1).float(),
        "loss_norm_pix": loss,
        "loss_raw": masked_regression(prediction, target, mask).mean(),
        "patchify": target,
    }
    if part == "mae_st":
        found["patch_embed"] = encoder.project(encoder.patches(data))
    compared = set()
    for key, value in outputs.items():
        if key.startswith("grad."):
            wanted = value
            if wanted.ndim > 2:
                ((_, wanted),) = rename({key.removeprefix("grad."): value}).items()
            close = {"rtol": 1e-3, "atol": 1e-6}
            ours = _gradient(model, key.removeprefix("grad."))
        else:
            close, ours, wanted = {"rtol": 1e-4, "atol": 1e-5}, found[key].detach().reshape(value.shape), value
        torch.testing.assert_close(ours, wanted, **close, msg=lambda m, key=key: f"{key}: {m}")
        compared.add(key)
    assert {"latent", "pred", "mask", "loss_norm_pix"} <= compared
