"""ResNet-50 over clips: Slow-R50, R2D3D-50 and TSM, which differ in how they look along time.

Slow-R50 (SlowFast's slow pathway, Feichtenhofer et al. 2019) and R2D3D-50 (CoCLR) have kernels of three frames in the
first convolution of the later blocks; TSM (Lin et al. 2019) looks at each frame alone, but moves channels between
frames (convnets-common, sections 4, 5 and 7).
"""

from dataclasses import replace
from functools import partial

from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from triptych.batch import Modality
from triptych.encoders.encoder import Encoder, Features
from triptych.encoders.video_resnet import last_map
from triptych.layers.batch_norm import BatchNorm
from triptych.layers.bottleneck import EXPANSION, Bottleneck
from triptych.layers.residual import normalize
from triptych.layers.temporal_shift import Convention, shift_channels
from triptych.recipe import Config

DEEP = 23
"""From so many blocks in the third stage on, only every second block shifts (TSM)."""


class BottleneckResNetConfig(Config):
    """Sizes; the defaults are Slow-R50, 31,634,496 parameters."""

    stem: int = Field(64, ge=1)
    """Channels of the first convolution."""
    stem_steps: int = Field(1, ge=1)
    """Its kernel in time, odd (R2D3D-50: 5)."""
    stem_stride: int = Field(1, ge=1)
    """Its stride in time (R2D3D-50: 2)."""
    inner: tuple[int, ...] = Field((64, 128, 256, 512), min_length=1)
    """Channels of each stage's convolutions over places; four times as many go out. Each stage but the first halves the
    picture."""
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    """Blocks of each stage."""
    steps: tuple[int, ...] = (1, 1, 3, 3)
    """Kernel in time of the first convolution of each stage's blocks, odd (TSM: 1 throughout)."""
    shift: Convention | None = None
    """Whose shift of channels along time comes before each block's first convolution (TSM)."""
    eps: float = Field(1e-5, gt=0)
    """Of the batch norms."""

    @model_validator(mode="after")
    def _fits(self) -> "BottleneckResNetConfig":
        if not len(self.inner) == len(self.blocks) == len(self.steps):
            raise ValueError("`inner`, `blocks` and `steps` name the same stages: they are equally long")
        if any(steps % 2 == 0 for steps in (self.stem_steps, *self.steps)):
            raise ValueError("kernels in time have an odd number of steps")
        return self


def r2d3d50() -> BottleneckResNetConfig:
    """Return R2D3D-50 as CoCLR has it: 31,672,128 parameters."""
    return BottleneckResNetConfig(stem_steps=5, stem_stride=2)


def tsm50(convention: Convention = "mit") -> BottleneckResNetConfig:
    """Return TSM on ResNet-50: 23,508,032 parameters, those of a network of images."""
    return BottleneckResNetConfig(steps=(1, 1, 1, 1), shift=convention)


class BottleneckResNet(Encoder):
    """A stem with a maximum over 3 x 3 places, stages of bottlenecks, the mean over time and places."""

    modality: Modality = "video"
    last = ()

    def __init__(self, config: BottleneckResNetConfig) -> None:
        """Build the network; convolutions begin as He et al. have it (fan out)."""
        super().__init__()
        self.width = EXPANSION * config.inner[-1]
        kernel, strides = (config.stem_steps, 7, 7), (config.stem_stride, 2, 2)
        self.stem = nn.Conv3d(3, config.stem, kernel, strides, (config.stem_steps // 2, 3, 3), bias=False)
        self.stem_norm = BatchNorm(config.stem, config.eps)
        self.blocks = nn.ModuleList()
        self.ends: list[int] = []  # of each stage, the number of blocks so far
        before = config.stem
        every = 2 if len(config.blocks) > 2 and config.blocks[2] >= DEEP else 1
        shift = None if config.shift is None else partial(shift_channels, convention=config.shift)
        stages = zip(config.inner, config.blocks, config.steps, strict=True)
        for stage, (inner, count, steps) in enumerate(stages):
            for number in range(count):
                stride = 2 if stage and not number else 1
                here = shift if number % every == 0 else None
                self.blocks.append(Bottleneck(before, inner, stride, steps, shift=here, eps=config.eps))
                before = EXPANSION * inner
            self.ends.append(len(self.blocks))
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

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
        x = functional.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))
        outputs: list[Tensor] = []
        for number, block in enumerate(self.blocks, 1):
            x = block(x)
            if layers and number in self.ends:
                outputs.append(x.flatten(2).transpose(1, 2))
        features = last_map(x, length, data.shape[1])
        return replace(features, layers=tuple(outputs)) if layers else features
