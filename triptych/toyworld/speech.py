"""Spoken digit words: phones with formants for the voice and a shape for the mouth, on one time line.

The sound is a small formant synthesis: the harmonics of a voice, weighted by three resonances, and hiss in a band of
its own for consonants. Centre frequencies of vowels are rounded from the averages that phonetics textbooks print.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Phone(NamedTuple):
    """A sound of speech and the mouth that makes it.

    ``lips``, ``width``, ``teeth``, ``tongue`` and ``tuck`` (the lower lip under the upper teeth) run from 0 to 1;
    ``formants`` and ``hiss_at`` in Hz; ``voice`` and ``hiss`` are amplitudes; ``weight`` is its share of a word's time.
    """

    lips: float
    width: float
    teeth: float
    tongue: float
    tuck: float
    formants: tuple[float, float, float]
    voice: float
    hiss: float
    hiss_at: float
    weight: float


PHONES = {
    "a": Phone(1.00, 0.55, 0.2, 0.0, 0.0, (750, 1250, 2500), 1.0, 0.0, 0, 1.3),
    "ah": Phone(0.65, 0.50, 0.1, 0.0, 0.0, (640, 1190, 2390), 1.0, 0.0, 0, 1.2),
    "ao": Phone(0.85, 0.12, 0.0, 0.0, 0.0, (570, 840, 2410), 1.0, 0.0, 0, 1.5),
    "e": Phone(0.60, 0.80, 0.3, 0.0, 0.0, (500, 1900, 2500), 1.0, 0.0, 0, 1.3),
    "eh": Phone(0.65, 0.72, 0.2, 0.0, 0.0, (530, 1840, 2480), 1.0, 0.0, 0, 1.1),
    "ih": Phone(0.35, 0.65, 0.3, 0.0, 0.0, (390, 1990, 2550), 1.0, 0.0, 0, 1.0),
    "iy": Phone(0.25, 1.00, 0.6, 0.0, 0.0, (270, 2290, 3010), 1.0, 0.0, 0, 1.4),
    "o": Phone(0.55, 0.10, 0.0, 0.0, 0.0, (450, 900, 2400), 1.0, 0.0, 0, 1.2),
    "uw": Phone(0.18, 0.00, 0.0, 0.0, 0.0, (300, 870, 2240), 1.0, 0.0, 0, 1.4),
    "f": Phone(0.10, 0.50, 0.8, 0.0, 1.0, (400, 1200, 2400), 0.0, 0.35, 4500, 1.0),
    "v": Phone(0.10, 0.50, 0.8, 0.0, 1.0, (300, 1200, 2400), 0.5, 0.15, 4500, 0.9),
    "s": Phone(0.12, 0.75, 1.0, 0.0, 0.0, (400, 1700, 2600), 0.0, 0.60, 6200, 1.1),
    "z": Phone(0.14, 0.70, 1.0, 0.0, 0.0, (300, 1700, 2600), 0.5, 0.35, 6000, 0.9),
    "th": Phone(0.30, 0.50, 0.5, 1.0, 0.0, (400, 1400, 2500), 0.0, 0.25, 5200, 1.1),
    "t": Phone(0.18, 0.60, 0.8, 0.4, 0.0, (400, 1700, 2600), 0.0, 0.50, 4200, 0.6),
    "k": Phone(0.30, 0.55, 0.1, 0.0, 0.0, (400, 1900, 2500), 0.0, 0.45, 2200, 0.7),
    "n": Phone(0.28, 0.55, 0.3, 0.9, 0.0, (280, 1350, 2300), 0.45, 0.0, 0, 0.9),
    "r": Phone(0.28, 0.22, 0.2, 0.0, 0.0, (330, 1060, 1380), 0.7, 0.0, 0, 0.8),
    "w": Phone(0.08, 0.02, 0.0, 0.0, 0.0, (290, 610, 2150), 0.6, 0.0, 0, 0.9),
}

DIGITS = {
    "zero": ("z", "ih", "r", "o", "uw"),
    "one": ("w", "ah", "n"),
    "two": ("t", "uw"),
    "three": ("th", "r", "iy"),
    "four": ("f", "ao", "r"),
    "five": ("f", "a", "iy", "v"),
    "six": ("s", "ih", "k", "s"),
    "seven": ("s", "eh", "v", "ah", "n"),
    "eight": ("e", "iy", "t"),
    "nine": ("n", "a", "iy", "n"),
}

REST = (0.03, 0.45, 0.0, 0.0, 0.0)
"""The mouth between words."""


@dataclass(frozen=True)
class Word:
    """A spoken word and its seconds."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Voice:
    """A speaker: pitch in Hz, and the vocal tract's scale on formants (short tracts above 1)."""

    pitch: float
    tract: float


def phone_spans(word: Word) -> list[tuple[Phone, float, float]]:
    """The phones of a word, each with its start and end in seconds."""
    phones = [PHONES[name] for name in DIGITS[word.text]]
    bounds = np.cumsum([0.0] + [phone.weight for phone in phones])
    bounds = word.start + bounds * (word.end - word.start) / bounds[-1]
    return [(phone, float(a), float(b)) for phone, a, b in zip(phones, bounds[:-1], bounds[1:], strict=True)]


def mouth(words: tuple[Word, ...], times: Float[np.ndarray, " times"]) -> Float[np.ndarray, "times 5"]:
    """Shape of the mouth at ``times``: lips apart, width, teeth, tongue, tucked lip, each from 0 to 1."""
    keys, shapes = [-1.0], [REST]
    for word in words:
        keys.append(word.start - 0.03)
        shapes.append(REST)
        for phone, start, end in phone_spans(word):
            keys += [start + 0.25 * (end - start), end - 0.25 * (end - start)]
            shapes += [phone[:5], phone[:5]]
        keys.append(word.end + 0.03)
        shapes.append(REST)
    table = np.array(shapes)
    return np.stack([np.interp(times, keys, table[:, i]) for i in range(5)], axis=1)


def speak(
    words: tuple[Word, ...], voice: Voice, duration: float, rate: int, rng: np.random.Generator
) -> Float[np.ndarray, " samples"]:
    """The sound of ``words`` in ``voice``: float32, about unit peak, ``duration`` seconds at ``rate`` Hz."""
    sound = np.zeros(round(duration * rate), np.float32)
    for word in words:
        spans = phone_spans(word)
        first = round(word.start * rate)
        spoken = _voiced(spans, voice, rate, rng)
        for phone, start, end in spans:
            if phone.hiss:
                at = round(start * rate) - first
                noise = _hiss(phone, round((end - start) * rate), rate, rng)
                noise = noise[: len(spoken) - at]
                spoken[at : at + len(noise)] += noise
        spoken = spoken[: len(sound) - first]
        sound[first : first + len(spoken)] += spoken
    return sound


def _voiced(
    spans: list[tuple[Phone, float, float]], voice: Voice, rate: int, rng: np.random.Generator
) -> Float[np.ndarray, " samples"]:
    """The harmonics of the voice, each as loud as three resonances let it be at its frequency."""
    hop = rate // 200
    start, end = spans[0][1], spans[-1][2]
    steps = int(round((end - start) * rate) / hop) + 1
    times = start + np.arange(steps + 1) * hop / rate
    keys, rows = [], []
    for phone, a, b in spans:
        keys += [a + 0.25 * (b - a), b - 0.25 * (b - a)]
        rows += [(*phone.formants, phone.voice)] * 2
    table = np.array(rows)
    formants = np.stack([np.interp(times, keys, table[:, i]) for i in range(3)], axis=1) * voice.tract
    loud = np.interp(times, keys, table[:, 3])
    loud *= np.clip((times - start) / 0.02, 0, 1) * np.clip((end - times) / 0.03, 0, 1)
    pitch = voice.pitch * (1.08 - 0.16 * (times - start) / (end - start) + 0.02 * rng.standard_normal())
    ramp = np.arange(hop) / hop
    spread = (pitch[:-1, None] + (pitch[1:] - pitch[:-1])[:, None] * ramp).ravel()
    phase = 2 * np.pi * np.cumsum(spread) / rate
    before, now, twice = np.zeros_like(phase), np.sin(phase), 2 * np.cos(phase)
    sound = np.zeros_like(phase)
    for k in range(1, int(min(4000, 0.45 * rate) / voice.pitch) + 1):
        square = (k * pitch[:, None]) ** 2
        bands = np.array([80.0, 100.0, 150.0])
        gain = formants**2 / np.sqrt((square - formants**2) ** 2 + square * bands**2)
        height = loud * gain.prod(axis=1) / k
        sound += (height[:-1, None] + (height[1:] - height[:-1])[:, None] * ramp).ravel() * now
        before, now = now, twice * now - before  # sin((k + 1) x) = 2 cos(x) sin(k x) - sin((k - 1) x)
    return (0.12 * sound).astype(np.float32)


def _hiss(phone: Phone, samples: int, rate: int, rng: np.random.Generator) -> Float[np.ndarray, " samples"]:
    """Noise in a band an octave wide round the phone's hiss."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    distance = np.log2(np.maximum(np.fft.rfftfreq(samples, 1 / rate), 1.0) / min(phone.hiss_at, 0.42 * rate))
    noise = np.fft.irfft(spectrum * np.exp(-0.5 * (distance / 0.4) ** 2), samples)
    fade = np.clip(np.minimum(np.arange(samples), np.arange(samples)[::-1]) / (0.01 * rate), 0, 1)
    band: Float[np.ndarray, " samples"] = (phone.hiss * 0.5 * noise * fade / (noise.std() + 1e-9)).astype(np.float32)
    return band
