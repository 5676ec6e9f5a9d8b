"""Residual blocks of convolutional networks, whatever the number of axes; batch norms are ours, over all processes."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from triptych.layers.batch_norm import BatchNorm


def normalize(norm: BatchNorm, x: Float[Tensor, "batch channels *places"]) -> Float[Tensor, "batch channels *places"]:
    """Normalise maps, whose channels then lie last in memory, which is what the norm and convolutions are quick at."""
    normal: Tensor = norm(x.movedim(1, -1)).movedim(-1, 1)
    return normal


class ResidualBlock(nn.Module):
    """Two convolutions with batch norms and activations round a shortcut."""

    def __init__(
        self,
        width: int,
        convolutions: tuple[nn.Module, nn.Module],
        shortcut: nn.Module | None = None,
        activation: Callable[[int], nn.Module] = lambda width: nn.ReLU(),
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        """Build the block.

        Args:
            width: Channels that go out.
            convolutions: Without norms after them.
            shortcut: Convolution where the shape changes, with a batch norm after it; None: the identity.
            activation: Of so many channels.
            eps: Of the batch norms.
            momentum: Of the batch norms, as torch means it.
        """
        super().__init__()
        self.convolution1, self.convolution2 = convolutions
        self.norm1 = BatchNorm(width, eps, momentum)
        self.norm2 = BatchNorm(width, eps, momentum)
        self.activation1 = activation(width)
        self.activation2 = activation(width)
        self.shortcut = shortcut
        if shortcut is not None:
            self.shortcut_norm = BatchNorm(width, eps, momentum)

    def forward(self, x: Float[Tensor, "batch before *places"]) -> Float[Tensor, "batch channels *fewer"]:
        """Return the maps."""
        inner = self.activation1(normalize(self.norm1, self.convolution1(x)))
        inner = normalize(self.norm2, self.convolution2(inner))
        if self.shortcut is not None:
            x = normalize(self.shortcut_norm, self.shortcut(x))
        output: Tensor = self.activation2(inner + x)
        return output


def flat_block(
    before: int,
    width: int,
    stride: int,
    activation: Callable[[int], nn.Module] = lambda width: nn.ReLU(),
    eps: float = 1e-5,
    momentum: float = 0.1,
) -> ResidualBlock:
    """Return a block of 3 x 3 convolutions on ``batch channels height width``, with a shortcut where it is needed.

    Args:
        before: Channels that come in.
        width: Channels that go out.
        stride: Of the first convolution, and of the shortcut's.
        activation: Of so many channels.
        eps: Of the batch norms.
        momentum: Of the batch norms.
    """
    first = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
    second = nn.Conv2d(width, width, 3, padding=1, bias=False)
    changes = stride != 1 or before != width
    shortcut = nn.Conv2d(before, width, 1, stride, bias=False) if changes else None
    return ResidualBlock(width, (first, second), shortcut, activation, eps, momentum)
