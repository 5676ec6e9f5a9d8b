"""Sounds laid over each other at a given loudness."""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from triptych.errors import TriptychError
from triptych.media.collection import Rows
from triptych.recipe import Background


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
