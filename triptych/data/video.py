"""Frames to what a video encoder reads: crops in the workers, colours batched on the device.

All draws are made in the worker, one set for all frames of a clip, and travel with it; the functions here draw nothing.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Shaped, UInt8
from torch import Tensor
from torch.nn import functional

from triptych.recipe import VideoTransform

GREY = (0.299, 0.587, 0.114)
"""Luma of red, green and blue (ITU-R BT.601)."""


@dataclass(frozen=True)
class Box:
    """Part of a frame, in shares of its width and height."""

    left: float
    top: float
    width: float
    height: float


def draw_box(
    transform: VideoTransform, width: int, height: int, generator: torch.Generator, place: float | None = None
) -> Box:
    """Draw the part of the frame that becomes the square.

    Args:
        transform: Says how.
        width: Of the frame, pixels.
        height: Of the frame, pixels.
        generator: Source of the draws.
        place: If given, a crop of the frame's height (or width) at this place along the longer side, 0 to 1.
    """
    across, down = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    if transform.crop == "squash":
        return Box(0.0, 0.0, 1.0, 1.0)
    if transform.crop == "random_resized" and place is None:
        return _draw_resized_box(transform, width, height, generator)
    short = min(width, height)
    side = short * min(1.0, transform.size / (transform.resize or transform.size))
    if place is not None:
        side = float(short)
        across, down = (place, 0.5) if width >= height else (0.5, place)
    elif transform.crop == "centre":
        across = down = 0.5
    return Box(across * (width - side) / width, down * (height - side) / height, side / width, side / height)


def _draw_resized_box(transform: VideoTransform, width: int, height: int, generator: torch.Generator) -> Box:
    """Draw area and aspect until the box fits (ten times); else the centre with the nearest aspect (Inception crop)."""
    low, high = math.log(transform.aspect[0]), math.log(transform.aspect[1])
    rolls = torch.rand(10, 4, generator=generator, dtype=torch.float64).tolist()
    for area, turn, across, down in rolls:  # noqa: B007 (the last place drawn counts)
        pixels = (transform.area[0] + (transform.area[1] - transform.area[0]) * area) * width * height
        aspect = math.exp(low + (high - low) * turn)
        box_width, box_height = math.sqrt(pixels * aspect), math.sqrt(pixels / aspect)
        if box_width <= width and box_height <= height:
            break
    else:
        aspect = min(max(width / height, transform.aspect[0]), transform.aspect[1])
        box_width, box_height = min(width, height * aspect), min(height, width / aspect)
        across = down = 0.5
    return Box(
        across * (width - box_width) / width,
        down * (height - box_height) / height,
        box_width / width,
        box_height / height,
    )


def needed_side(box: Box, transform: VideoTransform, width: int, height: int) -> int:
    """Return the short side at which a frame holds ``box`` with all the pixels that the output has."""
    scale = max(transform.size / (box.width * width), transform.size / (box.height * height))
    return math.ceil(min(width, height) * scale - 1e-6)


def cut(frames: UInt8[Tensor, "frames height width 3"], box: Box, size: int) -> UInt8[Tensor, "frames {size} {size} 3"]:
    """Cut ``box`` out of every frame and scale it to a square (bilinear, antialiased)."""
    height, width = frames.shape[1:3]
    rows, columns = max(1, round(box.height * height)), max(1, round(box.width * width))
    top = min(round(box.top * height), height - rows)
    left = min(round(box.left * width), width - columns)
    part = frames[:, top : top + rows, left : left + columns]
    if (rows, columns) == (size, size):
        return part.contiguous()
    scaled = functional.interpolate(part.permute(0, 3, 1, 2), (size, size), mode="bilinear", antialias=True)
    return scaled.permute(0, 2, 3, 1).contiguous()


def draw_colours(transform: VideoTransform, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw what ``finish_video`` applies to a clip; scalars by name."""
    rolls = torch.rand(9, generator=generator)
    applied = rolls[0] < transform.jitter
    sigma = 0.1 + 1.9 * rolls[8]
    return {
        "flip": rolls[5] < transform.flip,
        "brightness": torch.where(applied, 1 + transform.brightness * (2 * rolls[1] - 1), 1.0).clamp(min=0),
        "contrast": torch.where(applied, 1 + transform.contrast * (2 * rolls[2] - 1), 1.0).clamp(min=0),
        "saturation": torch.where(applied, 1 + transform.saturation * (2 * rolls[3] - 1), 1.0).clamp(min=0),
        "hue": torch.where(applied, transform.hue * (2 * rolls[4] - 1), 0.0),
        "grayscale": rolls[6] < transform.grayscale,
        "blur": torch.where(rolls[7] < transform.blur, sigma, 0.0),
    }


def finish_video(
    video: UInt8[Tensor, "batch *candidates frames height width 3"],
    draws: dict[str, Shaped[Tensor, " batch"]],
    transform: VideoTransform,
) -> Float[Tensor, "batch *candidates frames height width channels"]:
    """Apply flip, colours, blur and the range of pixels, with draws of ``draw_colours`` (one set a row)."""
    if video.ndim == 6:  # candidates share the draws of their row: let them be frames
        return finish_video(video.flatten(1, 2), draws, transform).unflatten(1, video.shape[1:3])
    if transform.flip:
        video = flip(video, draws["flip"])
    colours = transform.brightness or transform.contrast or transform.saturation or transform.hue
    if not (colours or transform.grayscale or transform.blur):
        return _scale_pixels(_colours(video.float(), transform), transform, 255.0)
    x = video.float() / 255
    if colours and transform.jitter:
        x = jitter(x, draws["brightness"], draws["contrast"], draws["saturation"], draws["hue"])
    if transform.grayscale:
        x = torch.where(_a_row(draws["grayscale"]), grey(x).expand_as(x), x)
    if transform.blur:
        x = blur(x, draws["blur"])
    return _scale_pixels(_colours(x, transform), transform, 1.0)


def _colours(
    video: Float[Tensor, "batch frames height width 3"], transform: VideoTransform
) -> Float[Tensor, "batch frames height width channels"]:
    return grey(video) if transform.channels == 1 else video


def _scale_pixels(
    video: Float[Tensor, "batch frames height width channels"], transform: VideoTransform, top: float
) -> Float[Tensor, "batch frames height width channels"]:
    """Map pixels of range ``[0, top]`` to the range that the transform names."""
    if transform.pixels == "raw255":
        return video * (255.0 / top)
    if transform.pixels == "unit":
        return video / top
    channels = video.shape[-1]
    mean, std = video.new_tensor(transform.mean[:channels]), video.new_tensor(transform.std[:channels])
    return video.mul_(1 / (top * std)).sub_(mean / std)


def flip(
    video: Shaped[Tensor, "batch frames height width 3"], which: Bool[Tensor, " batch"]
) -> Shaped[Tensor, "batch frames height width 3"]:
    """Mirror the clips of ``which`` left to right."""
    return torch.where(_a_row(which), video.flip(3), video)


def grey(video: Float[Tensor, "batch frames height width 3"]) -> Float[Tensor, "batch frames height width 1"]:
    """Return the luma of each pixel."""
    return (video @ video.new_tensor(GREY))[..., None]


def jitter(
    video: Float[Tensor, "batch frames height width 3"],
    brightness: Float[Tensor, " batch"],
    contrast: Float[Tensor, " batch"],
    saturation: Float[Tensor, " batch"],
    hue: Float[Tensor, " batch"],
) -> Float[Tensor, "batch frames height width 3"]:
    """Change brightness, contrast, saturation and hue, in this order, each clip by its own factors.

    Args:
        video: Pixels in [0, 1].
        brightness: Factor on all pixels.
        contrast: Factor on the distance to the clip's mean grey.
        saturation: Factor on the distance to the pixel's grey.
        hue: Turns of the colour circle.
    """
    video = (video * _a_row(brightness)).clamp_(0, 1)
    middle = grey(video).mean(dim=(1, 2, 3, 4), keepdim=True)
    video = video.sub_(middle).mul_(_a_row(contrast)).add_(middle).clamp_(0, 1)
    pale = grey(video)
    video = video.sub_(pale).mul_(_a_row(saturation)).add_(pale).clamp_(0, 1)
    return turn_hue(video, hue) if bool(hue.any()) else video


def turn_hue(
    video: Float[Tensor, "batch frames height width 3"], turns: Float[Tensor, " batch"]
) -> Float[Tensor, "batch frames height width 3"]:
    """Shift the hue in HSV by ``turns`` of the circle; pixels in [0, 1]."""
    red, green, blue = (colour.contiguous() for colour in video.unbind(dim=-1))  # planes are faster than triples
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    safe = chroma.clamp(min=1e-8)
    hue = torch.where(  # in sectors of the circle, of six
        value == red,
        (green - blue) / safe,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    hue += 6 * _a_row(turns)[..., 0]
    # Each colour is the value, less the chroma by how far the hue lies from the colour's own sectors.
    turned = []
    for offset in (5.0, 3.0, 1.0):
        k = (hue + offset).remainder_(6)
        turned.append(value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1))
    return torch.stack(turned, dim=-1)


def blur(
    video: Float[Tensor, "batch frames height width 3"], sigma: Float[Tensor, " batch"]
) -> Float[Tensor, "batch frames height width 3"]:
    """Blur clips with a Gaussian of ``sigma`` pixels (0: not at all), over a tenth of the width, at least 3 pixels."""
    chosen = sigma.gt(0).nonzero()[:, 0]
    if len(chosen) == 0:
        return video
    radius = max(1, video.shape[3] // 20)
    place = torch.arange(-radius, radius + 1, device=video.device, dtype=video.dtype)
    kernel = torch.exp(-(place**2) / (2 * sigma[chosen][:, None] ** 2))
    kernel = (kernel / kernel.sum(dim=1, keepdim=True))[:, None, None]
    x = video[chosen].permute(1, 4, 0, 2, 3).flatten(0, 1)  # a clip is a channel with a kernel of its own
    x = functional.conv2d(functional.pad(x, (radius, radius, 0, 0), mode="reflect"), kernel, groups=len(chosen))
    x = functional.conv2d(
        functional.pad(x, (0, 0, radius, radius), mode="reflect"), kernel.transpose(2, 3), groups=len(chosen)
    )
    return video.index_copy(0, chosen, x.view(video.shape[1], 3, *x.shape[1:]).permute(2, 0, 3, 4, 1))


def _a_row(x: Shaped[Tensor, " batch"]) -> Shaped[Tensor, "batch 1 1 1 1"]:
    return x[:, None, None, None, None]
