"""The keys of XDC's released encoders, of VMZ's and of torchvision's (golden/convnets-common)."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from triptych.errors import TriptychError
from triptych.methods.xdc import XDC, XDCConfig
from triptych.weights.xdc import RANDOM, configure, rename


def _official(folder: Path, name: str) -> dict[str, Tensor]:
    keys = json.loads((folder / "convnets-common" / f"{name}.keys.json").read_text())
    return {key: torch.empty(shape, device="meta") for key, shape in dict(keys).items()}


@pytest.mark.parametrize("head", [True, False])
def test_a_released_file_fills_the_video_network_and_nothing_else(golden_dir: Path, head: bool) -> None:
    tensors = _official(golden_dir, "xdc_vmz_r2plus1d_18")
    if not head:  # as released
        tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith("fc.")}
    config = configure(tensors)
    assert config == XDCConfig()
    with torch.device("meta"):
        method = XDC(config)
    wanted = {name: tensor.shape for name, tensor in method.state_dict().items() if not name.startswith("targets.")}
    found = {name: tensor.shape for name, tensor in rename(tensors).items()}
    assert found.items() <= wanted.items()
    assert all(RANDOM.match(name) for name in set(wanted) - set(found))


def test_torchvisions_file_has_its_own_form(golden_dir: Path) -> None:
    video = configure(_official(golden_dir, "torchvision_r2plus1d_18")).video
    assert video.planes == "torchvision" and video.eps == 1e-5
    assert configure(_official(golden_dir, "vmz_r2plus1d_34")).video.blocks == (3, 4, 6, 3)
    assert configure(_official(golden_dir, "torchvision_mc3_18")).video.form == "mc"


def test_an_unknown_key_is_told(golden_dir: Path) -> None:
    tensors = _official(golden_dir, "xdc_vmz_r2plus1d_18") | {"layer5.bias": torch.zeros(1)}
    with pytest.raises(TriptychError, match=r"'layer5\.bias'"):
        rename(tensors)
