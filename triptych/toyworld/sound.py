"""From a scene to its sound: timbre follows the kind, pitch the size, rhythm the motion."""

import numpy as np
from jaxtyping import Float

from triptych.toyworld.motion import Note, Thing, notes
from triptych.toyworld.speech import speak
from triptych.toyworld.world import Acoustics, Collision, Scene

PARTIALS = {
    "disc": ((1, 1.0), (2, 0.05)),
    "square": ((1, 1.0), (3, 0.55), (5, 0.4), (7, 0.25)),
    "triangle": ((1, 0.8), (2.41, 0.8), (3.93, 0.6), (5.18, 0.4)),
    "star": ((1, 0.6), (4, 0.7), (8.1, 0.4)),
    "ring": ((1, 0.8), (2, 0.6), (3, 0.4)),
    "cross": ((1, 0.6), (2, 0.55), (3, 0.5), (4, 0.45), (5, 0.4), (6, 0.35)),
    "moon": ((1, 1.0), (2, 0.4)),
    "heart": ((1, 0.8), (1.26, 0.7), (1.5, 0.7)),
}
"""Ratio to the pitch, and amplitude, of what a kind's sound is made of; rings throb, moons breathe, hearts tremble."""


def render_sound(scene: Scene, rate: int) -> Float[np.ndarray, " samples"]:
    """The sound of ``scene`` at ``rate`` Hz: float32 within -1 and 1, ``duration * rate`` samples."""
    rng = np.random.default_rng([scene.seed, scene.index, 3])
    samples = round(scene.duration * rate)
    sound = np.zeros(samples, np.float32)
    collision = scene.collision
    for note in notes(scene.main, scene.duration):
        if collision and collision.effect == "break":
            if note.start >= collision.time:
                continue
            note = note._replace(length=min(note.length, collision.time - note.start))
        _add(sound, _play(scene.main, note, rate, rng), note.start, rate, 0.5)
    if collision:
        _add(sound, _crash(collision, rate, rng), collision.time, rate, 0.8)
    if scene.highlight:
        _add(sound, _chord(rate), scene.highlight[0], rate, 0.6)
    if scene.talk:
        # Who talks is near: the thing steps back behind the voice.
        sound *= 0.5
        sound += speak(scene.talk.heard, scene.talk.voice, scene.duration, rate, rng)
    return _surround(sound, scene.acoustics, scene.duration, rate, rng)


def _add(sound: Float[np.ndarray, " samples"], part: np.ndarray, start: float, rate: int, level: float) -> None:
    """Mix ``part`` into ``sound`` from second ``start`` on; what lies outside is cut."""
    first = round(start * rate)
    part = part[max(0, -first) : max(0, len(sound) - first)]
    first = max(0, first)
    sound[first : first + len(part)] += level * part


def _play(thing: Thing, note: Note, rate: int, rng: np.random.Generator) -> Float[np.ndarray, " samples"]:
    """One note of ``thing``."""
    time = np.arange(round(note.length * rate), dtype=np.float32) / np.float32(rate)
    turn = 2 * np.pi * thing.pitch * time
    if thing.kind == "heart":
        turn = turn + 0.012 * thing.pitch / 6 * np.sin(2 * np.pi * 6 * time)
    sound = np.zeros_like(time)
    for ratio, height in PARTIALS[thing.kind]:
        if ratio * thing.pitch < 0.45 * rate:
            sound += height * np.sin(ratio * turn)
    sound /= np.sqrt(sum(height**2 for _, height in PARTIALS[thing.kind]))
    if thing.kind == "ring":
        sound *= 1 + 0.95 * np.sin(2 * np.pi * 22 * time)
    if thing.kind == "moon":
        knots = np.arange(0, time[-1] + 0.02, 4 / thing.pitch)
        sound *= 1.6 * np.interp(time, knots, rng.standard_normal(len(knots)))
    left = time[-1] - time
    match note.shape:
        case "strike":
            height = np.exp(-time / (0.3 * note.length)) * np.clip(left / 0.01, 0, 1)
        case "hold":
            height = 0.55 * np.clip(time / 0.01, 0, 1) * np.clip(left / 0.03, 0, 1)
        case "flicker":
            gate = np.clip(3 * np.sin(2 * np.pi * 10 * time) + 1, 0, 1)
            height = 0.65 * gate * np.clip(left / 0.01, 0, 1)
        case "swell":
            height = 0.7 * np.sin(np.pi * time / note.length) ** 4
        case _:
            height = 0.8 * (time / note.length) ** 2 * np.clip(left / 0.01, 0, 1)
    played: Float[np.ndarray, " samples"] = (sound * height).astype(np.float32)
    return played


def _crash(collision: Collision, rate: int, rng: np.random.Generator) -> Float[np.ndarray, " samples"]:
    """A blow with the striker's own tone; what breaks crackles on."""
    time = np.arange(round(0.7 * rate)) / rate
    sound = 0.8 * rng.standard_normal(len(time)) * np.exp(-time / 0.04)
    sound += 0.5 * np.sin(2 * np.pi * 90 * time) * np.exp(-time / 0.08)
    if collision.effect == "break":
        grains = (rng.random(len(time)) < 60 / rate) * rng.standard_normal(len(time)) * 4
        ringing = np.exp(-time[: rate // 20] / 0.008) * np.sin(2 * np.pi * 3500 * time[: rate // 20])
        size = 1 << (len(time) + len(ringing)).bit_length()
        crackle = np.fft.irfft(np.fft.rfft(grains, size) * np.fft.rfft(ringing, size), size)[: len(time)]
        sound += 0.5 * crackle * np.exp(-time / 0.3)
    else:
        sound += 0.6 * np.sin(2 * np.pi * time * (500 + 900 * time)) * np.exp(-time / 0.2)
    _add(sound, _play(collision.striker, Note(0.0, 0.4, "strike"), rate, rng), 0.0, rate, 0.5)
    crash: Float[np.ndarray, " samples"] = sound.astype(np.float32)
    return crash


def _chord(rate: int) -> Float[np.ndarray, " samples"]:
    """Four notes in quick succession, and all together."""
    time = np.arange(round(0.75 * rate)) / rate
    sound = np.zeros(len(time))
    for place, pitch in enumerate((523.25, 659.25, 783.99, 1046.5)):
        since = time - 0.08 * place
        sound += np.where(since > 0, np.sin(2 * np.pi * pitch * since) * np.exp(-np.maximum(since, 0) / 0.3), 0)
    chord: Float[np.ndarray, " samples"] = (0.4 * sound * np.clip((0.75 - time) / 0.05, 0, 1)).astype(np.float32)
    return chord


def _surround(
    sound: Float[np.ndarray, " samples"], room: Acoustics, duration: float, rate: int, rng: np.random.Generator
) -> Float[np.ndarray, " samples"]:
    """Add what is heard from elsewhere, an echo, the colour of the room and noise."""
    samples = len(sound)
    if room.elsewhere:
        for note in notes(room.elsewhere, duration):
            _add(sound, _play(room.elsewhere, note, rate, rng), note.start, rate, room.elsewhere_level)
    size = samples + round(room.echo[0] * rate)
    size = next(n for n in _fast_sizes(size) if n >= size)
    frequency = np.fft.rfftfreq(size, 1 / rate)
    octave = np.log2(np.maximum(frequency, 30) / 125)
    gain = 10 ** (np.interp(octave, np.arange(7), room.bands) / 20) * 2 ** (room.tilt * (octave - 2))
    echo = 1 + room.echo[1] * np.exp(-2j * np.pi * frequency * room.echo[0])
    sound = np.fft.irfft(np.fft.rfft(sound, size) * gain * echo, size)[:samples]
    sound = room.level * sound / (1e-3 + np.abs(sound).max()) + room.noise * room.level * rng.standard_normal(samples)
    heard: Float[np.ndarray, " samples"] = np.clip(sound, -1, 1).astype(np.float32)
    return heard


def _fast_sizes(least: int) -> list[int]:
    """Lengths just above ``least`` of which a Fourier transform is quick: a power of two times 1, 3 or 5."""
    power = max(0, least.bit_length() - 4)
    return sorted(factor << (power + k) for k in range(6) for factor in (1, 3, 5))
