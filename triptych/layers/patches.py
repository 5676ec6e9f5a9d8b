"""Cutting signals into tokens and putting them together again."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from triptych.layers.batch_norm import BatchNorm


def patchify_video(
    video: Float[Tensor, "batch frames height width channels"], tubelet: tuple[int, int, int]
) -> Float[Tensor, "batch tokens values"]:
    """Cut a video into tubelets.

    Args:
        video: Channels last.
        tubelet: Frames, height and width of a token; they must divide the video's.

    Returns:
        Tokens in the order time, height, width; values of each in the order time, height, width, channel.
    """
    frames, height, width = tubelet
    cut = video.unflatten(3, (-1, width)).unflatten(2, (-1, height)).unflatten(1, (-1, frames))
    return cut.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4).flatten(1, 3)


def unpatchify_video(
    tokens: Float[Tensor, "batch tokens values"], tubelet: tuple[int, int, int], grid: tuple[int, int, int]
) -> Float[Tensor, "batch frames height width channels"]:
    """Undo ``patchify_video``; ``grid`` is the number of tokens along time, height and width."""
    cut = tokens.unflatten(2, (*tubelet, -1)).unflatten(1, grid)
    return cut.permute(0, 1, 4, 2, 5, 3, 6, 7).flatten(5, 6).flatten(3, 4).flatten(1, 2)


class ConvolutionalStem(nn.Module):
    """3 x 3 convolutions, each with batch norm and ReLU, in the place of raw patches.

    Transformers on raw patches need long training to see edges and shapes; a few convolutions give them these at once
    (Xiao et al. 2021, Early Convolutions Help Transformers See Better).
    """

    def __init__(self, channels: int, widths: Sequence[int], strides: Sequence[tuple[int, int]]) -> None:
        """Build the stem.

        Args:
            channels: Of the input.
            widths: Channels after each convolution.
            strides: Height and width steps of each convolution.
        """
        super().__init__()
        before = (channels, *widths[:-1])
        self.convolutions = nn.ModuleList(
            nn.Conv2d(first, second, 3, stride, padding=1, bias=False)
            for first, second, stride in zip(before, widths, strides, strict=True)
        )
        self.norms = nn.ModuleList(BatchNorm(width) for width in widths)

    def forward(
        self, x: Float[Tensor, "batch height width channels"]
    ) -> Float[Tensor, "batch rows columns out_channels"]:
        """Return maps whose sides are divided by the strides, rounded up."""
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            # Channels stay last in memory, which is what both layers are quick at.
            x = functional.relu(norm(convolution(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)))
        return x
