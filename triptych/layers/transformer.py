"""The transformer block that every encoder is made of."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from triptych.layers.attention import SelfAttention


class Block(nn.Module):
    """Attention and a feed-forward part round a residual stream, both public.

    Pre-norm: ``x + attend(norm(x))``, then ``x + feed(norm(x))``. Post-norm: ``norm(x + attend(x))``, then
    ``norm(x + feed(x))``.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        ratio: float = 4.0,
        norm: Literal["pre", "post"] = "pre",
        dropout: float = 0.0,
        eps: float = 1e-6,
        bias: bool = True,
        inner_dropout: float | None = None,
        drop_path: float = 0.0,
        head_width: int | None = None,
    ) -> None:
        """Build the block.

        Args:
            width: Width of the stream.
            heads: Attention heads; must divide ``width``, unless ``head_width`` is given.
            ratio: Width of the feed-forward part over ``width``.
            norm: Place of the layer norms.
            dropout: On attention weights, after attention, inside and after the feed-forward part.
            eps: Of the layer norms (1e-6 in timm's blocks, 1e-5 is PyTorch's default).
            bias: Whether queries, keys and values have one.
            inner_dropout: Inside the feed-forward part, where it differs from ``dropout``.
            drop_path: Probability that a row of a batch passes by attention, and again by the feed-forward part
                (stochastic depth); what stays is scaled up.
            head_width: Width of each head; ``width / heads`` where None.
        """
        super().__init__()
        self.width = width
        self.post = norm == "post"
        self.attention = SelfAttention(width, heads, dropout, bias, head_width)
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        hidden = round(width * ratio)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)
        self.inner_dropout = nn.Dropout(dropout if inner_dropout is None else inner_dropout)
        self.drop_path = drop_path

    def attend(
        self, x: Float[Tensor, "batch tokens width"], mask: Bool[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch tokens width"]:
        """Return what attention adds to the stream; ``mask`` is true where a token may be attended to."""
        attended: Tensor = self.attention(x if self.post else self.norm1(x), mask)
        return self._drop_rows(self.dropout(attended))

    def map(
        self, x: Float[Tensor, "batch tokens width"], mask: Bool[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch heads tokens tokens"]:
        """Return the attention weights that ``attend`` uses, each row summing to 1."""
        return self.attention.map(x if self.post else self.norm1(x), mask)

    def feed(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        """Return what the feed-forward part adds to the stream."""
        hidden = functional.gelu(self.linear1(x if self.post else self.norm2(x)))
        fed: Tensor = self.linear2(self.inner_dropout(hidden))
        return self._drop_rows(self.dropout(fed))

    def _drop_rows(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        if not self.training or not self.drop_path:
            return x
        kept = torch.rand(len(x), 1, 1, device=x.device) >= self.drop_path
        return x * kept / (1 - self.drop_path)

    def forward(
        self, x: Float[Tensor, "batch tokens width"], mask: Bool[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch tokens width"]:
        """Return the stream after attention and feed-forward part."""
        # By the class: FSDP gathers and frees the parameters round what is called on the block itself.
        x = x + Block.attend(self, x, mask)
        if self.post:
            x = self.norm1(x)
        x = x + Block.feed(self, x)
        return self.norm2(x) if self.post else x
