"""Waveforms to what an audio encoder reads: level, filter bank, SpecAugment and noise, batched on the device.

All draws are made in the worker and travel with the clip; only Gaussian noise is drawn here, from a seed a clip.
"""

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn import functional

from triptych.data.front_ends import spectrogram
from triptych.data.mixing import draw_background, lay_babble
from triptych.layers.spectrogram import append_derivatives
from triptych.recipe import AudioTransform, SpectrogramCrop


def draw_sound(transform: AudioTransform, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw what ``finish_sound`` applies to a clip; scalars by name."""
    rolls = torch.rand(5, generator=generator)
    return {
        "gain": transform.gain * (2 * rolls[0] - 1),
        "time_mask": torch.floor(rolls[1] * (transform.time_mask + 1)),
        "time_place": rolls[2],
        "mel_mask": torch.floor(rolls[3] * (transform.mel_mask + 1)),
        "mel_place": rolls[4],
        "noise_seed": torch.randint(2**62, (), generator=generator),
        "volume": 1 + transform.volume * (2 * torch.rand((), generator=generator) - 1),
        "crop": torch.rand(4, generator=generator),
        **(draw_background(transform.background, generator) if transform.background else {}),
    }


def finish_sound(
    waveform: Float[Tensor, "batch *candidates samples"],
    length: Int[Tensor, " batch *candidates"],
    rate: float | None,
    draws: dict[str, Shaped[Tensor, " batch"]],
    transform: AudioTransform,
) -> tuple[Float[Tensor, "batch ..."], Int[Tensor, " batch *candidates"]]:
    """Apply level, front end, padding, normalisation, masks and noise, with draws of ``draw_sound`` (one set a row).

    Args:
        waveform: Mono, in [-1, 1]; zeros beyond ``length``.
        length: Valid samples.
        rate: Samples a second; only the front end ``waveform`` may leave it open.
        draws: One set a row; candidates share it.
        transform: Says which front end.

    Returns:
        The waveform, or a spectrogram ``batch steps mels``, and its valid steps. Steps beyond them are zeros in the
        domain of the logarithm, then normalised like the rest (or zeros of the output, see ``AudioTransform.pad``).
    """
    if length.ndim == 2:
        count = length.shape[1]
        repeated = {name: value.repeat_interleave(count) for name, value in draws.items()}
        x, flat = finish_sound(waveform.flatten(0, 1), length.flatten(), rate, repeated, transform)
        return x.reshape(*length.shape, *x.shape[1:]), flat.reshape(length.shape)
    x = amplify(waveform, draws["gain"]) if transform.gain else waveform
    x = x * draws["volume"][:, None] if transform.volume else x
    if transform.background is not None and transform.background.source is None:
        x = lay_babble(x, length, draws["decibels"], draws["babble_place"])
    if transform.emphasis:
        x = emphasize(x, length, transform.emphasis)
    if transform.front_end != "waveform":
        assert rate is not None
        x, length = spectrogram(x, length, rate, transform)
        if transform.derivatives:
            x = append_derivatives(x, length, transform.derivatives)
    if transform.steps is not None:
        x = _fit(x, transform.steps)
        length = length.clamp(max=transform.steps)
    if transform.mean or transform.std != 1:
        x = (x - transform.mean) / transform.std
    if transform.pad == "output":
        valid = torch.arange(x.shape[1], device=x.device) < length[:, None]
        x = x.where(valid if x.ndim == 2 else valid[:, :, None], 0.0)
    if transform.front_end != "waveform" and transform.random_resized is not None:
        x = crop_spectrograms(x, draws["crop"], transform.random_resized)
    if transform.front_end != "waveform" and transform.time_mask:
        x = mask_steps(x, length, draws["time_mask"], draws["time_place"])
    if transform.front_end != "waveform" and transform.mel_mask:
        x = mask_mels(x, length, draws["mel_mask"], draws["mel_place"])
    if transform.noise:
        x = add_noise(x, transform.noise, draws["noise_seed"])
    if transform.peak_noise:
        peak = x.abs().flatten(1).amax(dim=1).view(-1, *[1] * (x.ndim - 1))
        x = x + peak * add_noise(torch.zeros_like(x), transform.peak_noise, draws["noise_seed"])
    if transform.stack > 1:
        x, length = stack_steps(x, transform.stack), -(-length // transform.stack)
    if transform.standardize:
        x = functional.layer_norm(x, x.shape[-1:])
    return x, length


def amplify(
    waveform: Float[Tensor, "batch samples"], decibels: Float[Tensor, " batch"]
) -> Float[Tensor, "batch samples"]:
    """Change the level of each clip."""
    return waveform * torch.pow(10.0, decibels / 20)[:, None]


def emphasize(
    waveform: Float[Tensor, "batch samples"], length: Int[Tensor, " batch"], share: float
) -> Float[Tensor, "batch samples"]:
    """Take off each valid sample, but the first, a share of the one before it; zeros beyond them."""
    before = functional.pad(waveform, (1, 0))[:, :-1]
    valid = torch.arange(waveform.shape[1], device=waveform.device) < length[:, None]
    return (waveform - share * before).where(valid, 0.0)


def stack_steps(x: Float[Tensor, "batch steps *values"], count: int) -> Float[Tensor, "batch stacked all_values"]:
    """Put the values of ``count`` steps in a row side by side, zeros where the last ones are missing."""
    x = _fit(x, -(-x.shape[1] // count) * count)
    return x.unflatten(1, (-1, count)).flatten(2)


def crop_spectrograms(
    x: Float[Tensor, "batch steps mels"], draws: Float[Tensor, "batch 4"], crop: SpectrogramCrop
) -> Float[Tensor, "batch steps mels"]:
    """Scale a stretch of each spectrogram's canvas to the spectrogram's size (cubic, corners aligned; BYOL-A).

    Args:
        x: Normalised spectrograms.
        draws: In [0, 1): sizes along time and mels, then places.
        crop: Their limits.
    """
    sizes = x.shape[1:]
    canvas = [max(int(size * factor), size) for size, factor in zip(sizes, crop.canvas, strict=True)]
    before = [(whole - size) // 2 for whole, size in zip(canvas, sizes, strict=True)]
    after = [whole - size - first for whole, size, first in zip(canvas, sizes, before, strict=True)]
    padded = functional.pad(x, (before[1], after[1], before[0], after[0]))
    cropped = []
    for row, rolls in zip(padded, draws.tolist(), strict=True):
        for axis, (low, high) in enumerate((crop.time, crop.mels)):
            length = min(max(int((low + (high - low) * rolls[axis]) * sizes[axis]), 1), canvas[axis])
            row = row.narrow(axis, int(rolls[2 + axis] * (canvas[axis] - length + 1)), length)
        cropped.append(functional.interpolate(row[None, None], list(sizes), mode="bicubic", align_corners=True)[0, 0])
    return torch.stack(cropped)


def mask_steps(
    x: Float[Tensor, "batch steps mels"],
    length: Int[Tensor, " batch"],
    width: Float[Tensor, " batch"],
    place: Float[Tensor, " batch"],
) -> Float[Tensor, "batch steps mels"]:
    """Set ``width`` steps of each clip to the clip's mean (SpecAugment); ``place`` in [0, 1) says where."""
    start = torch.floor(place * (length - width + 1).clamp(min=1))
    step = torch.arange(x.shape[1], device=x.device)
    hidden = (step >= start[:, None]) & (step < (start + width)[:, None]) & (step < length[:, None])
    return torch.where(hidden[:, :, None], _mean(x, length), x)


def mask_mels(
    x: Float[Tensor, "batch steps mels"],
    length: Int[Tensor, " batch"],
    width: Float[Tensor, " batch"],
    place: Float[Tensor, " batch"],
) -> Float[Tensor, "batch steps mels"]:
    """Set a band of ``width`` mels of each clip to the clip's mean (SpecAugment); ``place`` in [0, 1) says where."""
    start = torch.floor(place * (x.shape[2] - width + 1).clamp(min=1))
    mel = torch.arange(x.shape[2], device=x.device)
    band = (mel >= start[:, None]) & (mel < (start + width)[:, None])
    valid = torch.arange(x.shape[1], device=x.device) < length[:, None]
    return torch.where(band[:, None, :] & valid[:, :, None], _mean(x, length), x)


def add_noise(
    x: Float[Tensor, "batch ..."], deviation: float, seeds: Int[Tensor, " batch"]
) -> Float[Tensor, "batch ..."]:
    """Add Gaussian noise, each row's from its own seed, so that it does not depend on the batch."""
    generator = torch.Generator(x.device)
    noise = torch.empty_like(x)
    for row, seed in enumerate(seeds.tolist()):
        noise[row].normal_(0.0, deviation, generator=generator.manual_seed(seed))
    return x + noise


def _fit(x: Float[Tensor, "batch steps *mels"], steps: int) -> Float[Tensor, "batch {steps} *mels"]:
    if x.shape[1] >= steps:
        return x[:, :steps]
    return torch.cat([x, x.new_zeros(len(x), steps - x.shape[1], *x.shape[2:])], dim=1)


def _mean(x: Float[Tensor, "batch steps mels"], length: Int[Tensor, " batch"]) -> Float[Tensor, "batch 1 1"]:
    valid = torch.arange(x.shape[1], device=x.device) < length[:, None]
    total = (x * valid[:, :, None]).sum(dim=(1, 2), keepdim=True)
    return total / (length.clamp(min=1) * x.shape[2])[:, None, None]
