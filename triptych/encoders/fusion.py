"""A transformer over sets of tokens, of one stream or of several at once, and the gated units before and after it."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from triptych.layers.transformer import Block

INITIAL = 0.02
"""Standard deviation of linear weights and of the masking token at the start (timm's)."""


class TokenSet(NamedTuple):
    """Tokens whose order does not matter, and which of them there truly are."""

    tokens: Float[Tensor, "batch tokens width"]
    mask: Bool[Tensor, "batch tokens"]

    @classmethod
    def of(cls, tokens: Float[Tensor, "batch tokens width"], length: Int[Tensor, " batch"]) -> "TokenSet":
        """Return the first ``length`` tokens of each row."""
        return cls(tokens, torch.arange(tokens.shape[1], device=tokens.device) < length[:, None])

    @property
    def present(self) -> Bool[Tensor, " batch"]:
        """Rows that have a token."""
        return self.mask.any(dim=1)


class GatedUnit(nn.Module):
    """A linear layer, and a second one on its output that says, value by value, how much of it passes (Miech 2018)."""

    def __init__(self, width: int, out: int) -> None:
        """Build the unit; PyTorch's default initialisation."""
        super().__init__()
        self.linear = nn.Linear(width, out)
        self.gate = nn.Linear(out, out)

    def forward(self, x: Float[Tensor, "*axes width"]) -> Float[Tensor, "*axes out"]:
        """Return h sigmoid(gate(h)), h = linear(x)."""
        h = self.linear(x)
        return h * self.gate(h).sigmoid()


class FusionTransformer(nn.Module):
    """Blocks that see the tokens of any streams side by side: no positions, no marks of the stream, no class token.

    So that no row is without a token, a masking token stands in the place of a stream that a row lacks. There is no
    norm after the last block (the released code of Everything at Once has one, and never applies it).
    """

    masking_token: Float[Tensor, " width"]
    """A constant, drawn once: losses leave out what a row lacks, so that no gradient ever reaches it."""

    def __init__(self, width: int, heads: int, depth: int = 1, ratio: float = 1.0) -> None:
        """Build the blocks, pre-norm with eps 1e-6.

        Args:
            width: Of the tokens.
            heads: Attention heads; must divide ``width``.
            depth: Blocks.
            ratio: Width of the feed-forward part over ``width``.
        """
        super().__init__()
        self.register_buffer("masking_token", nn.init.trunc_normal_(torch.empty(width), std=INITIAL))
        self.blocks = nn.ModuleList(Block(width, heads, ratio) for _ in range(depth))
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INITIAL)
                nn.init.zeros_(module.bias)

    def fill(self, found: TokenSet) -> TokenSet:
        """Return the set with the masking token as the first and only token of rows that have none."""
        first = torch.arange(found.mask.shape[1], device=found.mask.device) == 0
        filled = ~found.present[:, None] & first
        tokens = torch.where(filled[..., None], self.masking_token.to(found.tokens.dtype), found.tokens)
        return TokenSet(tokens, found.mask | filled)

    def forward(self, sets: Mapping[str, TokenSet]) -> dict[str, TokenSet]:
        """Return the tokens after the blocks, in the sets that they came in.

        Args:
            sets: By stream, filled: each row has a token.
        """
        x = torch.cat([found.tokens for found in sets.values()], dim=1)
        mask = torch.cat([found.mask for found in sets.values()], dim=1)
        for block in self.blocks:
            x = block(x, mask)
        parts = x.split([found.tokens.shape[1] for found in sets.values()], dim=1)
        return {stream: TokenSet(part, sets[stream].mask) for stream, part in zip(sets, parts, strict=True)}
