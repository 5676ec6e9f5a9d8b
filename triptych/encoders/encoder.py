"""What every backbone answers."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

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
    layers: tuple[Float[Tensor, "batch _ _"], ...] | None = None
    """Output of each block, if asked for, special tokens included where the block saw them: tokens and width, which
    strides and merging change from block to block."""


class Encoder(nn.Module):
    """A backbone for one modality.

    Transformers also show three public stages, so that masking, fusion and adapters need no hooks:
    ``tokenize(data)``, ``blocks`` (each is ``x + attend(x)``, then ``x + feed(x)``) and ``finish(tokens)``; see
    ``Walkable``.
    """

    modality: Modality
    width: int
    """Width of ``Features.pooled`` and ``Features.tokens``."""
    last: tuple[str, ...] = ("norm", "head")
    """Names of modules behind ``blocks``, where it has them: trained at the full rate under layer decay."""

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


@runtime_checkable
class ResidualBlock(Protocol):
    """A block that is ``x + attend(x)``, then ``x + feed(x)``; others, such as patch merging, are only called."""

    width: int
    """Width of the stream."""

    def attend(self, x: Float[Tensor, "batch tokens width"], /) -> Float[Tensor, "batch tokens width"]:
        """Return what attention adds to the stream."""
        ...

    def feed(self, x: Float[Tensor, "batch tokens width"], /) -> Float[Tensor, "batch tokens width"]:
        """Return what the feed-forward part adds to the stream."""
        ...


class Walkable(Protocol):
    """A transformer that others run block by block: ``enter``, each of ``blocks``, ``finish`` are its ``forward``."""

    @property
    def blocks(self) -> nn.ModuleList:
        """In their order."""
        ...

    def enter(
        self, data: Tensor, length: Int[Tensor, " batch"] | None = None
    ) -> tuple[Float[Tensor, "batch all_tokens width"], Tensor]:
        """Return what the first block reads, special tokens in their places, and what ``finish`` is told is valid."""
        ...

    def finish(self, tokens: Float[Tensor, "batch all_tokens width"], valid: Tensor, /) -> Features:
        """Return the features of what the last block put out."""
        ...
