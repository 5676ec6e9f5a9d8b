"""S3D and S3D-G (Xie et al. 2018, arXiv 1712.04851): Inception over clips, space and time apart, gated or not.

Two forms with one set of widths: that of MIL-NCE on HowTo100M (Miech et al. 2020) and CoCLR's (Han et al. 2020). They
differ in the first convolution, in the padding of maxima, and in a gate (convnets-common, section 6).
"""

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from triptych.batch import Modality
from triptych.encoders.encoder import Encoder, Features
from triptych.encoders.video_resnet import last_map
from triptych.layers.batch_norm import BatchNorm
from triptych.layers.patches import patchify_video
from triptych.layers.residual import normalize
from triptych.recipe import Config

Widths = tuple[int, int, int, int, int, int]
"""Channels of an Inception block: the first branch's, two of the second, two of the third, the fourth's."""

MIXED: tuple[tuple[Widths, ...], ...] = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)
"""Those of the published networks: stages 3, 4 and 5."""


class S3DConfig(Config):
    """Sizes; the defaults are S3D-G of MIL-NCE on HowTo100M, 9,146,000 parameters without what follows the mean."""

    stem: Literal["space_to_depth", "whole", "separable"] = "space_to_depth"
    """First convolution: over cubes of 2 x 2 x 2 pixels laid into channels; over 3 frames and 7 x 7 pixels at once; or
    over 7 x 7 pixels, then over 7 frames (CoCLR). All halve time and the picture."""
    widths: tuple[int, int, int] = (64, 64, 192)
    """Channels of the first three convolutions."""
    mixed: tuple[tuple[Widths, ...], ...] = Field(MIXED, min_length=3, max_length=3)
    """Inception blocks of the three stages that follow."""
    gates: bool = True
    """Whether each branch's channels are weighted by what the whole clip says (S3D-G)."""
    stem_gate: bool = True
    """Whether the third convolution's are, too (HowTo100M: always; not in CoCLR)."""
    padding: Literal["same", "symmetric"] = "same"
    """Of maxima: as TensorFlow pads, more behind than before, or alike on both sides (CoCLR)."""
    eps: float = Field(1e-5, gt=0)
    """Of the batch norms."""


def coclr_s3d(gates: bool = False) -> S3DConfig:
    """Return CoCLR's S3D: 7,910,048 parameters, 9,098,000 with gates."""
    return S3DConfig(stem="separable", gates=gates, stem_gate=False, padding="symmetric")


class Convolution(nn.Module):
    """A convolution with batch norm and ReLU."""

    def __init__(
        self,
        before: int,
        width: int,
        kernel: tuple[int, int, int] = (1, 1, 1),
        stride: tuple[int, int, int] = (1, 1, 1),
        padding: tuple[int, int, int] = (0, 0, 0),
        eps: float = 1e-5,
    ) -> None:
        """Build the layer."""
        super().__init__()
        self.convolution = nn.Conv3d(before, width, kernel, stride, padding, bias=False)
        self.norm = BatchNorm(width, eps)

    def forward(
        self, x: Float[Tensor, "batch before frames height width"]
    ) -> Float[Tensor, "batch channels steps rows columns"]:
        """Return the maps."""
        return functional.relu(normalize(self.norm, self.convolution(x)))


def separable(before: int, width: int, kernel: int, stride: int, eps: float) -> nn.Sequential:
    """Return a convolution over height and width, and one over time, each with batch norm and ReLU."""
    pad = kernel // 2
    space = Convolution(before, width, (1, kernel, kernel), (1, stride, stride), (0, pad, pad), eps)
    return nn.Sequential(space, Convolution(width, width, (kernel, 1, 1), (stride, 1, 1), (pad, 0, 0), eps))


class Gate(nn.Module):
    """Weigh each channel by the sigmoid of a linear layer of the clip's mean."""

    def __init__(self, width: int) -> None:
        """Build the gate."""
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "batch channels frames height width"]
    ) -> Float[Tensor, "batch channels frames height width"]:
        """Return the weighted maps."""
        return x * self.linear(x.mean(dim=(2, 3, 4))).sigmoid()[:, :, None, None, None]


class Maximum(nn.Module):
    """The largest value around each place."""

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int], padding: str) -> None:
        """Build the layer; ``padding`` as in ``S3DConfig``."""
        super().__init__()
        self.kernel, self.stride, self.same = kernel, stride, padding == "same"
        self.around = [size // 2 if size % 2 else 0 for size in kernel]
        missing = [max(size - step, 0) for size, step in zip(kernel, stride, strict=True)]
        self.before_and_after = [side for total in reversed(missing) for side in (total // 2, total - total // 2)]

    def forward(
        self, x: Float[Tensor, "batch channels frames height width"]
    ) -> Float[Tensor, "batch channels steps rows columns"]:
        """Return the maxima; what is padded is zero under ``same``, which no value before it is below."""
        if not self.same:
            return functional.max_pool3d(x, self.kernel, self.stride, self.around)
        padded = functional.pad(x, self.before_and_after)
        return functional.max_pool3d(padded, self.kernel, self.stride, ceil_mode=True)


class Inception(nn.Module):
    """Four branches side by side."""

    def __init__(self, before: int, widths: Widths, gates: bool, eps: float) -> None:
        """Build the block."""
        super().__init__()
        first, second, second_out, third, third_out, fourth = widths
        self.branches = nn.ModuleList(
            [
                nn.Sequential(Convolution(before, first, eps=eps)),
                nn.Sequential(
                    Convolution(before, second, eps=eps), *separable(second, second_out, kernel=3, stride=1, eps=eps)
                ),
                nn.Sequential(
                    Convolution(before, third, eps=eps), *separable(third, third_out, kernel=3, stride=1, eps=eps)
                ),
                nn.Sequential(nn.MaxPool3d(3, 1, 1), Convolution(before, fourth, eps=eps)),
            ]
        )
        outs = (first, second_out, third_out, fourth)
        self.gates = nn.ModuleList(Gate(width) if gates else nn.Identity() for width in outs)
        self.width = sum(outs)

    def forward(
        self, x: Float[Tensor, "batch before frames height width"]
    ) -> Float[Tensor, "batch channels frames height width"]:
        """Return the branches' maps, channel after channel."""
        return torch.cat([gate(branch(x)) for gate, branch in zip(self.gates, self.branches, strict=True)], dim=1)


class S3D(Encoder):
    """Five stages, of which each but the first begins with a maximum; the mean over time and places."""

    modality: Modality = "video"
    last = ()

    def __init__(self, config: S3DConfig) -> None:
        """Build the network; convolutions begin with a deviation of 0.01 (CoCLR; of the other form it is not known)."""
        super().__init__()
        self.stem_form = config.stem
        eps, (first, second, third) = config.eps, config.widths
        self.stem: nn.Module
        match config.stem:
            case "space_to_depth":
                self.stem = Convolution(24, first, (2, 4, 4), padding=(1, 2, 2), eps=eps)
            case "whole":
                self.stem = Convolution(3, first, (3, 7, 7), (2, 2, 2), (1, 3, 3), eps)
            case _:
                self.stem = separable(3, first, kernel=7, stride=2, eps=eps)
        flat, cube, last = ((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2)), ((2, 2, 2), (2, 2, 2))
        early = [Convolution(first, second, eps=eps), *separable(second, third, kernel=3, stride=1, eps=eps)]
        if config.stem_gate:
            early.append(Gate(third))
        self.blocks = nn.ModuleList([nn.Sequential(Maximum(*flat, config.padding), *early)])
        before = third
        for widths, window in zip(config.mixed, (flat, cube, last), strict=True):
            stage: list[nn.Module] = [Maximum(*window, config.padding)]
            for each in widths:
                block = Inception(before, each, config.gates, eps)
                stage.append(block)
                before = block.width
            self.blocks.append(nn.Sequential(*stage))
        self.width = before
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.normal_(module.weight, std=0.01)

    def forward(
        self,
        data: Float[Tensor, "batch frames height width 3"],
        length: Int[Tensor, " batch"] | None = None,
        keep: Int[Tensor, "batch kept"] | None = None,
        layers: bool = False,
    ) -> Features:
        """Encode a batch; ``tokens`` are the places of the last map, ``layers`` the maps of each stage as tokens.

        Args:
            data: In [0, 1] for the form of HowTo100M, of even sizes for ``space_to_depth``.
            length: Valid frames.
            keep: Not offered.
            layers: Whether to return the maps.

        Raises:
            ValueError: If tokens are to be dropped: convolutions need their neighbours.
        """
        if keep is not None:
            raise ValueError("a convolutional network needs all places; it cannot keep some")
        if self.stem_form == "space_to_depth":
            x = self.stem(space_to_depth(data).permute(0, 4, 1, 2, 3))[:, :, 1:, 1:, 1:]  # as TensorFlow pads
        else:
            x = self.stem(data.permute(0, 4, 1, 2, 3))
        outputs: list[Tensor] = []
        for stage in (nn.Identity(), *self.blocks):
            x = stage(x)
            if layers:
                outputs.append(x.flatten(2).transpose(1, 2))
        features = last_map(x, length, data.shape[1])
        return replace(features, layers=tuple(outputs)) if layers else features


def space_to_depth(
    video: Float[Tensor, "batch frames height width channels"],
) -> Float[Tensor, "batch steps rows columns eightfold"]:
    """Lay cubes of 2 x 2 x 2 pixels into channels: time, height, width, then the pixels' own channel."""
    steps, rows, columns = (size // 2 for size in video.shape[1:4])
    return patchify_video(video, (2, 2, 2)).unflatten(1, (steps, rows, columns))
