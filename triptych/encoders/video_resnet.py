"""The 18-layer video ResNet and its kin: R(2+1)D, R3D, MCx and rMCx (Tran et al. 2018, arXiv 1711.11248).

Two code families differ in the width between the halves of a (2+1)D convolution, and in the batch norms: torchvision's,
and VMZ's (Caffe2), which XDC's networks were trained with (convnets-common, section 2).
"""

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from triptych.batch import Modality
from triptych.encoders.encoder import Encoder, Features
from triptych.layers.batch_norm import BatchNorm
from triptych.layers.residual import ResidualBlock, normalize
from triptych.recipe import Config


class VideoResNetConfig(Config):
    """Sizes; the defaults are R(2+1)D-18 as VMZ and XDC have it, 33,165,639 parameters."""

    form: Literal["r2plus1d", "r3d", "mc", "rmc"] = "r2plus1d"
    """Convolutions: in space, then in time; in both at once; in both up to a stage and in space from it on (`mc`), or
    the other way round (`rmc`)."""
    turn: int = Field(3, ge=2, le=6)
    """Of `mc` and `rmc`: the x of MCx, from which convolutions change; conv2_x is the first stage. 3: MC3."""
    planes: Literal["vmz", "torchvision"] = "vmz"
    """Width between the halves of a (2+1)D convolution: from its own channels, or from those of its block."""
    widths: tuple[int, ...] = Field((64, 128, 256, 512), min_length=1)
    """Channels of each stage; each but the first halves the picture."""
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    """Blocks of each stage (34 layers: 3, 4, 6, 3)."""
    stem: int = Field(45, ge=1)
    """Channels between the halves of the stem of R(2+1)D."""
    pool: bool = False
    """Whether a maximum over 3 x 3 places follows the stem (`use_pool1` of VMZ, on in its nets of 152 layers)."""
    eps: float = Field(1e-3, gt=0)
    """Of the batch norms (torchvision: 1e-5)."""
    momentum: float = Field(0.1, gt=0, le=1)
    """Of the batch norms, as torch means it: 0.1 is what Caffe2 calls 0.9. The released files have 0.9 in torch's."""

    @model_validator(mode="after")
    def _fits(self) -> "VideoResNetConfig":
        if len(self.blocks) != len(self.widths):
            raise ValueError(f"there are {len(self.widths)} widths and {len(self.blocks)} numbers of blocks")
        return self


def middle_planes(before: int, after: int) -> int:
    """Return the width between the halves of a (2+1)D convolution that has as many weights as a 3-D one."""
    return 27 * before * after // (9 * before + 3 * after)


class SpaceThenTime(nn.Module):
    """A convolution over height and width, batch norm, ReLU, and one over time; maps are channels first."""

    def __init__(
        self,
        channels: tuple[int, int, int],
        sizes: tuple[int, int] = (3, 3),
        strides: tuple[int, int] = (1, 1),
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        """Build the layer.

        Args:
            channels: That come in, between, and that go out.
            sizes: Of the kernels: in time, and in height and width.
            strides: In time, and in height and width.
            eps: Of the batch norm.
            momentum: Of the batch norm.
        """
        super().__init__()
        before, between, after = channels
        (steps, side), (in_time, in_space) = sizes, strides
        space = ((1, side, side), (1, in_space, in_space), (0, side // 2, side // 2))
        self.spatial = nn.Conv3d(before, between, *space, bias=False)
        self.spatial_norm = BatchNorm(between, eps, momentum)
        self.temporal = nn.Conv3d(between, after, (steps, 1, 1), (in_time, 1, 1), (steps // 2, 0, 0), bias=False)

    def forward(
        self, x: Float[Tensor, "batch before frames height width"]
    ) -> Float[Tensor, "batch channels steps rows columns"]:
        """Return the maps."""
        output: Tensor = self.temporal(functional.relu(normalize(self.spatial_norm, self.spatial(x))))
        return output


class VideoResNet(Encoder):
    """A stem, stages of residual blocks, the mean over time and places."""

    modality: Modality = "video"
    last = ()

    def __init__(self, config: VideoResNetConfig) -> None:
        """Build the network; convolutions begin as He et al. have it (fan out; fan in under VMZ's rule)."""
        super().__init__()
        self.options = config
        self.width = config.widths[-1]
        norm = (config.eps, config.momentum)
        first = config.widths[0]
        if config.form == "r2plus1d":
            self.stem: nn.Module = SpaceThenTime((3, config.stem, first), (3, 7), (1, 2), *norm)
        else:
            steps = 1 if config.form == "rmc" else 3
            self.stem = nn.Conv3d(3, first, (steps, 7, 7), (1, 2, 2), (steps // 2, 3, 3), bias=False)
        self.stem_norm = BatchNorm(first, *norm)
        self.blocks = nn.ModuleList()
        self.ends: list[int] = []  # of each stage, the number of blocks so far
        before = first
        for stage, (width, count) in enumerate(zip(config.widths, config.blocks, strict=True)):
            for number in range(count):
                self.blocks.append(self._block(before, width, stage, 2 if stage and not number else 1))
                before = width
            self.ends.append(len(self.blocks))
        mode: Literal["fan_in", "fan_out"] = "fan_in" if config.planes == "vmz" else "fan_out"
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")

    def _block(self, before: int, width: int, stage: int, stride: int) -> ResidualBlock:
        config = self.options
        norm = (config.eps, config.momentum)
        # Flat convolutions leave time as it is.
        flat = {"mc": stage + 2 >= config.turn, "rmc": stage + 2 < config.turn}.get(config.form, False)
        in_time = 1 if flat else stride
        convolutions: list[nn.Module] = []
        for number, (source, step) in enumerate(((before, stride), (width, 1))):
            if config.form == "r2plus1d":
                own = config.planes == "vmz" and number == 1
                between = middle_planes(width if own else before, width)
                convolutions.append(SpaceThenTime((source, between, width), (3, 3), (step, step), *norm))
            else:
                steps = 1 if flat else 3
                strides = (step if not flat else 1, step, step)
                padding = (steps // 2, 1, 1)
                convolutions.append(nn.Conv3d(source, width, (steps, 3, 3), strides, padding, bias=False))
        shortcut = None
        if stride != 1 or before != width:
            shortcut = nn.Conv3d(before, width, 1, (in_time, stride, stride), bias=False)
        first, second = convolutions
        return ResidualBlock(width, (first, second), shortcut, eps=config.eps, momentum=config.momentum)

    def forward(
        self,
        data: Float[Tensor, "batch frames height width 3"],
        length: Int[Tensor, " batch"] | None = None,
        keep: Int[Tensor, "batch kept"] | None = None,
        layers: bool = False,
    ) -> Features:
        """Encode a batch; ``tokens`` are the places of the last map, ``layers`` the maps of each stage as tokens.

        Raises:
            ValueError: If tokens are to be dropped: convolutions need their neighbours.
        """
        if keep is not None:
            raise ValueError("a convolutional network needs all places; it cannot keep some")
        x = functional.relu(normalize(self.stem_norm, self.stem(data.permute(0, 4, 1, 2, 3))))
        if self.options.pool:
            x = functional.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))
        outputs = []
        for number, block in enumerate(self.blocks, 1):
            x = block(x)
            if layers and number in self.ends:
                outputs.append(_tokens(x))
        features = last_map(x, length, data.shape[1])
        return replace(features, layers=tuple(outputs)) if layers else features


def last_map(
    x: Float[Tensor, "batch channels steps rows columns"], length: Int[Tensor, " batch"] | None, frames: int
) -> Features:
    """Return the features of a last map: its places as tokens, and their mean.

    Args:
        x: The map.
        length: Valid frames of each row; all where None.
        frames: Of the clip that the map was made of.
    """
    steps, rows, columns = x.shape[2:]
    valid = torch.full((len(x),), steps, device=x.device)
    if length is not None:
        valid = -(-length * steps // frames)
    return Features(
        tokens=_tokens(x),
        pooled=x.mean(dim=(2, 3, 4)),
        length=(valid * rows * columns).clamp(max=steps * rows * columns),
        grid=(steps, rows, columns),
    )


def _tokens(x: Float[Tensor, "batch channels *places"]) -> Float[Tensor, "batch tokens channels"]:
    return x.flatten(2).transpose(1, 2)
