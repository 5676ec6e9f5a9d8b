"""Sound of a span: found, decoded, resampled and put where its times say."""

from collections.abc import Iterator
from itertools import chain

import av
import numpy as np
import torch
from av.audio.frame import AudioFrame
from jaxtyping import Float
from torch import Tensor

from triptych.errors import TriptychError
from triptych.media.container import Medium, main_sound

PREROLL = 0.1
"""Seconds of sound decoded before the wanted ones, so that codecs with memory have settled."""
POSTROLL = 0.005
"""Seconds of sound decoded after the wanted ones, for the resampler's filter."""
GAP = 0.012
"""A jump of so many seconds in the times of a track is a gap, not the rounding of its times."""


def read_sound(
    medium: Medium, start: float, end: float, rate: float
) -> tuple[Float[Tensor, "channels samples"], float | None]:
    """Return the sound of a span, zeros where the track has none, and where the track stops if that is before the end.

    Args:
        medium: The file; its first sound track is read.
        start: Second of the first sample.
        end: Second after the last; exactly round((end - start) * rate) samples are returned.
        rate: Samples a second to resample to.

    Returns:
        Samples in [-1, 1], and the second at which the track's last sample ends if the file ends before ``end`` (-inf
        where nothing was left to read at ``start``), else None.

    Raises:
        TriptychError: If the file has no sound.
    """
    stream = main_sound(medium.container)
    if stream is None:
        raise TriptychError(f"{medium.name} has no sound.")
    result = torch.zeros(stream.channels, round((end - start) * rate))
    if result.shape[1] == 0:
        return result, None
    stretch: _Stretch | None = None
    stopped: float | None = -np.inf
    for second, frame in _frames_from(medium, start):
        if second > end + POSTROLL:
            stopped = None
            break
        if stretch is None or not stretch.goes_on(second, frame):
            if stretch is not None:
                stretch.place(result, start)
            stretch = _Stretch(second, frame, rate)
        stretch.add(frame)
        stopped = stretch.end
    if stretch is not None:
        stretch.place(result, start)
    return result, stopped


def _frames_from(medium: Medium, start: float) -> Iterator[tuple[float, AudioFrame]]:
    """Yield the frames from a little before ``start`` on, each with its second."""
    back = PREROLL
    while True:
        stream = main_sound(medium.container)
        assert stream is not None and stream.time_base is not None
        tick = float(stream.time_base)
        beginning = (stream.start_time or 0) * tick - medium.origin
        sought = medium.seek(stream, int((start - back + medium.origin) / tick))
        if not sought:
            medium.reopen()
            stream = main_sound(medium.container)
            assert stream is not None
        frames = _timed(medium, stream, beginning)
        first = next(frames, None)
        if first is None:
            return
        if not sought or first[0] <= start or start - back <= beginning:
            break
        back *= 8  # the file led to a later place: try further back
    yield first
    yield from frames


def _timed(medium: Medium, stream: av.AudioStream, second: float) -> Iterator[tuple[float, AudioFrame]]:
    tick, origin = float(stream.time_base or 0), medium.origin
    for packet in chain(medium.demux(stream), [None]):
        for frame in medium.decode(stream, packet):
            pts, samples = frame.pts, frame.samples
            if pts is not None:
                second = pts * tick - origin
            if samples:
                yield second, frame
                second += samples / frame.sample_rate


class _Stretch:
    """Unbroken sound of one format."""

    def __init__(self, second: float, frame: AudioFrame, rate: float) -> None:
        self.began = second
        self.rate = round(rate)
        self.form = _form(frame)
        self.heard = 0
        self.pieces: list[np.ndarray] = []
        plain = frame.format.name == "fltp" and frame.sample_rate == self.rate
        self.resampler = None if plain else av.AudioResampler("fltp", frame.layout.name, self.rate)

    @property
    def end(self) -> float:
        """Second at which it ends so far."""
        return self.began + self.heard / self.form[2]

    def goes_on(self, second: float, frame: AudioFrame) -> bool:
        """Return whether a frame continues it."""
        return abs(second - self.end) <= GAP and _form(frame) == self.form

    def add(self, frame: AudioFrame) -> None:
        """Append a frame."""
        self.heard += frame.samples
        self.pieces += [_samples(piece) for piece in (self.resampler.resample(frame) if self.resampler else [frame])]

    def place(self, result: Float[Tensor, "channels samples"], start: float) -> None:
        """Copy it into ``result``, whose first sample belongs at ``start``."""
        if self.resampler is not None:
            self.pieces += [_samples(piece) for piece in self.resampler.resample(None)]
        if not self.pieces:
            return
        samples = torch.from_numpy(np.concatenate(self.pieces, axis=1))
        if len(samples) != len(result):  # the format changes within the track
            samples = samples.mean(dim=0, keepdim=True).expand(len(result), -1)
        at = round((self.began - start) * self.rate)
        first, last = max(at, 0), min(at + samples.shape[1], result.shape[1])
        if first < last:
            result[:, first:last] = samples[:, first - at : last - at]


def _form(frame: AudioFrame) -> tuple[str, str, int]:
    return frame.format.name, frame.layout.name, frame.sample_rate


def _samples(frame: AudioFrame) -> Float[np.ndarray, "channels samples"]:
    # Beyond eight channels PyAV lists planes that are not there.
    planes = frame.planes[: frame.layout.nb_channels]
    lines = [np.frombuffer(memoryview(plane), np.float32, frame.samples) for plane in planes]
    return lines[0][None] if len(lines) == 1 else np.stack(lines)
