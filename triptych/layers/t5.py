"""The text block of T5 in VATT's form: relative positions, attention without biases or scaling, two kinds of norms."""

import math

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional


def relative_buckets(relative: Int[Tensor, "*axes"], buckets: int, distance: int) -> Int[Tensor, "*axes"]:
    """Return the bucket of a key that lies ``relative`` places after its query.

    Half of the buckets are for keys after the query. Of each half ``n``, the first ``e = n // 2`` are for the distances
    0 to ``e - 1``, the others grow logarithmically: ``e + trunc(ln(r / e) / ln(distance / e) * (n - e))``, at most
    ``n - 1`` (vatt, section 4).

    Args:
        relative: Place of the key minus place of the query.
        buckets: How many there are.
        distance: From here on all is one bucket.
    """
    half = buckets // 2
    exact = half // 2
    far = relative.abs()
    ratio = (far.double() / exact).clamp(min=1).log() / math.log(distance / exact)
    coarse = (exact + (ratio * (half - exact)).long()).clamp(max=half - 1)
    return far.where(far < exact, coarse) + half * (relative > 0)


class T5Attention(nn.Module):
    """Multi-head self-attention without biases and without scaling of the scores."""

    def __init__(self, width: int, heads: int, head_width: int, dropout: float) -> None:
        """Build the layer; ``dropout`` is on the attention weights."""
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * heads * head_width, bias=False)
        self.output = nn.Linear(heads * head_width, width, bias=False)

    def forward(
        self, x: Float[Tensor, "batch tokens width"], bias: Float[Tensor, "batch heads tokens tokens"]
    ) -> Float[Tensor, "batch tokens width"]:
        """Attend; ``bias`` is added to the scores."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        attended = functional.scaled_dot_product_attention(query, key, value, bias, dropout, scale=1.0)
        output: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return output


class T5Block(nn.Module):
    """Attention under an RMS norm and a feed-forward part under an ordinary layer norm, both without biases."""

    def __init__(self, width: int, heads: int, head_width: int, hidden: int, dropout: float, eps: float = 1e-6) -> None:
        """Build the block.

        Args:
            width: Width of the stream.
            heads: Attention heads.
            head_width: Width of each.
            hidden: Width of the feed-forward part.
            dropout: On attention weights, after attention, inside and after the feed-forward part.
            eps: Of both norms.
        """
        super().__init__()
        self.norm1 = nn.RMSNorm(width, eps=eps)
        self.attention = T5Attention(width, heads, head_width, dropout)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.linear1 = nn.Linear(width, hidden, bias=False)
        self.linear2 = nn.Linear(hidden, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def attend(
        self, x: Float[Tensor, "batch tokens width"], bias: Float[Tensor, "batch heads tokens tokens"]
    ) -> Float[Tensor, "batch tokens width"]:
        """Return what attention adds to the stream; ``bias`` is added to the scores."""
        attended: Tensor = self.dropout(self.attention(self.norm1(x), bias))
        return attended

    def feed(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        """Return what the feed-forward part adds to the stream."""
        hidden = functional.gelu(self.linear1(self.norm2(x)))
        fed: Tensor = self.dropout(self.linear2(self.dropout(hidden)))
        return fed

    def forward(
        self, x: Float[Tensor, "batch tokens width"], bias: Float[Tensor, "batch heads tokens tokens"]
    ) -> Float[Tensor, "batch tokens width"]:
        """Return the stream after attention and feed-forward part."""
        x = x + self.attend(x, bias)
        return x + self.feed(x)
