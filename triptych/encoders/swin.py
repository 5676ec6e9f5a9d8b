"""Swin Transformer V2 (Liu et al. 2022, arXiv 2111.09883), as timm 0.6.7 has it, on the frames of a clip.

Attention within shifted windows, by the cosine of queries and keys; a position bias that a small network makes of
log-spaced offsets; layer norms after attention and after the feed-forward part, on what is added to the stream.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from triptych.batch import Modality
from triptych.encoders.encoder import Encoder, Features

HIDDEN = 512
"""Width of the network that makes the position bias (section 3.3)."""
LARGEST_SCALE = math.log(100.0)
"""Of the logarithm of the cosine's multiplier (section 3.2: the temperature stays above 0.01)."""
BARRED = -100.0
"""Added to the scores of tokens that share a shifted window but are no neighbours in the picture."""


def log_spaced_offsets(window: tuple[int, int]) -> Float[Tensor, "offsets 2"]:
    """Return all offsets (rows, columns) between two tokens of a window, row by row (equation 4, base 8).

    An offset d becomes 8 d / (window - 1), then sign(d) log2(1 + |d|) / log2(8): from -log8(9) to log8(9).
    """
    axes = [torch.arange(1 - side, side) * (8.0 / max(side - 1, 1)) for side in window]
    offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)
    return offsets.sign() * torch.log2(offsets.abs() + 1) / 3


def offset_places(window: tuple[int, int]) -> Int[Tensor, "tokens tokens"]:
    """Return the place among ``log_spaced_offsets`` of the offset of each query (rows) to each key (columns)."""
    rows, columns = torch.meshgrid(*map(torch.arange, window), indexing="ij")
    down, across = (
        (x.flatten()[:, None] - x.flatten()) + side - 1 for x, side in zip((rows, columns), window, strict=True)
    )
    return down * (2 * window[1] - 1) + across


def shifted_mask(
    grid: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]
) -> Float[Tensor, "windows 1 tokens tokens"]:
    """Return what is added to attention scores so that windows of a rolled map do not look round its edges.

    Args:
        grid: Rows and columns of the map; multiples of the window's.
        window: Rows and columns of a window.
        shift: By how many rows and columns the map is rolled up and left.
    """
    regions = []
    for side, length, step in zip(grid, window, shift, strict=True):
        place = torch.arange(side)
        regions.append((place >= side - length).long() + (place >= side - step).long() if step else place * 0)
    region = 3 * regions[0][:, None] + regions[1]
    region = region.unflatten(1, (-1, window[1])).unflatten(0, (-1, window[0])).transpose(1, 2).flatten(0, 1).flatten(1)
    return BARRED * (region[:, None, :, None] != region[:, None, None, :]).float()


def stage_sides(size: int, patch: int, window: int, stages: int) -> tuple[int, ...]:
    """Return the side of each stage's map, tokens.

    Args:
        size: Side of a frame, pixels.
        patch: Side of a first token, pixels.
        window: Side of a window, tokens.
        stages: Number of stages; between two of them the side is halved.

    Raises:
        ValueError: If patches, mergings or windows do not divide the sides that they cut.
    """
    if size % patch:
        raise ValueError(f"patches of {patch} pixels do not divide frames of {size}")
    sides = [size // patch]
    for _ in range(stages - 1):
        if sides[-1] % 2:
            raise ValueError(f"a map of {sides[-1]} x {sides[-1]} tokens cannot be merged by squares of four")
        sides.append(sides[-1] // 2)
    for side in sides:
        if side > window and side % window:
            raise ValueError(f"windows of {window} tokens do not divide a map of {side} x {side}")
    return tuple(sides)


class WindowAttention(nn.Module):
    """Cosine attention within windows, with a continuous position bias (sections 3.2 and 3.3)."""

    offsets: Tensor
    places: Tensor

    def __init__(self, width: int, heads: int, window: tuple[int, int]) -> None:
        """Build the layer for windows of one size; keys have no bias."""
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.query_bias = nn.Parameter(torch.zeros(width))
        self.value_bias = nn.Parameter(torch.zeros(width))
        self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10.0)))
        self.position = nn.Sequential(nn.Linear(2, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, heads, bias=False))
        self.output = nn.Linear(width, width)
        self.register_buffer("offsets", log_spaced_offsets(window), persistent=False)
        self.register_buffer("places", offset_places(window), persistent=False)

    def bias(self) -> Float[Tensor, "heads tokens tokens"]:
        """Return the position bias of each query and key, from 0 to 16."""
        table: Tensor = self.position(self.offsets)
        return 16 * table[self.places].permute(2, 0, 1).sigmoid()

    def forward(
        self,
        x: Float[Tensor, "batch windows tokens width"],
        mask: Float[Tensor, "windows 1 tokens tokens"] | None = None,
    ) -> Float[Tensor, "batch windows tokens width"]:
        """Attend within each window; ``mask`` is added to the scores."""
        qkv = self.qkv(x) + torch.cat([self.query_bias, torch.zeros_like(self.query_bias), self.value_bias])
        query, key, value = qkv.unflatten(-1, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5)
        scale = self.logit_scale.clamp(max=LARGEST_SCALE).exp()
        query = functional.normalize(query, dim=-1) * scale
        bias = self.bias()
        attended = functional.scaled_dot_product_attention(
            query,
            functional.normalize(key, dim=-1),
            value,
            attn_mask=(bias if mask is None else bias + mask).to(query.dtype),
            scale=1.0,
        )
        output: Tensor = self.output(attended.transpose(2, 3).flatten(3))
        return output


class SwinBlock(nn.Module):
    """``x + attend(x)``, then ``x + feed(x)``, both normed at their end (res-post-norm, section 3.2)."""

    mask: Tensor | None

    def __init__(self, width: int, heads: int, grid: tuple[int, int], window: int, shifted: bool, ratio: float) -> None:
        """Build the block.

        Args:
            width: Width of the stream.
            heads: Attention heads; must divide ``width``.
            grid: Rows and columns of the tokens of a frame.
            window: Side of a window, tokens; along an axis that is not longer, the window is the whole axis.
            shifted: Whether windows are moved by half their side (not along an axis that is one window).
            ratio: Width of the feed-forward part over ``width``.
        """
        super().__init__()
        self.width = width
        self.grid = grid
        rows, columns = (min(side, window) for side in grid)
        self.window = (rows, columns)
        down, across = (window // 2 if shifted and side > window else 0 for side in grid)
        self.shift = (down, across)
        self.attention = WindowAttention(width, heads, self.window)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, round(width * ratio))
        self.linear2 = nn.Linear(round(width * ratio), width)
        mask = shifted_mask(grid, self.window, self.shift) if any(self.shift) else None
        self.register_buffer("mask", mask, persistent=False)

    def attend(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        """Return what attention adds to the stream; tokens are those of whole frames, each attended to by itself."""
        frames = x.unflatten(1, (-1, *self.grid)).flatten(0, 1)
        if any(self.shift):
            frames = frames.roll((-self.shift[0], -self.shift[1]), dims=(1, 2))
        rows, columns = self.window
        cut = frames.unflatten(2, (-1, columns)).unflatten(1, (-1, rows)).transpose(2, 3)
        attended = self.attention(cut.flatten(3, 4).flatten(1, 2), self.mask)
        whole = attended.unflatten(2, self.window).unflatten(1, cut.shape[1:3]).transpose(2, 3)
        frames = whole.flatten(3, 4).flatten(1, 2)
        if any(self.shift):
            frames = frames.roll(self.shift, dims=(1, 2))
        added: Tensor = self.norm1(frames.reshape(x.shape))
        return added

    def feed(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        """Return what the feed-forward part adds to the stream."""
        added: Tensor = self.norm2(self.linear2(functional.gelu(self.linear1(x))))
        return added

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        """Return the stream after attention and feed-forward part."""
        x = x + self.attend(x)
        return x + self.feed(x)


class PatchMerging(nn.Module):
    """Between two stages: each square of four tokens becomes one of twice the width."""

    def __init__(self, width: int, grid: tuple[int, int]) -> None:
        """Build the layer; ``grid`` is the tokens' before it."""
        super().__init__()
        self.grid = grid
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(2 * width)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch merged wider"]:
        """Merge; the order within a square is down the first column, then down the second."""
        rows, columns = (side // 2 for side in self.grid)
        squares = x.unflatten(1, (-1, rows, 2, columns, 2)).permute(0, 1, 2, 4, 5, 3, 6)
        merged: Tensor = self.norm(self.reduction(squares.flatten(4).flatten(1, 3)))
        return merged


class Swin(Encoder):
    """Swin V2 without its classifier; ``pooled`` is the mean over places of the normed last map."""

    modality: Modality = "video"

    def __init__(
        self,
        size: int = 192,
        patch: int = 4,
        width: int = 192,
        depths: Sequence[int] = (2, 2, 18, 2),
        heads: Sequence[int] = (6, 12, 24, 48),
        window: int = 12,
        ratio: float = 4.0,
    ) -> None:
        """Build the encoder; defaults are those of ``swinv2_large_window12_192_22k``.

        Args:
            size: Side of a frame, pixels.
            patch: Side of a first token, pixels.
            width: Width of the first stage, doubled from stage to stage.
            depths: Blocks of each stage.
            heads: Attention heads of each stage.
            window: Side of a window, tokens.
            ratio: Width of a feed-forward part over the stream's.

        Raises:
            ValueError: As ``stage_sides``.
        """
        super().__init__()
        self.project = nn.Conv2d(3, width, patch, patch)
        self.embedding_norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList()
        sides = stage_sides(size, patch, window, len(depths))
        for stage, (side, depth, count) in enumerate(zip(sides, depths, heads, strict=True)):
            if stage:
                self.blocks.append(PatchMerging(width, (2 * side, 2 * side)))
                width = 2 * width
            for number in range(depth):
                self.blocks.append(SwinBlock(width, count, (side, side), window, number % 2 == 1, ratio))
        self.width = width
        self.side = sides[-1]
        self.merged = (sides[0] // sides[-1]) ** 2
        self.norm = nn.LayerNorm(width)
        self.apply(_initialise)

    def tokenize(self, data: Float[Tensor, "batch frames height width 3"]) -> Float[Tensor, "batch tokens dim"]:
        """Return the patches of every frame, projected and normed, row by row."""
        maps = self.project(data.flatten(0, 1).permute(0, 3, 1, 2))
        tokens: Tensor = self.embedding_norm(maps.flatten(2).transpose(1, 2))
        return tokens.unflatten(0, data.shape[:2]).flatten(1, 2)

    def enter(
        self, data: Float[Tensor, "batch frames height width 3"], length: Int[Tensor, " batch"] | None = None
    ) -> tuple[Float[Tensor, "batch tokens dim"], Int[Tensor, " batch"]]:
        """Return the tokens, and how many there are; all frames count, whatever ``length`` says."""
        tokens = self.tokenize(data)
        return tokens, torch.full((len(tokens),), tokens.shape[1] // self.merged, device=tokens.device)

    def finish(self, tokens: Float[Tensor, "batch tokens dim"], valid: Int[Tensor, " batch"]) -> Features:
        """Return the features of what the last block put out."""
        normed: Tensor = self.norm(tokens)
        grid = (normed.shape[1] // self.side**2, self.side, self.side)
        return Features(tokens=normed, pooled=normed.mean(dim=1), length=valid, grid=grid)

    def forward(
        self,
        data: Float[Tensor, "batch frames height width 3"],
        length: Int[Tensor, " batch"] | None = None,
        keep: Int[Tensor, "batch kept"] | None = None,
        layers: bool = False,
    ) -> Features:
        """Encode a batch, each frame by itself; see ``Encoder.forward``.

        Raises:
            ValueError: If tokens are to be dropped: windows need them all.
        """
        if keep is not None:
            raise ValueError("Swin's windows need all tokens of a frame; it cannot keep some")
        x, valid = self.enter(data, length)
        outputs = []
        for block in self.blocks:
            x = block(x)
            if layers:
                outputs.append(x)
        features = self.finish(x, valid)
        return replace(features, layers=tuple(outputs)) if layers else features


def _initialise(module: nn.Module) -> None:
    """Draw linear layers from a normal distribution cut off, of deviation 0.02; what a block adds begins at zero."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, SwinBlock):
        for norm in (module.norm1, module.norm2):
            nn.init.zeros_(norm.weight)
