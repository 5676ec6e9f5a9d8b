"""The filter banks that a recipe can name: one entry a front end, so that a new one is a function and a line."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from triptych.layers.spectrogram import (
    davenet_mel,
    kaldi_fbank,
    log_mel,
    logfbank,
    magnitude_mel,
    mfcc,
    slaney_mel,
    vmz_mel,
)
from triptych.recipe import AudioTransform


@dataclass(frozen=True)
class FrontEnd:
    """From waveforms to steps of a spectrogram."""

    spectrogram: Callable[[Float[Tensor, "batch samples"], float, AudioTransform], Float[Tensor, "batch steps mels"]]
    """Of a waveform in [-1, 1], its rate (samples a second) and the transform."""
    steps: Callable[[Int[Tensor, " batch"], float, AudioTransform], Int[Tensor, " batch"]]
    """How many steps so many samples give, for more than no samples."""


def _log_mel(waveform: Tensor, rate: float, transform: AudioTransform) -> Tensor:
    bands = (transform.low, transform.high, transform.floor)
    return log_mel(waveform, rate, transform.mels, transform.window, transform.hop, *bands)


def _davenet(waveform: Tensor, rate: float, transform: AudioTransform) -> Tensor:
    bands = (transform.low, transform.high, transform.floor)
    return davenet_mel(waveform, rate, transform.mels, transform.window, transform.hop, *bands)


def _kaldi(waveform: Tensor, rate: float, transform: AudioTransform) -> Tensor:
    bands = (transform.low, transform.high)
    return kaldi_fbank(waveform, rate, transform.mels, transform.window, transform.hop, *bands)


def _magnitudes(waveform: Tensor, rate: float, transform: AudioTransform) -> Tensor:
    bands = (transform.low, transform.high)
    x = magnitude_mel(waveform, rate, transform.mels, transform.window, transform.hop, *bands)
    low, high = (extreme(x, dim=(1, 2), keepdim=True) for extreme in (torch.amin, torch.amax))
    return (x - low) / (high - low).where(high > low, 1.0)  # a silent clip is zeros


def _slaney(waveform: Tensor, rate: float, transform: AudioTransform) -> Tensor:
    bands = (transform.low, transform.high, transform.floor)
    return slaney_mel(waveform, rate, transform.mels, transform.window, transform.hop, *bands)


def _centred(samples: Tensor, rate: float, transform: AudioTransform) -> Tensor:
    return samples // round(rate * transform.hop) + 1


def _whole_windows(samples: Tensor, rate: float, transform: AudioTransform) -> Tensor:
    room = samples - int(rate * transform.window)
    return room.div(int(rate * transform.hop), rounding_mode="floor") + 1


def _begun_hops(samples: Tensor, rate: float, transform: AudioTransform) -> Tensor:
    return -(-samples // int(rate * transform.hop))


def _speech_features(waveform: Tensor, rate: float, transform: AudioTransform) -> Tensor:
    bands = (transform.low, transform.high)
    return logfbank(waveform, rate, transform.mels, transform.window, transform.hop, *bands)


def _cepstra(waveform: Tensor, rate: float, transform: AudioTransform) -> Tensor:
    bands = (transform.low, transform.high)
    return mfcc(waveform, rate, transform.cepstra, transform.mels, transform.window, transform.hop, *bands)


def _covering_windows(samples: Tensor, rate: float, transform: AudioTransform) -> Tensor:
    room = (samples - round(rate * transform.window)).clamp(min=0)
    return 1 - (-room).div(round(rate * transform.hop), rounding_mode="floor")


def _vmz(waveform: Tensor, rate: float, transform: AudioTransform) -> Tensor:
    x = vmz_mel(waveform, rate, transform.mels, transform.window, transform.hop)
    steps = transform.steps
    if steps is None or steps == x.shape[1] or not x.shape[1]:
        return x
    mode, options = ("linear", {"align_corners": False}) if steps > x.shape[1] else ("nearest", {})
    return functional.interpolate(x.transpose(1, 2), steps, mode=mode, **options).transpose(1, 2)


def _vmz_steps(samples: Tensor, rate: float, transform: AudioTransform) -> Tensor:
    room = samples - round(rate * transform.window)
    steps = -(-room).div(round(rate * transform.hop), rounding_mode="floor")
    return steps if transform.steps is None else torch.full_like(steps, transform.steps).where(steps > 0, 0)


FRONT_ENDS: dict[str, FrontEnd] = {
    "log_mel": FrontEnd(_log_mel, _centred),
    "davenet": FrontEnd(_davenet, _whole_windows),
    "fbank": FrontEnd(_kaldi, _whole_windows),
    "magnitude_mel": FrontEnd(_magnitudes, _begun_hops),
    "logfbank": FrontEnd(_speech_features, _covering_windows),
    "mfcc": FrontEnd(_cepstra, _whole_windows),
    "slaney": FrontEnd(_slaney, _centred),
    "vmz": FrontEnd(_vmz, _vmz_steps),
}
"""By the name in ``AudioTransform.front_end``; ``waveform`` is none of them."""


def spectrogram_steps(samples: Int[Tensor, " batch"], rate: float, transform: AudioTransform) -> Int[Tensor, " batch"]:
    """Return how many steps of the transform's front end so many samples give; 0 for 0."""
    steps = FRONT_ENDS[transform.front_end].steps(samples, rate, transform)
    return steps.clamp(min=0).where(samples > 0, 0)


def spectrogram(
    waveform: Float[Tensor, "batch samples"], length: Int[Tensor, " batch"], rate: float, transform: AudioTransform
) -> tuple[Float[Tensor, "batch steps mels"], Int[Tensor, " batch"]]:
    """Return the spectrogram, zeros beyond its valid steps, and how many are valid."""
    x = FRONT_ENDS[transform.front_end].spectrogram(waveform, rate, transform)
    steps = spectrogram_steps(length, rate, transform)
    valid = torch.arange(x.shape[1], device=x.device) < steps[:, None]
    return x.where(valid[:, :, None], 0.0), steps
