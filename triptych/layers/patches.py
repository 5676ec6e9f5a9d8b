"""Cutting signals into tokens and putting them together again."""

from jaxtyping import Float
from torch import Tensor


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
