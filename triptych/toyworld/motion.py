"""How things move, and at which seconds they sound: pure functions of time.

Picture and sound read the same functions, which is why an impact is heard at the very frame it is seen. Every event
lies on a grid of ``TICK`` seconds, hence on a frame at the default 16 frames per second (and its multiples).
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

TICK = 1 / 16
"""Seconds between the instants at which something may happen."""

MOTIONS = ("bounce", "slide", "circle", "shake", "pulse", "blink")

PERIODS = {
    "bounce": (9, 14),
    "slide": (13, 18),
    "circle": (20, 30),
    "shake": (6, 8),
    "pulse": (13, 18),
    "blink": (9, 13),
}
"""Shortest and longest period of a motion, in ticks."""

REACH = {
    "bounce": (0.06, 0.18),
    "slide": (0.22, 0.0),
    "circle": (0.18, 0.18),
    "shake": (0.10, 0.0),
    "pulse": (0.0, 0.0),
    "blink": (0.0, 0.0),
}
"""How far a motion carries a thing from its home to either side (x, y), as a fraction of the picture's side."""

GLIDE = 0.6
"""Share of a slide's period in which the thing moves; it rests in the other."""

LIT = 0.55
"""Share of a blink's period in which the thing is there."""


@dataclass(frozen=True)
class Thing:
    """Something in the picture, or a sound from outside it.

    Lengths are fractions of the picture's side, x to the right, y down; seconds are those of the recording.
    """

    kind: str
    colour: str
    size: str
    motion: str
    x: float
    y: float
    radius: float
    tilt: float
    rgb: tuple[float, float, float]
    pitch: float
    period: float
    phase: float


class Pose(NamedTuple):
    """Where a thing is at each time: centre, half-width and half-height (fractions of the side), and if it is there."""

    x: Float[np.ndarray, " times"]
    y: Float[np.ndarray, " times"]
    width: Float[np.ndarray, " times"]
    height: Float[np.ndarray, " times"]
    visible: Bool[np.ndarray, " times"]


class Note(NamedTuple):
    """A stretch of sound: its start and length in seconds, and the shape of its loudness."""

    start: float
    length: float
    shape: str


def pose(thing: Thing, times: Float[np.ndarray, " times"]) -> Pose:
    """Where ``thing`` is at ``times`` (seconds), if nothing stops it."""
    turn = (times - thing.phase) / thing.period
    part = turn % 1.0
    reach_x, reach_y = REACH[thing.motion]
    x, y = np.full_like(times, thing.x), np.full_like(times, thing.y)
    width, height = np.full_like(times, thing.radius), np.full_like(times, thing.radius)
    visible = np.ones(times.shape, bool)
    match thing.motion:
        case "bounce":
            y += reach_y * (1 - 8 * part * (1 - part))
            x += reach_x * np.sin(2 * np.pi * turn / 5.3)
            flat = 0.28 * np.exp(-0.5 * (np.minimum(part, 1 - part) * thing.period / (0.5 * TICK)) ** 2)
            width, height = width * (1 + 0.6 * flat), height * (1 - flat)
        case "slide":
            way = np.clip(part / GLIDE, 0, 1)
            way = way * way * (3 - 2 * way)
            x += reach_x * np.where(np.floor(turn) % 2 == 0, 2 * way - 1, 1 - 2 * way)
        case "circle":
            x += reach_x * np.sin(2 * np.pi * turn)
            y -= reach_y * np.cos(2 * np.pi * turn)
        case "shake":
            x += reach_x * np.cos(2 * np.pi * turn)
        case "pulse":
            width, height = width * (0.72 + 0.45 * part), height * (0.72 + 0.45 * part)
        case "blink":
            visible = part < LIT
    return Pose(x, y, width, height, visible)


def notes(thing: Thing, duration: float) -> list[Note]:
    """What is heard of ``thing``: a note at every impact, glide, swell or flash within ``duration`` seconds."""
    step = thing.period / 2 if thing.motion == "shake" else thing.period
    starts = thing.phase + step * np.arange(-1, int(duration / step) + 2)
    match thing.motion:
        case "bounce":
            found = [Note(float(t), 0.4, "strike") for t in starts]
        case "slide":
            found = [Note(float(t), GLIDE * step, "hold") for t in starts]
        case "circle":
            found = [Note(float(t) - step / 2, step, "swell") for t in starts]
        case "shake":
            found = [Note(float(t), 0.11, "strike") for t in starts]
        case "pulse":
            found = [Note(float(t), step, "rise") for t in starts]
        case _:
            found = [Note(float(t), LIT * step, "flicker") for t in starts]
    return [note for note in found if note.start < duration and note.start + note.length > 0]


def events(thing: Thing, duration: float) -> list[float]:
    """The seconds at which something is seen and heard to happen to ``thing``.

    A bounce's contacts with the floor, a slide's departures, a circle's highest points, a shake's turning points, the
    instants at which a pulse collapses and at which a blinking thing appears.
    """
    step = thing.period / 2 if thing.motion == "shake" else thing.period
    found = thing.phase + step * np.arange(-1, int(duration / step) + 2)
    return [round(float(t), 4) for t in found if 0 <= t < duration]
