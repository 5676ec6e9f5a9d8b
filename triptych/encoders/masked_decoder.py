"""The light decoder of masked autoencoders: from the tokens that were kept to the values of every patch."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from triptych.layers.glorot import glorot
from triptych.layers.grid_positions import Grid, GridPositions, PositionKind
from triptych.layers.transformer import Block
from triptych.recipe import Config


class MaskedDecoderConfig(Config):
    """A decoder; the defaults are MAE's (vision-transformers-common, section 5)."""

    width: int = Field(512, ge=1)
    """Width of the stream."""
    layers: int = Field(8, ge=1)
    """Blocks."""
    heads: int = Field(16, ge=1)
    """Attention heads."""
    ratio: float = Field(4.0, gt=0)
    """Width of the feed-forward parts over `width`."""
    eps: float = Field(1e-6, gt=0)
    """Of the layer norms."""
    bias: bool = True
    """Whether queries, keys and values have biases."""
    norm: bool = True
    """Whether a layer norm comes before the last linear layer (XKD: no)."""
    class_token: Literal["encoder", "own", "none"] = "encoder"
    """What comes before the patches: the encoder's class token (MAE, XKD), a learned one of its own (mae_st), none."""
    positions: PositionKind = "learned"
    """As of the encoder."""


class MaskedDecoder(nn.Module):
    """Linear layer, mask tokens in the places that were hidden, positions, blocks, and values of each patch."""

    def __init__(self, config: MaskedDecoderConfig, width: int, grid: Grid, values: int) -> None:
        """Build the decoder, initialised as MAE: Xavier uniform, zero biases, tokens of deviation 0.02.

        Args:
            config: Sizes.
            width: Of the encoder's tokens.
            grid: Tokens along time, height and width.
            values: That a patch has.
        """
        super().__init__()
        self.tokens = grid[0] * grid[1] * grid[2]
        self.class_token = config.class_token
        self.embed = nn.Linear(width, config.width)
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, config.width))
        if config.class_token == "own":
            self.own_token = nn.Parameter(0.02 * torch.randn(1, config.width))
        self.positions = GridPositions(grid, config.width, config.positions, config.class_token != "none")
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.ratio, eps=config.eps, bias=config.bias)
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width, eps=config.eps) if config.norm else nn.Identity()
        self.predict = nn.Linear(config.width, values)
        glorot(self, whole=True)

    def forward(
        self,
        tokens: Float[Tensor, "batch kept width"],
        keep: Int[Tensor, "batch kept"],
        special: Float[Tensor, "batch special width"] | None = None,
    ) -> Float[Tensor, "batch tokens values"]:
        """Return the values of all patches, in the encoder's order.

        Args:
            tokens: What the encoder made of the kept patches.
            keep: Their places.
            special: The encoder's class token, where the decoder reads it.
        """
        kept = self.embed(tokens)
        everywhere = self.mask_token.to(kept.dtype).expand(len(kept), self.tokens, -1)
        x = everywhere.scatter(1, keep[..., None].expand(-1, -1, kept.shape[-1]), kept)
        if self.class_token == "encoder":
            assert special is not None
            x = torch.cat([self.embed(special), x], dim=1)
        elif self.class_token == "own":
            x = torch.cat([self.own_token.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
        x = x + self.positions()
        for block in self.blocks:
            x = block(x)
        values: Tensor = self.predict(self.norm(x[:, -self.tokens :]))
        return values
