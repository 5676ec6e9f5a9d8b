"""A head that scores prototypes (DINO's, as XKD has it)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class PrototypeHead(nn.Module):
    """Linear layers with ONE layer norm behind all but the last, then cosines with prototypes, normed over these."""

    gain: Tensor

    def __init__(
        self, width: int, hidden: int = 2048, bottleneck: int = 256, prototypes: int = 8192, layers: int = 3
    ) -> None:
        """Build the head; linear layers are drawn from a normal distribution of deviation 0.02, cut off.

        Args:
            width: Of the features.
            hidden: Width between the layers.
            bottleneck: Width of what is compared with the prototypes.
            prototypes: Their number.
            layers: Linear layers before the prototypes, at least two.
        """
        super().__init__()
        widths = [width, *[hidden] * (layers - 1)]
        self.hidden = nn.ModuleList(nn.Linear(before, hidden) for before in widths[:-1])
        self.norm = nn.LayerNorm(hidden)
        self.bottleneck = nn.Linear(hidden, bottleneck)
        self.prototypes = nn.Parameter(torch.empty(prototypes, bottleneck))
        self.register_buffer("gain", torch.ones(prototypes, 1))
        nn.init.trunc_normal_(self.prototypes, std=0.02)
        for layer in (*self.hidden, self.bottleneck):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Float[Tensor, "batch width"]) -> Float[Tensor, "batch prototypes"]:
        """Return a score for each prototype; those of a row have mean 0 and variance 1."""
        for layer in self.hidden:
            x = functional.gelu(self.norm(layer(x)))
        x = functional.normalize(self.bottleneck(x), dim=-1)
        scores = functional.linear(x, self.gain * functional.normalize(self.prototypes, dim=-1))
        return functional.layer_norm(scores, scores.shape[-1:])
