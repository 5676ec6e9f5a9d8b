"""What one stream of one view reads: frames at times, pieces of sound, or a caption.

Pure arithmetic on seconds; ``windows`` decides where a span lies, here is what becomes of its edges.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from triptych.recipe import StreamSpec

TOLERANCE = 1e-6
"""Seconds within which two times are the same."""


@dataclass(frozen=True)
class Window:
    """Seconds of a recording."""

    start: float
    end: float

    @property
    def seconds(self) -> float:
        """Length."""
        return self.end - self.start


@dataclass(frozen=True)
class Piece:
    """Part of a recording that fills the steps of a span from ``at`` on."""

    at: int
    """First step that it fills."""
    start: float
    """Seconds."""
    end: float
    """Seconds."""


@dataclass(frozen=True)
class Span:
    """What one stream of one view reads: frames (``times``), sound or vectors (``pieces``), or a caption (``text``)."""

    start: float
    """Seconds of the recording, from here ..."""
    end: float
    """... to here; never outside the row."""
    steps: int = 0
    """Steps of the clip; what nothing fills is zeros."""
    length: int = 0
    """Valid steps; 0 where the row has nothing there."""
    times: Float64[Tensor, " frames"] | None = None
    """Video: the second of each valid frame."""
    pieces: tuple[Piece, ...] = ()
    """Sound and vectors: what is read, and where it goes."""
    text: str | None = None
    """Caption."""
    crop: float | None = None
    """Place of the crop along the longer side, 0 to 1; None: as the transform says."""


def count_steps(spec: StreamSpec, seconds: float, rate: float | None) -> int:
    """Return the steps of a clip of ``seconds``; 0 where nothing but reading tells: an unknown rate, uncut vectors."""
    if spec.transform.kind == "sequence":
        return spec.transform.steps or 0
    return 0 if rate is None else max(1, round(seconds * rate))


def show_still(spec: StreamSpec, seconds: float, extent: Window) -> Span:
    """Return what a video stream reads of a still, which is shown whatever the time: one frame, or all at its rate."""
    steps = max(1, count_steps(spec, seconds, spec.rate))
    times = torch.full((steps,), extent.start, dtype=torch.float64)
    return Span(extent.start, extent.end, steps=steps, length=steps, times=times)


def cut_span(
    spec: StreamSpec, start: float, seconds: float, rate: float | None, speed: float, extent: Window
) -> Span | None:
    """Return what a stream reads from ``start`` on, its edges treated as ``spec.short`` says.

    Args:
        spec: The stream.
        start: Seconds of the recording.
        seconds: Length of the clip as it is shown; ``speed`` times as many of the recording.
        rate: Steps a second, as shown.
        speed: Of the recording against the clip.
        extent: Where the stream exists.

    Returns:
        The span, of length 0 where it lies outside the extent; None where it is too short for ``skip``.
    """
    steps = count_steps(spec, seconds, rate)
    end = start + seconds * speed
    inside = Window(max(start, extent.start), min(end, extent.end))
    if spec.short == "skip" and (start < extent.start - TOLERANCE or end > extent.end + 0.5 / (rate or 25.0)):
        return None
    if inside.seconds <= TOLERANCE:
        edge = extent.start if end <= extent.start + TOLERANCE else extent.end
        return Span(edge, edge, steps=steps)
    if spec.transform.kind == "sequence":
        piece = Piece(0, inside.start, inside.end)
        return Span(inside.start, inside.end, steps=steps, length=max(steps, 1), pieces=(piece,))
    assert rate is not None
    if spec.transform.kind == "video":
        times = _frame_times(start, speed / rate, steps, spec.short, extent)
        return Span(inside.start, inside.end, steps=steps, length=len(times), times=times)
    return _sound_span(start, steps, rate, spec.short, extent, inside)


def _frame_times(start: float, step: float, steps: int, short: str, extent: Window) -> Float64[Tensor, " frames"]:
    """Return the second of each frame; see ``StreamSpec.short`` for those outside the extent."""
    place = torch.arange(steps, dtype=torch.float64)
    times = start + place * step
    first, last = (
        extent.start,
        max(extent.start, extent.end - 1e-4),
    )  # the last frame is shown until just before the end
    if short == "zero":
        return times[(times >= first - TOLERANCE) & (times < extent.end - TOLERANCE)].clamp(first)
    if short == "loop":
        start = max(start, first)
        before = max(1, math.ceil((extent.end - start) / step - TOLERANCE))  # frames before the first return
        cycle = max(1, math.ceil(extent.seconds / step - TOLERANCE))
        again = first + ((place - before) % cycle) * step
        return torch.where(place < before, start + place * step, again)
    return times.clamp(first, last)


def _sound_span(start: float, steps: int, rate: float, short: str, extent: Window, inside: Window) -> Span:
    """Return the pieces of a stretch of sound; see ``StreamSpec.short`` for what lies outside the extent."""
    if short == "loop":
        pieces: list[Piece] = []
        at, begin = 0, inside.start
        while at < steps:
            end = min(extent.end, begin + (steps - at) / rate)
            pieces.append(Piece(at, begin, end))
            at += max(1, round((end - begin) * rate))
            begin = extent.start
        return Span(inside.start, inside.end, steps=steps, length=steps, pieces=tuple(pieces))
    valid = min(steps, max(1, round(inside.seconds * rate)))
    if short == "zero":
        return Span(inside.start, inside.end, steps=steps, length=valid, pieces=(Piece(0, inside.start, inside.end),))
    lead = min(steps - 1, round((inside.start - start) * rate))
    piece = Piece(lead, inside.start, inside.end)
    return Span(inside.start, inside.end, steps=steps, length=steps, pieces=(piece,))
