"""Attention."""

from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional


class SelfAttention(nn.Module):
    """Multi-head self-attention: one linear layer for queries, keys and values (in this order), one for the output.

    Initialised as PyTorch's ``nn.MultiheadAttention``: Xavier uniform for the former, zero biases.
    """

    def __init__(
        self, width: int, heads: int, dropout: float = 0.0, bias: bool = True, head_width: int | None = None
    ) -> None:
        """Build the layer.

        Args:
            width: Width of the stream.
            heads: Attention heads; must divide ``width``, unless ``head_width`` is given.
            dropout: On the attention weights.
            bias: Whether queries, keys and values have one (the output always has).
            head_width: Width of each head; ``width / heads`` where None.
        """
        super().__init__()
        if head_width is None and width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")
        inner = heads * (head_width or width // heads)
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * inner, bias=bias)
        self.output = nn.Linear(inner, width)
        nn.init.xavier_uniform_(self.qkv.weight)
        if bias:
            nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.output.bias)

    def forward(
        self, x: Float[Tensor, "batch tokens width"], mask: Bool[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch tokens width"]:
        """Attend; ``mask`` is true where a token may be attended to."""
        query, key, value = self._split(x)
        attended = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if mask is None else mask[:, None, None, :],
            dropout_p=self.dropout if self.training else 0.0,
        )
        output: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return output

    def map(
        self, x: Float[Tensor, "batch tokens width"], mask: Bool[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch heads tokens tokens"]:
        """Return the attention weights, each row summing to 1."""
        query, key, _ = self._split(x)
        scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], float("-inf"))
        return scores.softmax(dim=-1)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return query, key, value
