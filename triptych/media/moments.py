"""Seconds of interest: where something is suddenly heard."""

import numpy as np
import torch
from jaxtyping import Float

from triptych.media.recording import Recording
from triptych.media.write import sound_of

RATE = 16_000
"""Samples a second that are listened to."""
HOP = 0.02
"""Seconds of a step."""
ONSET = 10.0
"""Decibels by which a step must be louder than the ones before it."""
BEFORE = 3
"""Steps before one, the quietest of which it is compared with."""
NEAR = 5
"""Steps either way within which one onset is heard, the sharpest."""
LONGEST = 3600.0
"""Seconds of a recording that are listened to."""


def find_moments(recording: Recording, most: int = 32) -> list[float]:
    """Return the seconds of the sharpest onsets of the sound, in order; none where there is no sound.

    Args:
        recording: What is listened to, its first hour at most.
        most: Onsets at most.
    """
    extent = recording.timeline.streams.get("audio")
    if extent is None or extent.end - extent.start < 2 * HOP:
        return []
    step = round(RATE * HOP)
    levels = []
    for piece in sound_of(recording, extent.start, min(extent.end, extent.start + LONGEST), RATE):
        sound = piece.mean(dim=0)
        power = sound[: len(sound) // step * step].view(-1, step).square().mean(dim=1)
        levels.append(10 * power.clamp(min=1e-10).log10())
    onsets = pick_onsets(torch.cat(levels).numpy().astype(np.float64), most)
    return [round(extent.start + place * HOP, 3) for place in onsets]


def pick_onsets(level: Float[np.ndarray, " steps"], most: int) -> list[int]:
    """Return the steps at which a sound of ``level`` decibels rises by ``ONSET`` or more, in order.

    A step counts if it rises most of those near it, and is no quieter than the median; of too many, the sharpest.
    """
    if len(level) == 0:
        return []
    before = np.concatenate([np.full(BEFORE, level[0]), level])
    rise = level - np.minimum.reduce([before[shift : shift + len(level)] for shift in range(BEFORE)])
    loud = np.flatnonzero((rise >= ONSET) & (level >= np.median(level)))
    peaks = []
    for place in loud.tolist():
        first = max(place - NEAR, 0)
        if int(rise[first : place + NEAR + 1].argmax()) == place - first:  # the first of equals
            peaks.append(place)
    return sorted(sorted(peaks, key=lambda place: -rise[place])[:most])
