"""Slow-R50, R2D3D-50, TSM, S3D and AVID's networks: parameters, and what sets them apart (convnets-common)."""

from typing import Any

import pytest
import torch
from torch import nn

from triptych.encoders.audio_resnet import AudioResNet, resnet50
from triptych.encoders.avid import AVIDAudio, AVIDAudioConfig, AVIDVideo, AVIDVideoConfig, NormAfterSum
from triptych.encoders.bottleneck_resnet import BottleneckResNet, BottleneckResNetConfig, r2d3d50, tsm50
from triptych.encoders.encoder import Encoder
from triptych.encoders.s3d import S3D, Maximum, S3DConfig, coclr_s3d, space_to_depth
from triptych.layers.batch_norm import BatchNorm

TINY: dict[str, Any] = {"stem": 4, "inner": (2, 4), "blocks": (2, 1), "steps": (1, 3)}
TINY_S3D: dict[str, Any] = {"widths": (4, 4, 6), "mixed": (((2, 2, 3, 2, 3, 2),),) * 3}


@pytest.mark.parametrize(
    ("kind", "config", "count"),
    [
        (BottleneckResNet, BottleneckResNetConfig(), 31_634_496),
        (BottleneckResNet, r2d3d50(), 31_672_128),
        (BottleneckResNet, tsm50(), 23_508_032),
        (AudioResNet, resnet50(), 23_501_760),
        (AVIDVideo, AVIDVideoConfig(), 15_379_136),
        (AVIDAudio, AVIDAudioConfig(), 4_725_696),
        (S3D, S3DConfig(), 9_146_000),
        (S3D, S3DConfig(stem="whole"), 9_125_072),
        (S3D, coclr_s3d(), 7_910_048),
        (S3D, coclr_s3d(gates=True), 9_098_000),
    ],
)
def test_parameters(kind: type[Encoder], config: object, count: int) -> None:
    with torch.device("meta"):
        encoder = kind(config)  # type: ignore[call-arg]
    assert sum(parameter.numel() for parameter in encoder.parameters()) == count


@pytest.mark.parametrize(
    ("encoder", "grid"),
    [
        (BottleneckResNet(BottleneckResNetConfig(**TINY)), (8, 4, 4)),
        (BottleneckResNet(r2d3d50().model_copy(update=TINY)), (4, 4, 4)),
        (BottleneckResNet(tsm50().model_copy(update=TINY)), (8, 4, 4)),
        (AVIDVideo(AVIDVideoConfig(stem=4, widths=(4, 6), blocks=(1, 2))), (4, 4, 4)),
        (S3D(S3DConfig(**TINY_S3D)), (1, 1, 1)),
        (S3D(coclr_s3d(gates=True).model_copy(update=TINY_S3D)), (1, 1, 1)),
    ],
)
def test_shapes_and_gradients(encoder: Encoder, grid: tuple[int, int, int]) -> None:
    found = encoder(torch.rand(2, 8, 32, 32, 3), torch.tensor([8, 4]), layers=True)
    assert found.grid == grid and found.pooled.shape == (2, encoder.width)
    assert found.tokens.shape == (2, grid[0] * grid[1] * grid[2], encoder.width)
    assert found.length.tolist()[0] == found.tokens.shape[1]
    assert found.layers is not None and torch.equal(found.layers[-1], found.tokens)
    (found.pooled * torch.randn_like(found.pooled)).sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())
    with pytest.raises(ValueError, match="cannot keep some"):
        encoder(torch.rand(2, 8, 32, 32, 3), keep=torch.zeros(2, 1, dtype=torch.long))


def test_any_spectrogram_will_do() -> None:
    pairs = AVIDAudio(AVIDAudioConfig(stem=4, widths=(4, 6)))
    deep = AudioResNet(resnet50().model_copy(update={"widths": (2, 4), "blocks": (1, 2)}))
    for network, width in ((pairs, 6), (deep, 16)):
        for steps, mels in ((100, 40), (32, 33)):
            found = network(torch.randn(2, steps, mels), torch.tensor([steps, steps // 2]), layers=True)
            assert found.pooled.shape == (2, width) and found.grid is not None
            assert found.tokens.shape[1] == found.grid[0] * found.grid[1] * found.grid[2] == int(found.length[0])


def test_of_very_deep_networks_every_second_block_shifts() -> None:
    with torch.device("meta"):
        deep = BottleneckResNet(tsm50().model_copy(update={"blocks": (3, 4, 23, 3)}))
    shifts = [block.shift is not None for block in deep.blocks]
    assert shifts[:7] == [True, False, True, True, False, True, False]
    assert all(block.shift is not None for block in BottleneckResNet(tsm50().model_copy(update=TINY)).blocks)


def test_a_shift_lets_a_network_of_images_see_other_frames() -> None:
    torch.manual_seed(0)
    clip = torch.rand(1, 4, 32, 32, 3)
    other = clip.clone()
    other[:, 3] = torch.rand(32, 32, 3)
    sizes = {**TINY, "inner": (8, 8), "steps": (1, 1)}
    for convention, seen in (("mit", True), ("deepmind", True), (None, False)):
        network = BottleneckResNet(BottleneckResNetConfig(**sizes, shift=convention)).eval()
        with torch.no_grad():
            one, two = (network(x).tokens.unflatten(1, (4, -1))[:, 0] for x in (clip, other))
            found = network(clip).tokens.unflatten(1, (4, -1))[:, 2], network(other).tokens.unflatten(1, (4, -1))[:, 2]
        assert torch.equal(one, two)  # two blocks reach two frames, not three
        assert torch.equal(*found) is not seen


def test_avids_last_norm_comes_after_the_sum() -> None:
    block = NormAfterSum(3, 3, 1).eval()
    for module in block.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.zeros_(module.weight)
    nn.init.constant_(block.norm.running_mean, 2.0)
    x = torch.randn(2, 3, 4, 5, 5)
    torch.testing.assert_close(block(x), torch.relu((x - 2) / (1 + 1e-5) ** 0.5))


def test_cubes_become_channels() -> None:
    c, t, h, w = torch.meshgrid(*(torch.arange(n) for n in (3, 2, 2, 2)), indexing="ij")
    x = (1000 * c + 100 * t + 10 * h + w).float().permute(1, 2, 3, 0)[None]
    found = space_to_depth(x)[0, 0, 0, 0].tolist()
    assert len(found) == 24
    assert found[:4] == [0, 1000, 2000, 1] and found[6] == 10 and found[12] == 100  # colour, width, height, time


def test_maxima_padded_as_tensorflow_does() -> None:
    x = torch.tensor([5.0, 1.0, 2.0, 4.0]).view(1, 1, 1, 1, 4)
    assert Maximum((1, 1, 3), (1, 1, 2), "same")(x).flatten().tolist() == [5.0, 4.0]
    assert Maximum((1, 1, 3), (1, 1, 2), "symmetric")(x).flatten().tolist() == [5.0, 4.0]
    y = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 1, 4)  # 1 2 3 | 3 4 0 against 0 1 2 | 2 3 4
    assert Maximum((1, 1, 3), (1, 1, 2), "same")(y).flatten().tolist() == [3.0, 4.0]
    assert Maximum((1, 1, 3), (1, 1, 2), "symmetric")(y).flatten().tolist() == [2.0, 4.0]


def test_the_first_convolution_of_milnces_network() -> None:
    """Of zeros it makes zeros; its map begins as TensorFlow's does, one place before the middle of the kernel."""
    torch.manual_seed(0)
    network = S3D(S3DConfig(**TINY_S3D)).eval()
    seen = []
    convolution = network.stem.convolution
    convolution.register_forward_hook(lambda module, args, output: seen.append(output))  # type: ignore[union-attr, arg-type]
    with torch.no_grad():
        layers = network(torch.zeros(1, 4, 8, 8, 3), layers=True).layers
    assert layers is not None and layers[0].shape[1] == 2 * 4 * 4
    assert seen[0].shape[2:] == (3, 5, 5) and not seen[0].any()


def test_milnces_network_reads_raw_pixels() -> None:
    torch.manual_seed(0)
    network = S3D(S3DConfig(**TINY_S3D)).eval()
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, BatchNorm):
            nn.init.normal_(module.bias)
    x = torch.rand(1, 8, 32, 32, 3)
    with torch.no_grad():
        one, other = network(x).pooled, network((x - 0.45) / 0.225).pooled
    assert float((one - other).abs().max() / one.abs().max()) > 0.01
