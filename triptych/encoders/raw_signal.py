"""VATT's encoders of raw signals: voxels, waveforms, spectrograms or words, cut into tokens for a transformer.

Each modality may have a transformer of its own, or all share one (modality-agnostic); see ``RawSignalEncoder``.
"""

import math
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from triptych.batch import Modality
from triptych.encoders.encoder import Encoder, Features
from triptych.layers.glorot import glorot
from triptych.layers.patches import ConvolutionalStem, patchify_video
from triptych.layers.position_tables import PositionTables
from triptych.layers.transformer import Block
from triptych.layers.word_table import WordTable
from triptych.recipe import Config

EPS = 1e-6
"""Of every layer norm."""

Pool = Literal["agg", "max"]
"""What a vector is read from: the aggregation token, or the maximum over it and all valid tokens."""


class TransformerSize(Config):
    """A stack of transformer layers; the default is VATT's Base."""

    layers: int = Field(12, ge=1)
    """Layers."""
    width: int = Field(768, ge=1)
    """Width of the stream."""
    heads: int = Field(12, ge=1)
    """Attention heads."""
    head_width: int = Field(64, ge=1)
    """Width of each head; `heads` times as much may differ from `width`."""
    hidden: int = Field(3072, ge=1)
    """Width of the feed-forward part."""


class Transformer(nn.Module):
    """Pre-norm layers, a last layer norm, and dropout after it; several encoders may share one."""

    def __init__(self, size: TransformerSize, dropout: float) -> None:
        """Build the layers; ``dropout`` is on attention weights, residual branches, hidden units and the output."""
        super().__init__()
        self.width = size.width
        self.blocks = nn.ModuleList(
            Block(
                size.width,
                size.heads,
                ratio=size.hidden / size.width,
                dropout=dropout,
                eps=EPS,
                head_width=size.head_width,
            )
            for _ in range(size.layers)
        )
        self.norm = nn.LayerNorm(size.width, eps=EPS)
        self.dropout = nn.Dropout(dropout)
        glorot(self)


class Cut(nn.Module):
    """How a signal becomes raw tokens."""

    values: int
    """Values of a raw token."""
    buckets: dict[str, int]
    """Positions that the tables have, by axis, in the order of the tokens."""
    bias: bool = True
    """Whether the projection of raw tokens has one."""

    def grid(self, data: Tensor) -> tuple[int, ...]:
        """Return the tokens along each axis; what fills no whole token is left out."""
        raise NotImplementedError

    def valid(self, data: Tensor, length: Int[Tensor, " batch"] | None) -> Bool[Tensor, "batch tokens"]:
        """Return which tokens hold something, from the valid steps of each row (all where None)."""
        raise NotImplementedError

    def forward(self, data: Tensor) -> Float[Tensor, "batch tokens values"]:
        """Return the raw tokens."""
        raise NotImplementedError


def _begun(
    data: Tensor, grid: tuple[int, ...], length: Int[Tensor, " batch"] | None, steps: int
) -> Bool[Tensor, "batch tokens"]:
    """Return which tokens begin before the end of their row; the first axis of the grid is time."""
    if length is None:
        return torch.ones(len(data), math.prod(grid), dtype=torch.bool, device=data.device)
    begin = torch.arange(grid[0], device=data.device).repeat_interleave(math.prod(grid[1:])) * steps
    return begin < length[:, None]


class Voxels(Cut):
    """Frames to tubelets in the order time, height, width; values in the order time, height, width, channel."""

    def __init__(
        self, frames: int, size: tuple[int, int], tubelet: tuple[int, int], stem: tuple[tuple[int, int], ...] = ()
    ) -> None:
        """Build the cut.

        Args:
            frames: Frames that the tables of positions are made for.
            size: Height and width of these frames, pixels.
            tubelet: Frames and side of a token.
            stem: Channels and stride of convolutions before; a token's places are then pooled by their maximum.
        """
        super().__init__()
        self.tubelet = tubelet
        self.buckets = {
            "time": frames // tubelet[0],
            "height": size[0] // tubelet[1],
            "width": size[1] // tubelet[1],
        }
        self.stem = None
        self.values = 3 * tubelet[0] * tubelet[1] ** 2
        if stem:
            widths, strides = zip(*stem, strict=True)
            self.stem = ConvolutionalStem(3, widths, [(stride, stride) for stride in strides])
            self.values = tubelet[0] * widths[-1]
            self.places = tubelet[1] // math.prod(strides)

    def grid(self, data: Float[Tensor, "batch frames height width 3"]) -> tuple[int, ...]:
        """Return the tokens along time, height and width."""
        frames, side = self.tubelet
        return data.shape[1] // frames, data.shape[2] // side, data.shape[3] // side

    def valid(self, data: Tensor, length: Int[Tensor, " batch"] | None) -> Bool[Tensor, "batch tokens"]:
        """Return the tokens with a valid frame."""
        return _begun(data, self.grid(data), length, self.tubelet[0])

    def forward(self, data: Float[Tensor, "batch frames height width 3"]) -> Float[Tensor, "batch tokens values"]:
        """Cut the frames, or what the stem makes of each."""
        frames, side = self.tubelet
        time, rows, columns = self.grid(data)
        whole = data[:, : time * frames, : rows * side, : columns * side]
        if self.stem is None:
            return patchify_video(whole, (frames, side, side))
        maps = self.stem(whole.flatten(0, 1)).permute(0, 3, 1, 2)
        pooled = functional.max_pool2d(maps, self.places).permute(0, 2, 3, 1)
        return patchify_video(pooled.unflatten(0, whole.shape[:2]), (frames, 1, 1))


class Waveform(Cut):
    """Samples to stretches of equal length."""

    def __init__(self, samples: int, patch: int) -> None:
        """Build the cut; the table of positions is made for ``samples``, a token has ``patch`` of them."""
        super().__init__()
        self.values = self.patch = patch
        self.buckets = {"time": samples // patch}

    def grid(self, data: Float[Tensor, "batch samples"]) -> tuple[int, ...]:
        """Return the tokens along time."""
        return (data.shape[1] // self.patch,)

    def valid(self, data: Tensor, length: Int[Tensor, " batch"] | None) -> Bool[Tensor, "batch tokens"]:
        """Return the tokens with a valid sample."""
        return _begun(data, self.grid(data), length, self.patch)

    def forward(self, data: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch tokens values"]:
        """Cut the samples."""
        (time,) = self.grid(data)
        return data[:, : time * self.patch].unflatten(1, (time, self.patch))


class Spectrogram(Cut):
    """Spectrogram to patches in the order time, mel; values in the order time, mel (and channel, after a stem)."""

    bias = False

    def __init__(
        self, steps: int, mels: int, patch: tuple[int, int], stem: tuple[tuple[int, int, int], ...] = ()
    ) -> None:
        """Build the cut.

        Args:
            steps: Spectrogram frames that the tables of positions are made for.
            mels: Mel bands.
            patch: Frames and bands of a token.
            stem: Channels, stride in time and stride in mels of convolutions before.
        """
        super().__init__()
        self.patch = patch
        self.buckets = {"time": steps // patch[0], "mels": mels // patch[1]}
        self.stem = None
        self.cells = patch
        self.values = patch[0] * patch[1]
        if stem:
            widths, *strides = zip(*stem, strict=True)
            self.stem = ConvolutionalStem(1, widths, list(zip(*strides, strict=True)))
            self.cells = (patch[0] // math.prod(strides[0]), patch[1] // math.prod(strides[1]))
            self.values = self.cells[0] * self.cells[1] * widths[-1]

    def grid(self, data: Float[Tensor, "batch steps mels"]) -> tuple[int, ...]:
        """Return the tokens along time and mels."""
        return data.shape[1] // self.patch[0], data.shape[2] // self.patch[1]

    def valid(self, data: Tensor, length: Int[Tensor, " batch"] | None) -> Bool[Tensor, "batch tokens"]:
        """Return the tokens with a valid frame."""
        return _begun(data, self.grid(data), length, self.patch[0])

    def forward(self, data: Float[Tensor, "batch steps mels"]) -> Float[Tensor, "batch tokens values"]:
        """Cut the spectrogram, or what the stem makes of it."""
        time, mels = self.grid(data)
        whole = data[:, : time * self.patch[0], : mels * self.patch[1], None]
        maps = whole if self.stem is None else self.stem(whole)
        return patchify_video(maps[:, None], (1, *self.cells))


class Words(Cut):
    """Ids to word vectors; id 0 is padding, which is not attended to."""

    def __init__(self, steps: int, vocabulary: int, width: int, frozen: bool) -> None:
        """Build the vectors; ``steps`` are the positions, ``frozen`` ones are not trained."""
        super().__init__()
        self.values = width
        self.buckets = {"time": steps}
        self.words = WordTable(vocabulary, width, frozen)

    def grid(self, data: Int[Tensor, "batch steps"]) -> tuple[int, ...]:
        """Return the number of words, padding included."""
        return (data.shape[1],)

    def valid(
        self, data: Int[Tensor, "batch steps"], length: Int[Tensor, " batch"] | None
    ) -> Bool[Tensor, "batch tokens"]:
        """Return what is no padding; the words say so themselves."""
        return data != 0

    def forward(self, data: Int[Tensor, "batch steps"]) -> Float[Tensor, "batch tokens values"]:
        """Look the words up."""
        vectors: Tensor = self.words(data)
        return vectors


class RawSignalEncoder(Encoder):
    """Raw tokens, a projection, positions, an aggregation token before them, a transformer.

    With ``projected`` it is one modality of a modality-agnostic model (section 4): a dense layer with GELU leads into
    the transformer, which others may share, and another leads out of it to that width.
    """

    def __init__(
        self,
        modality: Modality,
        cut: Cut,
        transformer: Transformer,
        dropout: float,
        projected: int | None = None,
        pool: Pool = "agg",
    ) -> None:
        """Build the encoder.

        Args:
            modality: What it reads.
            cut: Signal to raw tokens.
            transformer: Of its own, or shared.
            dropout: After the positions.
            projected: Width of the features of a modality-agnostic model; None: a model of its own.
            pool: What a row's vector is read from.
        """
        super().__init__()
        self.modality = modality
        self.cut = cut
        self.pool = pool
        width = transformer.width
        words = isinstance(cut, Words)
        self.project = nn.Identity() if words else nn.Linear(cut.values, width, bias=cut.bias)
        self.before: nn.Module = nn.Identity()
        self.after: nn.Module = nn.Identity()
        if projected is not None:
            self.before = nn.Sequential(nn.Linear(cut.values if words else width, width), nn.GELU())
            self.after = nn.Sequential(nn.Linear(width, projected), nn.GELU())
        self.width = projected or width
        self.positions = PositionTables(cut.buckets, width, EPS)
        self.dropout = nn.Dropout(dropout)
        self.agg = nn.Parameter(torch.empty(width))
        nn.init.trunc_normal_(self.agg, std=width**-0.5, a=-2 * width**-0.5, b=2 * width**-0.5)
        for part in (self.project, self.before, self.after):
            glorot(part)
        self.transformer = transformer

    last = ("transformer.norm", "after")

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer's layers."""
        return self.transformer.blocks

    @property
    def buckets(self) -> int:
        """Positions that the tables have."""
        return math.prod(self.cut.buckets.values())

    def grid(self, data: Tensor) -> tuple[int, ...]:
        """Return the tokens of ``data`` along each axis."""
        return self.cut.grid(data)

    def tokenize(self, data: Tensor) -> Float[Tensor, "batch tokens width"]:
        """Return tokens with their positions, without the aggregation token."""
        tokens = self.before(self.project(self.cut(data)))
        placed: Tensor = self.dropout(tokens + self.positions(self.grid(data)))
        return placed

    def enter(
        self,
        data: Tensor,
        length: Int[Tensor, " batch"] | None = None,
        keep: Int[Tensor, "batch kept"] | None = None,
    ) -> tuple[Float[Tensor, "batch all_tokens width"], Bool[Tensor, "batch tokens"]]:
        """Return what the first layer reads, aggregation token first, and which of the other tokens hold something."""
        tokens, valid = self.tokenize(data), self.cut.valid(data, length)
        if keep is not None:
            tokens = tokens.gather(1, keep[..., None].expand(-1, -1, tokens.shape[-1]))
            valid = valid.gather(1, keep)
        return torch.cat([self.agg.expand(len(tokens), 1, -1), tokens], dim=1), valid

    def finish(self, tokens: Float[Tensor, "batch all_tokens width"], valid: Bool[Tensor, "batch tokens"]) -> Features:
        """Return the features of what the last layer put out, aggregation token first."""
        read: Tensor = self.after(self.transformer.dropout(self.transformer.norm(tokens)))
        return Features(
            tokens=read[:, 1:], pooled=read_out(read, valid, self.pool), length=valid.sum(dim=1), special=read[:, :1]
        )

    def forward(
        self,
        data: Tensor,
        length: Int[Tensor, " batch"] | None = None,
        keep: Int[Tensor, "batch kept"] | None = None,
        layers: bool = False,
    ) -> Features:
        """Encode a batch; see ``Encoder.forward``. The padding of text is not attended to, that of other signals is.

        ``keep`` may be in any order, which the tokens then have. The words of text say themselves which are valid.
        """
        x, valid = self.enter(data, length, keep)
        mask = functional.pad(valid, (1, 0), value=True) if self.modality == "text" else None
        outputs = []
        for block in self.blocks:
            x = block(x, mask)
            if layers:
                outputs.append(x)
        features = self.finish(x, valid)
        time, height, width, *_ = (*self.grid(data), 1, 1)
        grid = (time, height, width) if keep is None else None
        return replace(features, grid=grid, layers=tuple(outputs) if layers else None)


def read_out(
    tokens: Float[Tensor, "batch all_tokens width"], valid: Bool[Tensor, "batch tokens"], pool: Pool
) -> Float[Tensor, "batch width"]:
    """Return one vector a row: the aggregation token, which is the first, or the maximum over it and valid tokens."""
    if pool == "agg":
        return tokens[:, 0]
    there = functional.pad(valid, (1, 0), value=True)
    return tokens.masked_fill(~there[..., None], float("-inf")).amax(dim=1)
