"""Official names of convolutional networks: unknown and missing ones are told; sizes come from shapes."""

import pytest
import torch
from torch import Tensor

from triptych.encoders.bottleneck_resnet import BottleneckResNetConfig
from triptych.errors import TriptychError
from triptych.weights.convnets import (
    configure_bottlenecks,
    configure_video,
    rename_avid_video,
    rename_bottlenecks,
    rename_video,
)
from triptych.weights.s3d import configure_s3d, rename_s3d


def _tsm() -> dict[str, Tensor]:
    found = {"base_model.conv1.weight": torch.zeros(4, 3, 7, 7), "new_fc.weight": torch.zeros(5, 16)}
    for block, before in enumerate((4, 16)):
        name = f"base_model.layer1.{block}"
        found[f"{name}.conv1.net.weight"] = torch.zeros(4, before, 1, 1)
        found[f"{name}.conv2.weight"] = torch.zeros(4, 4, 3, 3)
        found[f"{name}.conv3.weight"] = torch.zeros(16, 4, 1, 1)
    return found


def test_a_network_of_images_gets_an_axis_of_time() -> None:
    renamed = rename_bottlenecks(_tsm())
    assert renamed["stem.weight"].shape == (4, 3, 1, 7, 7) and renamed["blocks.1.convolution3.weight"].ndim == 5
    assert not any("fc" in name for name in renamed)
    sizes = {"stem": 4, "inner": (4,), "blocks": (2,), "steps": (1,)}
    assert configure_bottlenecks(_tsm()) == BottleneckResNetConfig(**sizes, shift="mit")  # type: ignore[arg-type]


@pytest.mark.parametrize("rename", [rename_video, rename_bottlenecks, rename_avid_video])
def test_an_unknown_key_is_told(rename: object) -> None:
    with pytest.raises(TriptychError, match=r"'layer1\.0\.odd'"):
        rename({"layer1.0.odd": torch.zeros(1)})  # type: ignore[operator]


def test_a_missing_key_is_told() -> None:
    with pytest.raises(TriptychError, match="no weights of a residual network"):
        configure_video({"something": torch.zeros(1)})
    with pytest.raises(TriptychError, match=r"'layer1\.0\.conv2\.1\.weight' is missing"):
        configure_video({"layer1.0.conv1.1.weight": torch.zeros(1)})


def test_names_of_both_forms_of_s3d() -> None:
    same = {
        "conv1.conv1.weight": "stem.convolution.weight",
        "conv1.bn1.bias": "stem.norm.bias",
        "conv_2c.conv2.weight": "blocks.0.3.convolution.weight",
        "mixed_4f.conv_b1_b.bn2.running_mean": "blocks.2.5.branches.1.2.norm.running_mean",
        "mixed_3b.conv_b3_b.conv1.weight": "blocks.1.1.branches.3.1.convolution.weight",
        "block1.0.bn2.weight": "stem.1.norm.weight",
        "block2.1.conv.weight": "blocks.0.1.convolution.weight",
        "block5.2.branch2.1.conv1.weight": "blocks.3.2.branches.2.1.convolution.weight",
        "block5.2.gating_b3.fc.bias": "blocks.3.2.gates.3.linear.bias",
    }
    assert list(rename_s3d({key: torch.zeros(1) for key in same})) == list(same.values())
    assert rename_s3d({"Mixed_3b.branch0.0.conv.weight": torch.zeros(1), "text_module.fc1.bias": torch.zeros(1)}) == {}


def test_what_is_no_s3d_is_told() -> None:
    with pytest.raises(TriptychError, match=r"'mixed_3b\.conv_b4\.conv1\.weight' is none of S3D's"):
        rename_s3d({"mixed_3b.conv_b4.conv1.weight": torch.zeros(1)})
    with pytest.raises(TriptychError, match=r"nothing in them becomes 'blocks\.0\.1\.convolution\.weight'"):
        configure_s3d({"conv1.conv1.weight": torch.zeros(64, 24, 2, 4, 4)})
