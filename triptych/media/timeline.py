"""What is known of a recording without decoding it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from triptych.errors import UsageError
from triptych.media.captions import Caption


@dataclass(frozen=True, slots=True)
class Extent:
    """Where a stream lies."""

    start: float
    end: float
    rate: float | None = None
    """Frames or samples a second; None for text, precomputed vectors and still images."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """What is known of a row without decoding it; seconds of the recording."""

    start: float
    end: float
    streams: Mapping[str, Extent] = field(default_factory=dict)
    captions: tuple[Caption, ...] = ()
    moments: tuple[float, ...] = ()
    """Seconds of interest, measured once by ``prepare`` and kept, or given."""

    def captioned(self, captions: tuple[Caption, ...]) -> "Timeline":
        """Return it with these captions instead of its own."""
        streams = {name: extent for name, extent in self.streams.items() if name != "text"}
        if captions:
            streams["text"] = Extent(min(c.start for c in captions), max(c.end for c in captions))
        return replace(self, streams=streams, captions=captions)

    def narrowed(self, start: float | None, end: float | None) -> "Timeline":
        """Return the part of it between two seconds, or from its beginning or to its end.

        Raises:
            UsageError: If the part is empty or begins after the end.
        """
        first = self.start if start is None else max(start, self.start)
        last = self.end if end is None else min(end, self.end)
        if last < first or (last == first and (start is not None or end is not None)):
            raise UsageError(f"there is nothing between {start} and {end} s; it is {self.end:.2f} s long.")
        streams = {}
        for name, extent in self.streams.items():
            if name == "video" and extent.rate is None:  # a still is there all the time
                streams[name] = Extent(first, last)
            elif (extent.end > first and extent.start < last) or extent.end == extent.start:
                streams[name] = Extent(max(extent.start, first), min(extent.end, last), extent.rate)
        captions = tuple(one for one in self.captions if one.end > first and one.start < last)
        moments = tuple(moment for moment in self.moments if first <= moment <= last)
        return Timeline(first, last, streams, (), moments).captioned(captions)


@dataclass(frozen=True, slots=True)
class Probe:
    """What the headers of a file say."""

    duration: float
    origin: float = 0.0
    """Second of the container that is second 0."""
    still: bool = False
    width: int = 0
    height: int = 0
    """As shown: after rotation and with square pixels."""
    fps: float = 0.0
    frames: int = 0
    """As the header counts them; 0 where it does not."""
    video_codec: str = ""
    audio_rate: int = 0
    channels: int = 0
    audio_codec: str = ""
    video: tuple[float, float] | None = None
    """Start and end of the picture."""
    audio: tuple[float, float] | None = None
    """Start and end of the sound."""
    title: str = ""
