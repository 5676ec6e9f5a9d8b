"""ResDAVEnet: a residual network along the time of a spectrogram (Harwath, Hsu, Glass 2020), as AVLnet has it."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from triptych.batch import Modality
from triptych.encoders.encoder import Encoder, Features
from triptych.layers.batch_norm import BatchNorm
from triptych.layers.pooling import masked_mean

KERNEL = 9
"""Steps that a convolution sees."""


class ResidualBlock(nn.Module):
    """Convolution, norm, ReLU, convolution, norm, plus a shortcut, ReLU; channels stay last."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        """Build the block.

        Args:
            before: Channels that come in.
            width: Channels that go out.
            stride: Steps of time; where it is above 1, the shortcut is a convolution of one step and a norm.
        """
        super().__init__()
        self.conv1 = _convolution(before, width, KERNEL, stride)
        self.norm1 = BatchNorm(width)
        self.conv2 = _convolution(width, width, KERNEL, 1)
        self.norm2 = BatchNorm(width)
        self.shortcut = _convolution(before, width, 1, stride) if stride > 1 else None
        self.shortcut_norm = BatchNorm(width) if stride > 1 else None

    def forward(self, x: Float[Tensor, "batch steps width"]) -> Float[Tensor, "batch kept out_width"]:
        """Return the block's output, as many steps as ``stride`` leaves, rounded up."""
        own = self.norm2(_along_time(self.conv2, functional.relu(self.norm1(_along_time(self.conv1, x)))))
        if self.shortcut is not None and self.shortcut_norm is not None:
            x = self.shortcut_norm(_along_time(self.shortcut, x))
        return functional.relu(own + x)


class ResDAVEnet(Encoder):
    """All mel bands at once to channels, then stages of residual blocks, each of which halves the time."""

    def __init__(
        self,
        mels: int = 40,
        widths: Sequence[int] = (128, 128, 256, 512, 1024, 2048, 4096),
        blocks: Sequence[int] = (2, 2, 1, 1, 1, 1),
    ) -> None:
        """Build the encoder; convolutions have no bias and begin as N(0, 2 / (kernel x channels out)).

        Args:
            mels: Mel bands.
            widths: Channels of the first layer and of each stage.
            blocks: Residual blocks of each stage.
        """
        super().__init__()
        self.modality: Modality = "audio"
        self.width = widths[-1]
        self.stride = 2 ** len(blocks)
        self.project = nn.Linear(mels, widths[0], bias=False)  # a convolution over all bands and one step
        nn.init.normal_(self.project.weight, std=math.sqrt(2 / (mels * widths[0])))
        self.norm = BatchNorm(widths[0])
        self.blocks = nn.ModuleList(
            nn.Sequential(
                ResidualBlock(before, width, stride=2),
                *(ResidualBlock(width, width, stride=1) for _ in range(count - 1)),
            )
            for before, width, count in zip(widths[:-1], widths[1:], blocks, strict=True)
        )

    def forward(
        self,
        data: Float[Tensor, "batch steps mels"],
        length: Int[Tensor, " batch"] | None = None,
        keep: Int[Tensor, "batch kept"] | None = None,
        layers: bool = False,
    ) -> Features:
        """Encode spectrograms; ``pooled`` is the mean of the valid tokens.

        Args:
            data: Spectrogram, zeros beyond its length: the network sees them, as the authors' does.
            length: Valid steps; a token is valid if any of the steps that it stands for is.
            keep: Not offered: convolutions see all steps.
            layers: Whether to return the output of each stage.
        """
        assert keep is None, "a convolutional network has no tokens to drop"
        x = functional.relu(self.norm(self.project(data)))
        outputs = []
        for block in self.blocks:
            x = block(x)
            if layers:
                outputs.append(x)
        steps = torch.full((len(x),), x.shape[1], device=x.device) if length is None else -(-length // self.stride)
        valid = torch.arange(x.shape[1], device=x.device) < steps[:, None]
        return Features(
            tokens=x,
            pooled=masked_mean(x, valid),
            length=steps,
            grid=(x.shape[1], 1, 1),
            layers=tuple(outputs) if layers else None,
        )


def _convolution(before: int, width: int, kernel: int, stride: int) -> nn.Conv2d:
    """Return a convolution along the last of two axes (time; the other has one place), as the authors store it."""
    layer = nn.Conv2d(before, width, (1, kernel), stride=(1, stride), padding=(0, kernel // 2), bias=False)
    nn.init.normal_(layer.weight, std=math.sqrt(2 / (kernel * width)))
    return layer


def _along_time(convolution: nn.Conv2d, x: Float[Tensor, "batch steps width"]) -> Float[Tensor, "batch kept out_width"]:
    # Channels stay last in memory, which is what both layers are quick at.
    return convolution(x.transpose(1, 2)[:, :, None])[:, :, 0].transpose(1, 2)
