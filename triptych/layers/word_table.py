"""A table of word vectors."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional


class WordTable(nn.Module):
    """Word vectors by id: learned, or a constant of the model."""

    weight: Float[Tensor, "entries width"]

    def __init__(self, entries: int, width: int, frozen: bool) -> None:
        """Draw a table; a frozen one waits for the vectors of a file."""
        super().__init__()
        table = torch.randn(entries, width)
        if frozen:
            self.register_buffer("weight", table)
        else:
            self.weight = nn.Parameter(table)

    def take(self, vectors: Float[Tensor, "entries width"]) -> None:
        """Fill the table, in place."""
        with torch.no_grad():
            self.weight.copy_(vectors)

    def forward(self, ids: Int[Tensor, "batch steps"]) -> Float[Tensor, "batch steps width"]:
        """Look the words up."""
        return functional.embedding(ids, self.weight)
