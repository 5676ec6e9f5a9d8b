"""Filter banks: log-mel spectrograms, and Kaldi's, batched and on any device."""

import math
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

KALDI_FLOOR = torch.finfo(torch.float32).eps
"""Energy below which Kaldi cuts the logarithm: 1.1920929e-07."""


def log_mel(
    waveform: Float[Tensor, "batch samples"],
    rate: float,
    mels: int = 80,
    window: float = 0.025,
    hop: float = 0.01,
    low: float = 20.0,
    high: float | None = None,
    floor: float = 1e-6,
) -> Float[Tensor, "batch steps mels"]:
    """Return the natural logarithm of the mel energies.

    Periodic Hann window, centred on its step with zeros beyond the ends; power spectrum over the next power of two;
    triangles that are linear in Hz with a peak of 1, on the scale 2595 log10(1 + f/700).

    Args:
        waveform: In [-1, 1].
        rate: Samples a second.
        mels: Bands.
        window: Length of the window, seconds.
        hop: Seconds between steps; there are 1 + samples // hop of them.
        low: Lowest frequency, Hz.
        high: Highest frequency, Hz; half the rate where None.
        floor: Smallest energy.
    """
    size, step = round(window * rate), round(hop * rate)
    points = 1 << (size - 1).bit_length()
    waveform = waveform.float()
    spectrum = torch.stft(
        waveform,
        points,
        step,
        size,
        torch.hann_window(size, device=waveform.device),
        center=True,
        pad_mode="constant",
        return_complex=True,
    )
    power = spectrum.real.square() + spectrum.imag.square()
    bank = mel_bank(mels, points, rate, low, high or rate / 2).to(waveform.device)
    return (power.transpose(1, 2) @ bank).clamp(min=floor).log()


def davenet_mel(
    waveform: Float[Tensor, "batch samples"],
    rate: float,
    mels: int = 40,
    window: float = 0.025,
    hop: float = 0.01,
    low: float = 20.0,
    high: float | None = None,
    floor: float = 1e-8,
    emphasis: float = 0.97,
) -> Float[Tensor, "batch steps mels"]:
    """Return mel energies in decibels, 0 for the loudest of the clip (DAVEnet's and AVLnet's front end).

    The mean is taken off, then ``x[n] - emphasis x[n-1]``; periodic Hamming windows that lie within the clip, power
    spectrum of exactly a window, the triangles of ``mel_bank``. The settings are recommendations: of the released code
    only the sizes are known (everything-at-once, section 11).

    Args:
        waveform: In [-1, 1].
        rate: Samples a second.
        mels: Bands.
        window: Length of the window, seconds.
        hop: Seconds between steps.
        low: Lowest frequency, Hz.
        high: Highest frequency, Hz; half the rate where None.
        floor: Smallest energy, as a share of the clip's largest.
        emphasis: Of high frequencies.
    """
    size, step = round(window * rate), round(hop * rate)
    waveform = waveform.float()
    if waveform.shape[1] < size:
        return waveform.new_zeros(len(waveform), 0, mels)
    waveform = waveform - waveform.mean(dim=1, keepdim=True)
    waveform = torch.cat([waveform[:, :1], waveform[:, 1:] - emphasis * waveform[:, :-1]], dim=1)
    frames = waveform.unfold(1, size, step) * torch.hamming_window(size, device=waveform.device)
    spectrum = torch.fft.rfft(frames)
    power = spectrum.real.square() + spectrum.imag.square()
    energy = power @ mel_bank(mels, size, rate, low, high or rate / 2).to(waveform.device)
    loudest = energy.amax(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(energy.dtype).tiny)
    return 10 * (energy / loudest).clamp(min=floor).log10()


@lru_cache(maxsize=16)
def mel_bank(mels: int, points: int, rate: float, low: float, high: float) -> Float[Tensor, "bins mels"]:
    """Return triangles, linear in Hz, over the ``points // 2 + 1`` bins of a spectrum."""
    ends = [2595 * math.log10(1 + frequency / 700) for frequency in (low, high)]
    edges = 700 * (10 ** (torch.linspace(ends[0], ends[1], mels + 2, dtype=torch.float64) / 2595) - 1)
    bins = torch.arange(points // 2 + 1, dtype=torch.float64) * rate / points
    rising = (bins[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins[:, None]) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0).float()


def kaldi_fbank(
    waveform: Float[Tensor, "batch samples"],
    rate: float,
    mels: int = 128,
    window: float = 0.025,
    hop: float = 0.01,
    low: float = 20.0,
    high: float | None = None,
    subtract_mean: bool = True,
    taper: float = 1.0,
) -> Float[Tensor, "batch steps mels"]:
    """Return Kaldi's log filter bank as AST, AudioMAE and MAViL use it (vision-transformers-common, section 6).

    Windows without padding (1 + (samples - window) // hop of them, none where the sound is shorter than a window), each
    minus its mean, pre-emphasised by 0.97, under a symmetric Hann window, padded to a power of two; power spectrum;
    triangles that are linear in mel (1127 ln(1 + f/700)) with a peak of 1; natural logarithm floored at 1.19e-07.

    Args:
        waveform: In [-1, 1], not scaled to 16 bits.
        rate: Samples a second.
        mels: Bands.
        window: Length of the window, seconds.
        hop: Seconds between steps.
        low: Lowest frequency, Hz.
        high: Highest frequency, Hz; half the rate where None.
        subtract_mean: Whether the mean of the whole clip is taken off first.
        taper: Exponent of the window (0.85: Kaldi's own, "povey").
    """
    size, step = int(rate * window), int(rate * hop)
    waveform = waveform.float()
    if waveform.shape[1] < size:
        return waveform.new_zeros(len(waveform), 0, mels)
    if subtract_mean:
        waveform = waveform - waveform.mean(dim=1, keepdim=True)
    frames = waveform.unfold(1, size, step)
    frames = frames - frames.mean(dim=2, keepdim=True)
    before = torch.cat([frames[..., :1], frames[..., :-1]], dim=2)
    frames = (frames - 0.97 * before) * torch.hann_window(size, periodic=False, device=waveform.device) ** taper
    points = 1 << (size - 1).bit_length()
    spectrum = torch.fft.rfft(functional.pad(frames, (0, points - size)))
    power = spectrum.real.square() + spectrum.imag.square()
    bank = kaldi_bank(mels, points, rate, low, high or rate / 2).to(waveform.device)
    return (power @ bank).clamp(min=KALDI_FLOOR).log()


@lru_cache(maxsize=16)
def kaldi_bank(mels: int, points: int, rate: float, low: float, high: float) -> Float[Tensor, "bins mels"]:
    """Return triangles, linear in mel; the bin at half the rate has no weight."""
    ends = [1127 * math.log(1 + frequency / 700) for frequency in (low, high)]
    edges = torch.linspace(ends[0], ends[1], mels + 2, dtype=torch.float64)
    bins = 1127 * (1 + torch.arange(points // 2, dtype=torch.float64) * rate / points / 700).log()
    rising = (bins[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins[:, None]) / (edges[2:] - edges[1:-1])
    return functional.pad(torch.minimum(rising, falling).clamp(min=0), (0, 0, 0, 1)).float()


def magnitude_mel(
    waveform: Float[Tensor, "batch samples"],
    rate: float,
    mels: int = 80,
    window: float = 0.04267,
    hop: float = 0.02134,
    low: float = 80.0,
    high: float | None = 7_600.0,
    gain: float = 10_000.0,
) -> Float[Tensor, "batch steps mels"]:
    """Return ln(1 + gain mel) of the magnitudes, not the energies, of a spectrum (VATT's and MMV's front end).

    Periodic Hann windows from each hop on, zeros beyond the end; spectrum over the next power of two; triangles that
    are linear in mel with a peak of 1. The settings are those of vatt, section 3.

    Args:
        waveform: In [-1, 1].
        rate: Samples a second.
        mels: Bands.
        window: Length of the window, seconds.
        hop: Seconds between steps; there is a step for each hop that begins within the sound.
        low: Lowest frequency, Hz.
        high: Highest frequency, Hz; half the rate where None.
        gain: Of the magnitudes.
    """
    size, step = int(rate * window), int(rate * hop)
    points = 1 << (size - 1).bit_length()
    count = -(-waveform.shape[1] // step)
    padded = functional.pad(waveform.float(), (0, (count - 1) * step + size - waveform.shape[1]))
    frames = padded.unfold(1, size, step) * torch.hann_window(size, device=waveform.device)
    bank = kaldi_bank(mels, points, rate, low, high or rate / 2).to(waveform.device)
    return (gain * (torch.fft.rfft(frames, points).abs() @ bank)).log1p()


def mfcc(
    waveform: Float[Tensor, "batch samples"],
    rate: float,
    cepstra: int = 13,
    mels: int = 23,
    window: float = 0.025,
    hop: float = 0.01,
    low: float = 20.0,
    high: float | None = None,
    lifter: float = 22.0,
) -> Float[Tensor, "batch steps cepstra"]:
    """Return Kaldi's cepstral coefficients, the first of them not replaced by the energy (av-hubert, section 5).

    The orthonormal cosine transform of ``kaldi_fbank`` under Kaldi's own window, liftered.

    Args:
        waveform: In [-1, 1].
        rate: Samples a second.
        cepstra: Coefficients.
        mels: Bands.
        window: Length of the window, seconds.
        hop: Seconds between steps.
        low: Lowest frequency, Hz.
        high: Highest frequency, Hz; half the rate where None.
        lifter: L: coefficient n is multiplied by 1 + L/2 sin(pi n / L).
    """
    bands = kaldi_fbank(waveform, rate, mels, window, hop, low, high, subtract_mean=False, taper=0.85)
    order, band = torch.arange(cepstra, dtype=torch.float64), torch.arange(mels, dtype=torch.float64)
    basis = math.sqrt(2 / mels) * torch.cos(math.pi / mels * (band[:, None] + 0.5) * order)
    basis[:, 0] = math.sqrt(1 / mels)
    basis *= 1 + lifter / 2 * torch.sin(math.pi / lifter * order)
    return bands @ basis.float().to(bands.device)


def logfbank(
    waveform: Float[Tensor, "batch samples"],
    rate: float,
    mels: int = 26,
    window: float = 0.025,
    hop: float = 0.01,
    low: float = 0.0,
    high: float | None = None,
) -> Float[Tensor, "batch steps mels"]:
    """Return the log filter bank of python_speech_features, without its emphasis (av-hubert, section 3).

    Of the sound as 16-bit numbers, not rounded: rectangular windows, as many as begin before all samples are covered,
    with zeros beyond the end; power spectrum over the next power of two, divided by its points; triangles that are
    linear between bins, on the scale 2595 log10(1 + f/700); a band without energy has 2.2e-16.

    Args:
        waveform: In [-1, 1], pre-emphasised already.
        rate: Samples a second.
        mels: Bands.
        window: Length of the window, seconds.
        hop: Seconds between steps; there are 1 + ceil((samples - window) / hop) of them, at least one.
        low: Lowest frequency, Hz.
        high: Highest frequency, Hz; half the rate where None.
    """
    size, step = round(window * rate), round(hop * rate)
    points = 1 << (size - 1).bit_length()
    count = 1 + max(-(-(waveform.shape[1] - size) // step), 0)
    sound = functional.pad(32_768 * waveform.float(), (0, (count - 1) * step + size - waveform.shape[1]))
    spectrum = torch.fft.rfft(sound.unfold(1, size, step), points)
    power = (spectrum.real.square() + spectrum.imag.square()) / points
    energy = power @ floored_bank(mels, points, rate, low, high or rate / 2).to(waveform.device)
    return energy.where(energy > 0, torch.finfo(torch.float64).eps).log()


@lru_cache(maxsize=16)
def floored_bank(mels: int, points: int, rate: float, low: float, high: float) -> Float[Tensor, "bins mels"]:
    """Return triangles between whole bins, floor((points + 1) f / rate) for each edge f."""
    ends = [2595 * math.log10(1 + frequency / 700) for frequency in (low, high)]
    edges = 700 * (10 ** (torch.linspace(ends[0], ends[1], mels + 2, dtype=torch.float64) / 2595) - 1)
    edges = ((points + 1) * edges / rate).floor()
    bins = torch.arange(points // 2 + 1, dtype=torch.float64)[:, None]
    left, peak, right = edges[:-2], edges[1:-1], edges[2:]
    rising = ((bins - left) / (peak - left)).where((left <= bins) & (bins < peak), 0.0)
    falling = ((right - bins) / (right - peak)).where((peak <= bins) & (bins < right), 0.0)
    return (rising + falling).float()


def append_derivatives(
    x: Float[Tensor, "batch steps values"], length: Int[Tensor, " batch"], times: int
) -> Float[Tensor, "batch steps all_values"]:
    """Return steps with their derivatives along time beside them, and those of the derivatives, ``times`` of them.

    A derivative is the slope of a line through five steps; beyond a row's ends its first or last step goes on.

    Args:
        x: Steps, zeros beyond ``length``.
        length: Valid steps of each row.
        times: Derivatives of derivatives; 0 leaves the steps as they are.
    """
    place = torch.arange(x.shape[1], device=x.device)
    last = (length - 1).clamp(min=0)[:, None]
    valid = (place <= last)[..., None]
    parts = [x]
    for _ in range(times):
        slope = torch.zeros_like(x)
        for offset in (-2, -1, 1, 2):
            source = torch.minimum((place + offset).clamp(min=0), last)
            slope += offset / 10 * parts[-1].gather(1, source[..., None].expand_as(x))
        parts.append(slope.where(valid, 0.0))
    return torch.cat(parts, dim=2)


def slaney_mel(
    waveform: Float[Tensor, "batch samples"],
    rate: float,
    mels: int = 80,
    window: float = 0.064,
    hop: float = 0.0089375,
    low: float = 0.0,
    high: float | None = None,
    floor: float = 1.19e-7,
) -> Float[Tensor, "batch steps mels"]:
    """Return ln(mel + floor) of librosa's mel energies (xkd, section 3, whose settings are the defaults at 16 kHz).

    Periodic Hann windows over the whole of a spectrum, centred on their steps with zeros beyond the ends; power; the
    triangles of ``slaney_bank``.

    Args:
        waveform: In [-1, 1].
        rate: Samples a second.
        mels: Bands.
        window: Length of window and spectrum, seconds.
        hop: Seconds between steps; there are 1 + samples // hop of them.
        low: Lowest frequency, Hz.
        high: Highest frequency, Hz; half the rate where None.
        floor: Added to every energy.
    """
    points, step = round(window * rate), round(hop * rate)
    waveform = waveform.float()
    spectrum = torch.stft(
        waveform,
        points,
        step,
        window=torch.hann_window(points, device=waveform.device),
        center=True,
        pad_mode="constant",
        return_complex=True,
    )
    power = spectrum.real.square() + spectrum.imag.square()
    bank = slaney_bank(mels, points, rate, low, high or rate / 2).to(waveform.device)
    return (power.transpose(1, 2) @ bank + floor).log()


@lru_cache(maxsize=16)
def slaney_bank(mels: int, points: int, rate: float, low: float, high: float) -> Float[Tensor, "bins mels"]:
    """Return triangles of unit area (over Hz) on Slaney's scale: linear up to 1000 Hz, logarithmic from there on."""
    ends = [_hertz_to_slaney(frequency) for frequency in (low, high)]
    places = torch.linspace(ends[0], ends[1], mels + 2, dtype=torch.float64)
    edges = torch.where(places < 15, places * 200 / 3, 1000 * torch.exp((places - 15) * math.log(6.4) / 27))
    bins = torch.arange(points // 2 + 1, dtype=torch.float64) * rate / points
    rising = (bins[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins[:, None]) / (edges[2:] - edges[1:-1])
    triangles = torch.minimum(rising, falling).clamp(min=0)
    return (triangles * 2 / (edges[2:] - edges[:-2])).float()


def _hertz_to_slaney(frequency: float) -> float:
    """Return the place of a frequency on Slaney's scale: 15 at 1000 Hz, 27 more for each factor of 6.4 above it."""
    return frequency * 3 / 200 if frequency < 1000 else 15 + 27 * math.log(frequency / 1000) / math.log(6.4)


VMZ_GAIN = 1080674186.3482928
"""Factor on the energies of ``vmz_mel``: waveforms are in [-1, 1]."""


def vmz_mel(
    waveform: Float[Tensor, "batch samples"],
    rate: float = 16_000.0,
    mels: int = 40,
    window: float = 0.016,
    hop: float = 0.01,
) -> Float[Tensor, "batch steps mels"]:
    """Return VMZ's log mel energies, which XDC and its kin read (convnets-common, section 8).

    Windows as long as more than one of them is left, under a symmetric Hann window; power spectrum whose first bin also
    holds the energy at half the rate, as its packed transform leaves it; triangles between frequencies that are equally
    far on the scale 1127 ln(1 + f/700), no half narrower than a bin, each of weight 1 in sum; the logarithm of energies
    above e, the energy over e below.

    Args:
        waveform: In [-1, 1].
        rate: Samples a second.
        mels: Bands.
        window: Length of the window, seconds.
        hop: Seconds between steps.
    """
    size, step = round(window * rate), round(hop * rate)
    waveform = waveform.float()
    if waveform.shape[1] <= size:
        return waveform.new_zeros(len(waveform), 0, mels)
    frames = waveform.unfold(1, size, step)
    if (waveform.shape[1] - size) % step == 0:  # a last window that leaves nothing is not emitted
        frames = frames[:, :-1]
    spectrum = torch.fft.rfft(frames * torch.hann_window(size, periodic=False, device=waveform.device))
    power = spectrum.real.square() + spectrum.imag.square()
    packed = torch.cat([power[..., :1] + power[..., -1:], power[..., 1:-1]], dim=-1)
    energy = VMZ_GAIN * (packed @ vmz_bank(mels, size, rate)[:-1].to(waveform.device))
    return torch.where(energy > math.e, energy.clamp(min=math.e).log(), energy / math.e)


@lru_cache(maxsize=16)
def vmz_bank(mels: int, points: int, rate: float) -> Float[Tensor, "bins mels"]:
    """Return VMZ's triangles; a bin counts as half the rate over the NUMBER of bins wide."""
    bins = points // 2 + 1
    width = rate / 2 / bins
    top = 1127 * math.log(1 + rate / 2 / 700)
    edges = 700 * ((torch.linspace(0.0, top, mels + 2, dtype=torch.float64) / 1127).exp() - 1)
    frequency = torch.arange(bins, dtype=torch.float64)[:, None] * width
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    rising = 1 - (centre - frequency) / (centre - low).clamp(min=width)
    falling = 1 - (frequency - centre) / (high - centre).clamp(min=width)
    weights = torch.minimum(rising, falling).clamp(min=0)
    return (weights / weights.sum(dim=0)).float()
