"""Convolutional networks (slug convnets-common): official state dicts filled by rule, and what is made of inputs.

The networks that have no inhabitant here yet are named in ``LATER``.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from triptych.encoders.audio_resnet import AudioResNet
from triptych.encoders.video_resnet import VideoResNet
from triptych.weights.convnets import configure_spectrogram, configure_video, rename_spectrogram, rename_video

LATER = {
    "audio_resnet50", "avid_audio_conv2d10", "avid_r2plus1d_18", "coclr_r2d3d50", "coclr_s3d", "coclr_s3dg",
    "howto100m_s3dg", "howto100m_s3dg_no_s2d", "slow_r50", "tsm_resnet50_T4",
}  # fmt: skip


def fill(key: str, shape: list[int]) -> Tensor:
    """Return the tensor of a key by the rule of convnets-common, section 9."""
    if key.endswith("num_batches_tracked"):
        return torch.tensor(0)
    x = np.arange(int(np.prod(shape)), dtype=np.uint64) * 2654435761 + zlib.crc32(key.encode())
    for shift, factor in ((15, 2246822519), (13, 3266489917), (16, 1)):
        x = x % 2**32
        x = (x ^ (x >> np.uint64(shift))) * factor
    s = torch.from_numpy(2 * (x % 2**32).astype(np.float64) / 2**32 - 1)
    if key.endswith("running_mean"):
        s = 0.2 * s
    elif key.endswith("running_var") or (len(shape) == 1 and key.endswith("weight")):
        s = 1 + 0.2 * s
    elif len(shape) > 1:
        s = s * (6 / np.prod(shape[1:])) ** 0.5
    else:
        s = 0.2 * s
    return s.float().reshape(shape)


def check(case: Path) -> None:
    meta = json.loads((case / "meta.json").read_text())
    inputs, outputs = load_file(case / "inputs.safetensors"), load_file(case / "outputs.safetensors")
    for name, shown in meta["fill_examples"].items():
        found = fill(name, shown["shape"]).flatten()[:5]
        torch.testing.assert_close(found, torch.tensor(shown["first5"]), atol=1e-7, rtol=0)
    for name, facts in meta["nets"].items():
        if name in LATER:
            continue
        keys = json.loads((case / f"{name}.keys.json").read_text())
        tensors = {key: fill(key, shape) for key, shape in dict(keys).items()}
        data = inputs[facts["input"]]
        encoder: torch.nn.Module
        if name.startswith("audio"):
            encoder = AudioResNet(configure_spectrogram(tensors))
            encoder.load_state_dict(rename_spectrogram(tensors))
            seen = data[:, 0]
        else:
            encoder = VideoResNet(configure_video(tensors))
            encoder.load_state_dict(rename_video(tensors))
            seen = data.permute(0, 2, 3, 4, 1)
        assert sum(p.numel() for p in encoder.parameters()) == facts["params_no_head"], name
        with torch.inference_mode():
            found = encoder.eval()(seen, layers=True)
        output = found.pooled
        if "fc.weight" in tensors:
            output = output @ tensors["fc.weight"].T + tensors["fc.bias"]
        wanted = outputs[f"{name}/output"]
        error = float((output.flatten() - wanted.flatten()).abs().max() / wanted.abs().max())
        assert error <= 1e-4, f"{name}: {error}"
        for stage, layer in enumerate(found.layers, 1):
            stats = facts["stats"][f"layer{stage}"]
            assert float(layer.mean()) == pytest.approx(stats["mean"], abs=1e-4 * stats["std"]), (name, stage)
            assert float(layer.std()) == pytest.approx(stats["std"], rel=1e-4), (name, stage)
