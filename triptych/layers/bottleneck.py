"""Bottleneck blocks: a convolution over places between two of one place each, round a shortcut."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from triptych.layers.batch_norm import BatchNorm
from triptych.layers.residual import normalize

EXPANSION = 4
"""Channels that go out over those of the convolution over places."""


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1 convolutions with batch norms; the first may also look along time, or after a shift of it."""

    def __init__(
        self,
        before: int,
        inner: int,
        stride: int = 1,
        steps: int = 1,
        axes: int = 3,
        shift: Callable[[Tensor], Tensor] | None = None,
        eps: float = 1e-5,
    ) -> None:
        """Build the block.

        Args:
            before: Channels that come in.
            inner: Channels of the convolution over places; four times as many go out.
            stride: In height and width, of the convolution over places and of the shortcut.
            steps: Kernel of the first convolution in time.
            axes: 3 for time, height and width; 2 for height and width.
            shift: Done to what the first convolution reads, not to the shortcut.
            eps: Of the batch norms.
        """
        super().__init__()
        convolution: Callable[..., nn.Module] = nn.Conv3d if axes == 3 else nn.Conv2d
        width = EXPANSION * inner
        strides = (1, stride, stride)[-axes:]
        along, over = (steps, 1, 1)[-axes:], (1, 3, 3)[-axes:]
        pads = [tuple(size // 2 for size in kernel) for kernel in (along, over)]
        self.shift = shift
        self.convolution1 = convolution(before, inner, along, padding=pads[0], bias=False)
        self.convolution2 = convolution(inner, inner, over, strides, pads[1], bias=False)
        self.convolution3 = convolution(inner, width, 1, bias=False)
        self.norm1, self.norm2, self.norm3 = BatchNorm(inner, eps), BatchNorm(inner, eps), BatchNorm(width, eps)
        self.shortcut: nn.Module | None = None
        if stride != 1 or before != width:
            self.shortcut = convolution(before, width, 1, strides, bias=False)
            self.shortcut_norm = BatchNorm(width, eps)

    def forward(self, x: Float[Tensor, "batch before *places"]) -> Float[Tensor, "batch channels *fewer"]:
        """Return the maps."""
        inner = x if self.shift is None else self.shift(x)
        inner = functional.relu(normalize(self.norm1, self.convolution1(inner)))
        inner = functional.relu(normalize(self.norm2, self.convolution2(inner)))
        inner = normalize(self.norm3, self.convolution3(inner))
        if self.shortcut is not None:
            x = normalize(self.shortcut_norm, self.shortcut(x))
        return functional.relu(inner + x)
