"""Residual networks of video and of spectrograms: parameters, shapes, and what the two code families differ in."""

import pytest
import torch

from triptych.encoders.audio_resnet import AudioResNet, AudioResNetConfig, resnet18
from triptych.encoders.encoder import Encoder
from triptych.encoders.video_resnet import VideoResNet, VideoResNetConfig, middle_planes
from triptych.errors import TriptychError
from triptych.weights.convnets import configure_video, rename_video

TORCHVISION = {"planes": "torchvision", "eps": 1e-5}


def _count(encoder: Encoder) -> int:
    return sum(parameter.numel() for parameter in encoder.parameters())


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({}, 33_165_639),
        ({"blocks": (3, 4, 6, 3)}, 63_491_975),
        (TORCHVISION, 31_300_125),
        ({"form": "r3d", **TORCHVISION}, 33_166_272),
        ({"form": "mc", **TORCHVISION}, 11_490_240),
    ],
)
def test_parameters_of_video_networks(changes: dict[str, object], count: int) -> None:
    with torch.device("meta"):
        assert _count(VideoResNet(VideoResNetConfig(**changes))) == count  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (AudioResNetConfig(), 11_202_528),
        (AudioResNetConfig(blocks=(3, 3, 4, 6, 3)), 21_310_688),
        (resnet18(), 11_170_240),
        (resnet18(1), 4_899_520),
    ],
)
def test_parameters_of_spectrogram_networks(config: AudioResNetConfig, count: int) -> None:
    with torch.device("meta"):
        assert _count(AudioResNet(config)) == count


def test_planes_by_hand() -> None:
    pairs = [(64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512)]
    assert [middle_planes(*pair) for pair in pairs] == [144, 230, 288, 460, 576, 921, 1152]
    with torch.device("meta"):
        for planes, width in (("torchvision", 230), ("vmz", 288)):
            network = VideoResNet(VideoResNetConfig(planes=planes))  # type: ignore[arg-type]
            assert network.blocks[2].convolution2.spatial.out_channels == width  # type: ignore[union-attr]


@pytest.mark.parametrize(("form", "steps"), [("r2plus1d", 2), ("r3d", 2), ("mc", 16), ("rmc", 2)])
def test_time_in_the_last_map(form: str, steps: int) -> None:
    config = VideoResNetConfig(form=form, widths=(4, 4, 4, 4), blocks=(1, 1, 1, 1), stem=4)  # type: ignore[arg-type]
    found = VideoResNet(config)(torch.randn(2, 16, 32, 32, 3), torch.tensor([16, 8]), layers=True)
    assert found.grid == (steps, 2, 2)
    assert found.tokens.shape == (2, steps * 4, 4) and found.pooled.shape == (2, 4)
    assert found.length.tolist() == [4 * steps, 2 * steps]
    assert found.layers is not None and next(layer.shape[1] for layer in found.layers) == 16 * 16 * 16


def test_any_spectrogram_will_do() -> None:
    network = AudioResNet(AudioResNetConfig(stem=4, widths=(4, 8), blocks=(1, 1)))
    for steps, mels in ((100, 40), (32, 33)):
        assert network(torch.randn(2, steps, mels)).pooled.shape == (2, 8)
    # 100 x 40 is halved to 4 x 2 by the five stages of the whole network (section 8).
    whole = AudioResNet(AudioResNetConfig(stem=2, widths=(2, 2, 2, 2, 2), blocks=(1, 1, 1, 1, 1)))
    assert whole(torch.randn(1, 100, 40)).grid == (4, 1, 2)


def test_a_file_of_one_family_does_not_fit_the_other() -> None:
    small = {"widths": (8, 16), "blocks": (1, 1), "stem": 4}
    theirs = VideoResNet(VideoResNetConfig(**small)).state_dict()  # type: ignore[arg-type]
    names = {"stem.spatial.weight": "stem.0.weight", "stem.temporal.weight": "stem.3.weight", "stem_norm.": "stem.4."}
    official = {}
    for key, tensor in theirs.items():
        key = key.replace("stem.spatial_norm.", "stem.1.")
        for ours, name in names.items():
            key = name + key.removeprefix(ours) if key.startswith(ours) else key
        for block in (0, 1):
            key = key.replace(f"blocks.{block}.", f"layer{block + 1}.0.")
        for number in "12":
            key = key.replace(f"convolution{number}.spatial.", f"conv{number}.0.0.")
            key = key.replace(f"convolution{number}.spatial_norm.", f"conv{number}.0.1.")
            key = key.replace(f"convolution{number}.temporal.", f"conv{number}.0.3.")
            key = key.replace(f"norm{number}.", f"conv{number}.1.") if f".norm{number}." in key else key
        official[key.replace("shortcut_norm.", "downsample.1.").replace("shortcut.", "downsample.0.")] = tensor
    assert configure_video(official) == VideoResNetConfig(**small)  # type: ignore[arg-type]
    assert rename_video(official).keys() == theirs.keys()
    official["layer2.0.conv2.0.0.weight"] = torch.zeros(7, 16, 1, 3, 3)
    with pytest.raises(TriptychError, match="has 7 channels"):
        configure_video(official)
