"""Adapters: small trained layers beside the frozen ones of a backbone."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from triptych.layers.batch_norm import BatchNorm

TokenInit = Literal["uniform", "normal", "zeros"]
"""First values of latent tokens: from [0, 1), of deviation 0.02, or zeros (which stay alike for ever)."""


class GroupedLinear(nn.Module):
    """A linear layer without bias in groups: each part of the output sees one part of the input (a 1 x 1 convolution).

    Initialised as PyTorch's convolutions.
    """

    def __init__(self, width: int, out: int, groups: int) -> None:
        """Build the layer; ``groups`` must divide ``width`` and ``out``."""
        super().__init__()
        self.groups = groups
        bound = (width // groups) ** -0.5
        self.weight = nn.Parameter(torch.empty(out, width // groups).uniform_(-bound, bound))

    def forward(self, x: Float[Tensor, "*axes width"]) -> Float[Tensor, "*axes out"]:
        """Apply the layer to the last axis."""
        parts, weight = x.unflatten(-1, (self.groups, -1)), self.weight.unflatten(0, (self.groups, -1))
        return torch.einsum("...gi,goi->...go", parts, weight).flatten(-2)


class LatentAdapter(nn.Module):
    """Lets a stream read another one through a few latent tokens, then a bottleneck (LAVISH, arXiv 2212.07983).

    The tokens sum up the other stream by attention, the stream reads the tokens by attention; neither has projections
    or a scale. Cost is linear in both lengths. The output, and what is read, begin at zero.
    """

    def __init__(
        self,
        width: int,
        tokens: int = 2,
        reduction: int = 8,
        groups: int = 2,
        init: TokenInit = "uniform",
        batch_norm: bool = True,
        norm_before: bool = True,
        norm_after: bool = True,
        gate: bool = True,
    ) -> None:
        """Build the adapter.

        Args:
            width: Width of both streams.
            tokens: Latent tokens; 0 makes a plain bottleneck without activation that reads nothing of the other stream.
            reduction: The bottleneck's width is ``width // reduction``.
            groups: Of both linear layers; must divide ``width`` and the bottleneck.
            init: First values of the tokens.
            batch_norm: Whether a batch norm follows each linear layer.
            norm_before: Whether a layer norm comes before the bottleneck.
            norm_after: Whether one comes after it.
            gate: Whether the output is multiplied by a learned scalar that begins at zero.
        """
        super().__init__()
        hidden = width // reduction
        self.tokens = None
        if tokens:
            drawn = {"uniform": torch.rand, "normal": torch.randn, "zeros": torch.zeros}[init](tokens, width)
            self.tokens = nn.Parameter(0.02 * drawn if init == "normal" else drawn)
            self.read_gate = nn.Parameter(torch.zeros(1))
        self.norm_before = nn.LayerNorm(width) if norm_before else nn.Identity()
        self.down = GroupedLinear(width, hidden, groups)
        self.down_norm = BatchNorm(hidden) if batch_norm else nn.Identity()
        self.up = GroupedLinear(hidden, width, groups)
        self.up_norm = BatchNorm(width) if batch_norm else nn.Identity()
        self.norm_after = nn.LayerNorm(width) if norm_after else nn.Identity()
        self.gate = nn.Parameter(torch.zeros(1)) if gate else None

    def read(
        self, x: Float[Tensor, "batch tokens width"], other: Float[Tensor, "batch others width"]
    ) -> Float[Tensor, "batch tokens width"]:
        """Return what each token of ``x`` reads of ``other``: A2 P' with P' = P + A1 o (both softmaxes unscaled)."""
        assert self.tokens is not None
        tokens = self.tokens
        summary = tokens + (tokens @ other.transpose(1, 2)).softmax(dim=-1) @ other
        return (x @ summary.transpose(1, 2)).softmax(dim=-1) @ summary

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        other: Float[Tensor, "others_batch others width"] | None = None,
        pairs: tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]] | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        """Return what is added to the stream.

        Args:
            x: The stream.
            other: What it reads; where None it reads nothing.
            pairs: Rows of ``x`` and of ``other`` that belong together, where not all do; other rows read nothing.
        """
        if other is not None and self.tokens is not None:
            if pairs is None:
                x = x + self.read_gate * self.read(x, other)
            else:
                mine, theirs = pairs
                x = x.index_add(0, mine, self.read_gate * self.read(x[mine], other[theirs]))
        hidden = self.down_norm(self.down(self.norm_before(x)))
        if self.tokens is not None:  # the authors' plain bottleneck has no activation
            hidden = hidden.relu()
        added: Tensor = self.norm_after(self.up_norm(self.up(hidden)))
        return added if self.gate is None else self.gate * added
