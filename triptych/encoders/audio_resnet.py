"""Residual networks over log-mels: those for images, and VMZ's, the kin of XDC's (convnets-common, section 8)."""

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
from triptych.layers.bottleneck import EXPANSION, Bottleneck
from triptych.layers.residual import flat_block, normalize
from triptych.recipe import Config


class AudioResNetConfig(Config):
    """Sizes; the defaults are VMZ's acoustic ResNet-18, 11,202,528 parameters."""

    stem: int | None = Field(16, ge=1)
    """Channels of a first 3 x 3 convolution with a bias, without norm (VMZ). None: 7 x 7 with stride 2, batch norm,
    ReLU and a maximum, as networks of images have it (ResNet-9 and 18 of SeLaVi, GDT)."""
    widths: tuple[int, ...] = Field((32, 64, 128, 256, 512), min_length=1)
    """Channels of each stage (ResNet-18: 64, 128, 256, 512)."""
    blocks: tuple[int, ...] = (3, 2, 2, 2, 2)
    """Blocks of each stage (ResNet-9: 1 each; ResNet-18: 2 each)."""
    bottleneck: bool = False
    """Whether a block's 3 x 3 convolution stands between two of 1 x 1, and four times as many channels go out
    (ResNet-50)."""
    pool: Literal["max", "mean"] = "max"
    """What becomes of the places of the last map: their maximum (VMZ), or their mean."""
    eps: float = Field(1e-3, gt=0)
    """Of the batch norms (image networks: 1e-5)."""

    @model_validator(mode="after")
    def _fits(self) -> "AudioResNetConfig":
        if len(self.blocks) != len(self.widths):
            raise ValueError(f"there are {len(self.widths)} widths and {len(self.blocks)} numbers of blocks")
        return self


def resnet18(blocks: int = 2) -> AudioResNetConfig:
    """Return the image network of 18 layers (9 with one block a stage) on spectrograms of one channel."""
    return AudioResNetConfig(stem=None, widths=(64, 128, 256, 512), blocks=(blocks,) * 4, pool="mean", eps=1e-5)


def resnet50() -> AudioResNetConfig:
    """Return the image network of 50 layers on spectrograms of one channel: 23,501,760 parameters."""
    return resnet18().model_copy(update={"blocks": (3, 4, 6, 3), "bottleneck": True})


class AudioResNet(Encoder):
    """A stem, stages of residual blocks, one vector of the last map; any size of spectrogram will do."""

    modality: Modality = "audio"
    last = ()

    def __init__(self, config: AudioResNetConfig) -> None:
        """Build the network; convolutions begin as He et al. have it (fan in under VMZ's stem, else fan out)."""
        super().__init__()
        self.options = config
        expansion = EXPANSION if config.bottleneck else 1
        self.width = expansion * config.widths[-1]
        before = config.stem or config.widths[0]
        if config.stem is None:
            self.stem = nn.Conv2d(1, before, 7, 2, padding=3, bias=False)
            self.stem_norm = BatchNorm(before, config.eps)
        else:
            self.stem = nn.Conv2d(1, before, 3, padding=1)
        self.blocks = nn.ModuleList()
        self.ends: list[int] = []  # of each stage, the number of blocks so far
        for stage, (width, count) in enumerate(zip(config.widths, config.blocks, strict=True)):
            for number in range(count):
                stride = 2 if not number and (stage > 0 or config.stem is not None) else 1
                if config.bottleneck:
                    self.blocks.append(Bottleneck(before, width, stride, axes=2, eps=config.eps))
                else:
                    self.blocks.append(flat_block(before, width, stride, eps=config.eps))
                before = expansion * width
            self.ends.append(len(self.blocks))
        mode: Literal["fan_in", "fan_out"] = "fan_out" if config.stem is None else "fan_in"
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self,
        data: Float[Tensor, "batch steps mels"],
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
        x = self.stem(data[:, None])
        if self.options.stem is None:
            x = functional.max_pool2d(functional.relu(normalize(self.stem_norm, x)), 3, 2, padding=1)
        outputs = []
        for number, block in enumerate(self.blocks, 1):
            x = block(x)
            if layers and number in self.ends:
                outputs.append(_tokens(x))
        steps, bands = x.shape[2:]
        valid = torch.full((len(x),), steps, device=x.device)
        if length is not None:
            valid = -(-length * steps // data.shape[1])
        features = Features(
            tokens=_tokens(x),
            pooled=x.amax(dim=(2, 3)) if self.options.pool == "max" else x.mean(dim=(2, 3)),
            length=(valid * bands).clamp(max=steps * bands),
            grid=(steps, 1, bands),
        )
        return replace(features, layers=tuple(outputs)) if layers else features


def _tokens(x: Float[Tensor, "batch channels steps bands"]) -> Float[Tensor, "batch tokens channels"]:
    return x.flatten(2).transpose(1, 2)
