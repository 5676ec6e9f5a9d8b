"""Rows of a batch mixed with one another, and sounds laid over each other at a given loudness."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from triptych.errors import TriptychError
from triptych.media.collection import Rows
from triptych.recipe import Background, Mixing


@dataclass(frozen=True)
class Mix:
    """Which rows of a batch are mixed, and how much of each is its own."""

    partners: Int[Tensor, " batch"]
    """Row that each is mixed with."""
    shares: Float[Tensor, " batch"]
    """What stays of each row."""
    boxes: Float[Tensor, "batch 4"]
    """Top, left, bottom and right of what is cut out of the pictures of the other row, as shares of height and width;
    nothing, where the whole pictures are mixed."""

    def blend(self, x: Shaped[Tensor, "batch ..."]) -> Shaped[Tensor, "batch ..."]:
        """Return each row mixed with its partner by its share."""
        shares = _along(self.shares, x)
        return x * shares + x[self.partners.to(x.device)] * (1 - shares)

    def blend_pictures(
        self, x: Float[Tensor, "batch *frames height width channels"]
    ) -> Float[Tensor, "batch *frames height width channels"]:
        """Return each row mixed with its partner, or with a box of it."""
        down, across = ((torch.arange(size, device=x.device) + 0.5) / size for size in x.shape[-3:-1])
        top, left, bottom, right = self.boxes.to(x.device).T[:, :, None, None]
        inside = (down[:, None] >= top) & (down[:, None] < bottom) & (across >= left) & (across < right)
        inside = inside.reshape(len(x), *[1] * (x.ndim - 4), *inside.shape[1:], 1)
        boxed = _along(self.boxes[:, 2] > self.boxes[:, 0], x)
        return torch.where(boxed, torch.where(inside, x[self.partners.to(x.device)], x), self.blend(x))

    def longer(self, length: Int[Tensor, "batch *candidates"]) -> Int[Tensor, "batch *candidates"]:
        """Return the valid steps of each mixed row: as many as the longer of the two has."""
        return torch.maximum(length, length[self.partners.to(length.device)])


def _along(values: Shaped[Tensor, " batch"], x: Tensor) -> Tensor:
    """Return a value a row with as many axes as ``x`` has."""
    return values.to(x.device).reshape(-1, *[1] * (x.ndim - 1))


def draw_mix(mixing: Mixing, batch: int, generator: torch.Generator) -> Mix:
    """Draw how the rows of a batch are mixed.

    Source: mixup (Zhang et al., arXiv 1710.09412), cutmix (Yun et al., arXiv 1905.04899; the box lies round a uniform
    place and is cut at the edges, and the share is that of what is left).
    """
    draws = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    count = 1 if mixing.each == "batch" else batch
    partners = np.arange(batch)[::-1] if mixing.each == "batch" else draws.integers(batch, size=batch)
    mixed = draws.random(count) < mixing.probability
    both = mixing.mixup > 0 and mixing.cutmix > 0
    cut = draws.random(count) < (mixing.switch if both else float(mixing.cutmix > 0))
    mixup, cutmix = (draws.beta(x, x, count) if x else np.ones(count) for x in (mixing.mixup, mixing.cutmix))
    shares = np.where(mixed, np.where(cut, cutmix, mixup), 1.0)
    half = np.sqrt(1 - shares)[:, None] / 2
    place = draws.random((count, 2))
    boxes = np.concatenate([np.clip(place - half, 0, 1), np.clip(place + half, 0, 1)], axis=1) * (cut & mixed)[:, None]
    left = 1 - (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    shares = np.where(cut & mixed, left, shares)
    return Mix(
        torch.from_numpy(partners.copy()),
        torch.from_numpy(np.broadcast_to(shares, batch).astype(np.float32)),
        torch.from_numpy(np.broadcast_to(boxes, (batch, 4)).astype(np.float32)),
    )


def mix_noise(
    waveform: Float[Tensor, "batch samples"],
    length: Int[Tensor, " batch"],
    noise: Float[Tensor, "batch noise_samples"],
    decibels: Float[Tensor, " batch"],
) -> Float[Tensor, "batch samples"]:
    """Lay noise over sound at a signal-to-noise ratio (av-hubert, section 3).

    Noise that is shorter than the sound is repeated, longer noise is cut. What would leave [-1, 1) is made quieter as a
    whole, so that it just stays within. Silence, and sound under silent noise, stay as they are.

    Args:
        waveform: In [-1, 1), zeros beyond ``length``.
        length: Valid samples.
        noise: In [-1, 1), as many rows.
        decibels: Of the sound over the noise.
    """
    samples = torch.arange(waveform.shape[1], device=waveform.device)
    valid = samples < length[:, None]
    laid = noise[:, samples % noise.shape[1]].where(valid, 0.0)
    loudness = [x.square().sum(dim=1, keepdim=True) / length[:, None].clamp(min=1) for x in (waveform, laid)]
    gain = (loudness[0] / loudness[1]).sqrt() * torch.pow(10.0, -decibels / 20)[:, None]
    mixed = waveform + laid * gain.where(loudness[1] > 0, 0.0)
    highest, lowest = mixed.amax(dim=1, keepdim=True), mixed.amin(dim=1, keepdim=True)
    most = 32_767 / 32_768
    return mixed / torch.maximum(highest / most, -lowest).clamp(min=1.0)


def draw_background(background: Background, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw whether and how loud noise is laid under a clip: ``decibels``, not a number where none is."""
    applied = torch.rand((), generator=generator) < background.probability
    low, high = background.decibels
    decibels = torch.randint(low, high + 1, (), generator=generator).float()
    place = torch.rand((), generator=generator)
    return {"decibels": decibels.where(applied, math.nan), "babble_place": place}


def lay_background(
    parts: list[Float[Tensor, " samples"]],
    lengths: Sequence[int],
    source: str,
    rate: float,
    decibels: Float[Tensor, ""],
    generator: torch.Generator,
) -> None:
    """Lay a drawn file of noise under all candidates of a clip, in place.

    Args:
        parts: Samples of each candidate.
        lengths: Valid samples of each.
        source: Folder or manifest of noise.
        rate: Samples a second.
        decibels: Of the sound over the noise; not a number where it stays as it is.
        generator: Chooses the file.

    Raises:
        TriptychError: If the noise cannot be read.
    """
    if decibels.isnan():
        return
    noise = read_noise(source, max(lengths) / rate, rate, generator)
    for place, (part, length) in enumerate(zip(parts, lengths, strict=True)):
        parts[place] = mix_noise(part[None], torch.tensor([length]), noise[None], decibels[None])[0]


def read_noise(source: str, seconds: float, rate: float, generator: torch.Generator) -> Float[Tensor, " samples"]:
    """Return the beginning of a drawn file of noise, at most so many seconds.

    Raises:
        TriptychError: If the file has no sound, or cannot be read.
    """
    rows = _open(source)
    with rows.recording(int(torch.randint(len(rows), (), generator=generator))) as recording:
        extent = recording.timeline.streams.get("audio")
        if extent is None:
            raise TriptychError(f"{recording.name} has no sound, and is to be noise: take it out of {source}.")
        return recording.waveform(extent.start, min(extent.start + seconds, extent.end), rate).mean(dim=0)


@lru_cache(maxsize=4)
def _open(source: str) -> Rows:
    return Rows.open(source)


def lay_babble(
    waveform: Float[Tensor, "batch samples"],
    length: Int[Tensor, " batch"],
    decibels: Float[Tensor, " batch"],
    places: Float[Tensor, " batch"],
) -> Float[Tensor, "batch samples"]:
    """Lay the mean of the other rows under each row; see ``mix_noise``.

    Each voice begins at a place of its own and is repeated to the end. A row that is alone hears its own voice from
    another place on.

    Args:
        waveform: In [-1, 1), zeros beyond ``length``.
        length: Valid samples.
        decibels: Of each row over the others; not a number where it stays as it is.
        places: Where each voice begins when it is noise, in [0, 1).
    """
    samples = torch.arange(waveform.shape[1], device=waveform.device)
    begun = samples + (places * length).long()[:, None]
    voices = waveform.gather(1, begun % length[:, None].clamp(min=1))
    others = voices if len(voices) == 1 else (voices.sum(dim=0) - voices) / (len(voices) - 1)
    mixed = mix_noise(waveform, length, others, decibels.nan_to_num())
    return mixed.where(~decibels.isnan()[:, None], waveform)
