"""What every backbone answers."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor, nn

from triptych.batch import Modality


@dataclass(frozen=True)
class Features:
    """What an encoder yields."""

    tokens: Float[Tensor, "batch tokens width"]
    """Tokens of places in time and space, without class or feature tokens."""
    pooled: Float[Tensor, "batch width"]
    """One vector a row, as the paper reads it for downstream tasks."""
    length: Int[Tensor, " batch"]
    """Valid tokens of each row."""
    grid: tuple[int, int, int] | None = None
    """Time, height and width of the tokens (1 where an axis is not there); None after tokens were dropped."""
    special: Float[Tensor, "batch special width"] | None = None
    """Class or feature tokens, if the encoder has any."""
    layers: tuple[Float[Tensor, "batch all_tokens width"], ...] | None = None
    """Output of each block, if asked for, special tokens included where the block saw them."""


class Encoder(nn.Module):
    """A backbone for one modality.

    Transformers also show three public stages, so that masking, fusion and adapters need no hooks:
    ``tokenize(data)``, ``blocks`` (each is ``x + attend(x)``, then ``x + feed(x)``) and ``finish(tokens)``.
    """

    modality: Modality
    width: int
    """Width of ``Features.pooled`` and ``Features.tokens``."""

    def forward(
        self,
        data: Tensor,
        length: Int[Tensor, " batch"] | None = None,
        keep: Int[Tensor, "batch kept"] | None = None,
        layers: bool = False,
    ) -> Features:
        """Encode a batch.

        Args:
            data: As in ``Clip.data`` of the encoder's modality, without candidates.
            length: Valid steps along time; all where None.
            keep: Indices of the tokens that are kept (masking, DropToken); all where None.
            layers: Whether to return the output of each block.
        """
        raise NotImplementedError
