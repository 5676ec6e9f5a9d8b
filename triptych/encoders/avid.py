"""AVID's networks (Morgado et al. 2021, arXiv 2004.12943): R(2+1)D for frames, Conv2D for spectrograms.

Both end in the maximum over time and places. R(2+1)D here is not the one of ``video_resnet``: between the halves of a
convolution there are as many channels as behind it, and a block's last norm comes after the sum (convnets-common,
sections 3 and 8).
"""

from dataclasses import replace

from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from triptych.batch import Modality
from triptych.encoders.encoder import Encoder, Features
from triptych.encoders.video_resnet import last_map
from triptych.layers.batch_norm import BatchNorm
from triptych.layers.residual import normalize
from triptych.recipe import Config


class AVIDVideoConfig(Config):
    """Sizes; the defaults are AVID's R(2+1)D-18, 15,379,136 parameters."""

    stem: int = Field(64, ge=1)
    """Channels of the first convolution, over 3 frames and 7 x 7 pixels."""
    widths: tuple[int, ...] = Field((64, 128, 256, 512), min_length=1)
    """Channels of each stage; each but the first halves time and the picture."""
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    """Blocks of each stage (R(2+1)D-10: 1 each)."""

    @model_validator(mode="after")
    def _fits(self) -> "AVIDVideoConfig":
        if len(self.blocks) != len(self.widths):
            raise ValueError(f"there are {len(self.widths)} widths and {len(self.blocks)} numbers of blocks")
        return self


class AVIDAudioConfig(Config):
    """Sizes; the defaults are AVID's Conv2D-10, 4,725,696 parameters."""

    stem: int = Field(64, ge=1)
    """Channels of the first convolution, 7 x 7 with stride 2."""
    widths: tuple[int, ...] = Field((64, 128, 256, 512), min_length=1)
    """Channels of each pair of convolutions; each but the last halves steps and mels."""


class NormAfterSum(nn.Module):
    """Space, time, space, time; the shortcut is added to what the last convolution puts out, and then all is normed."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        """Build the block; ``stride`` is that of the first pair, and of the shortcut where the shape changes."""
        super().__init__()
        space, time = {"padding": (0, 1, 1), "bias": False}, {"padding": (1, 0, 0), "bias": False}
        self.space1 = nn.Conv3d(before, width, (1, 3, 3), (1, stride, stride), **space)  # type: ignore[arg-type]
        self.time1 = nn.Conv3d(width, width, (3, 1, 1), (stride, 1, 1), **time)  # type: ignore[arg-type]
        self.space2 = nn.Conv3d(width, width, (1, 3, 3), **space)  # type: ignore[arg-type]
        self.time2 = nn.Conv3d(width, width, (3, 1, 1), **time)  # type: ignore[arg-type]
        self.space1_norm, self.time1_norm, self.space2_norm, self.norm = (BatchNorm(width) for _ in range(4))
        changes = stride != 1 or before != width
        self.shortcut = nn.Conv3d(before, width, 1, stride, bias=False) if changes else None

    def forward(
        self, x: Float[Tensor, "batch before frames height width"]
    ) -> Float[Tensor, "batch channels steps rows columns"]:
        """Return the maps."""
        inner = functional.relu(normalize(self.space1_norm, self.space1(x)))
        inner = functional.relu(normalize(self.time1_norm, self.time1(inner)))
        inner = functional.relu(normalize(self.space2_norm, self.space2(inner)))
        inner = self.time2(inner) + (x if self.shortcut is None else self.shortcut(x))
        return functional.relu(normalize(self.norm, inner))


class Pair(nn.Module):
    """Two 3 x 3 convolutions with batch norms and ReLU, and no shortcut."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        """Build the pair; ``stride`` is that of the first."""
        super().__init__()
        self.convolution1 = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.convolution2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1, self.norm2 = BatchNorm(width), BatchNorm(width)

    def forward(self, x: Float[Tensor, "batch before steps bands"]) -> Float[Tensor, "batch channels rows columns"]:
        """Return the maps."""
        x = functional.relu(normalize(self.norm1, self.convolution1(x)))
        return functional.relu(normalize(self.norm2, self.convolution2(x)))


class AVIDVideo(Encoder):
    """A stem with a maximum over 3 x 3 places, stages of blocks, the maximum over time and places."""

    modality: Modality = "video"
    last = ()

    def __init__(self, config: AVIDVideoConfig) -> None:
        """Build the network with torch's initialisation (unverified)."""
        super().__init__()
        self.width = config.widths[-1]
        self.stem = nn.Conv3d(3, config.stem, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False)
        self.stem_norm = BatchNorm(config.stem)
        self.blocks = nn.ModuleList()
        self.ends: list[int] = []  # of each stage, the number of blocks so far
        before = config.stem
        for stage, (width, count) in enumerate(zip(config.widths, config.blocks, strict=True)):
            for number in range(count):
                self.blocks.append(NormAfterSum(before, width, 2 if stage and not number else 1))
                before = width
            self.ends.append(len(self.blocks))

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
        features = replace(last_map(x, length, data.shape[1]), pooled=x.amax(dim=(2, 3, 4)))
        return replace(features, layers=tuple(outputs)) if layers else features


class AVIDAudio(Encoder):
    """A stem, pairs of convolutions, the maximum over steps and mels; any size of spectrogram will do."""

    modality: Modality = "audio"
    last = ()

    def __init__(self, config: AVIDAudioConfig) -> None:
        """Build the network with torch's initialisation (unverified)."""
        super().__init__()
        self.width = config.widths[-1]
        self.stem = nn.Conv2d(1, config.stem, 7, 2, padding=3, bias=False)
        self.stem_norm = BatchNorm(config.stem)
        before = (config.stem, *config.widths[:-1])
        self.blocks = nn.ModuleList(
            Pair(first, second, 1 if number == len(config.widths) else 2)
            for number, (first, second) in enumerate(zip(before, config.widths, strict=True), 1)
        )

    def forward(
        self,
        data: Float[Tensor, "batch steps mels"],
        length: Int[Tensor, " batch"] | None = None,
        keep: Int[Tensor, "batch kept"] | None = None,
        layers: bool = False,
    ) -> Features:
        """Encode a batch; ``tokens`` are the places of the last map, ``layers`` the maps of each pair as tokens.

        Raises:
            ValueError: If tokens are to be dropped: convolutions need their neighbours.
        """
        if keep is not None:
            raise ValueError("a convolutional network needs all places; it cannot keep some")
        x = functional.relu(normalize(self.stem_norm, self.stem(data[:, None])))
        outputs: list[Tensor] = []
        for block in self.blocks:
            x = block(x)
            if layers:
                outputs.append(x.flatten(2).transpose(1, 2))
        features = last_map(x[:, :, :, None], length, data.shape[1])
        features = replace(features, pooled=x.amax(dim=(2, 3)))
        return replace(features, layers=tuple(outputs)) if layers else features
