"""One file, addressed in seconds and decoded on demand.

Second 0 of a recording is where its container starts to be presented, after edit lists; an offset that a container adds
to all its times (as some Matroska and MPEG files do) is taken off.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as Ordered
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import av
import numpy as np
import torch
from av.video.frame import VideoFrame
from jaxtyping import Float, UInt8
from torch import Tensor

from triptych.errors import TriptychError, UsageError
from triptych.media.captions import Caption, read_embedded, read_sidecars
from triptych.media.container import EndedEarly, Medium, Source
from triptych.media.decode import GRACE, VideoReader
from triptych.media.headers import is_still, read_headers
from triptych.media.sequences import Sequence, read_sequence
from triptych.media.sound import read_sound
from triptych.media.timeline import Extent, Probe, Timeline

SLACK = 1.0
"""Seconds that a track may end before its declared end without being called cut short."""
FEW_FRAMES = 3
"""Frames that it may end before it, where they last longer."""


class Recording:
    """A video, sound or picture file. Use it in a ``with`` block, or call ``close``."""

    def __init__(
        self,
        source: Source,
        timeline: Timeline | None = None,
        audio: str | Path | None = None,
        sequences: Mapping[str, str | Path] | None = None,
        name: str | None = None,
    ) -> None:
        """Prepare reading; the file is opened when something is asked of it.

        Args:
            source: A path, the bytes of a file, or an open binary file.
            timeline: What is known of it already; probed where None.
            audio: A separate sound file that stands in for the file's own sound.
            sequences: Files of precomputed vectors by stream (.npy, .npz or .safetensors).
            name: What messages call it.
        """
        self.source: str | Path | bytes = source if isinstance(source, (str, Path, bytes)) else source.read()
        self.path = Path(source) if isinstance(source, (str, Path)) else Path(name or "(memory)")
        self.name = name or str(self.path)
        self.audio = audio
        self.sequences = dict(sequences or {})
        self._timeline = timeline
        self._probe: Probe | None = None
        self._media: dict[str, Medium] = {}
        self._video: VideoReader | None = None
        self._vectors: dict[str, Sequence] = {}
        self._damaged: set[tuple[str, int, int | None]] = set()

    # ------------------------------------------------------------------------------------------------ opening

    def __enter__(self) -> "Recording":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; anything asked later opens them again."""
        for what, medium in self._media.items():
            self._note(what, medium)
            medium.close()
        self._media.clear()
        self._video = None

    def _medium(self, what: str = "file") -> Medium:
        """Return the open file, or the separate file of its sound."""
        if what not in self._media:
            place = self.audio if what == "audio" and self.audio is not None else self.source
            self._media[what] = Medium(place, self.name if place is self.source else str(place))
        return self._media[what]

    def _sound_medium(self) -> Medium:
        return self._medium("file" if self.audio is None else "audio")

    def _note(self, what: str, medium: Medium) -> None:
        self._damaged |= {(what, *place) for place in medium.damaged}

    @property
    def skipped(self) -> int:
        """Damaged packets met, and passed over, so far."""
        for what, medium in self._media.items():
            self._note(what, medium)
        return len(self._damaged)

    # ------------------------------------------------------------------------------------------------ what is known

    @property
    def probe(self) -> Probe:
        """What the headers say."""
        if self._probe is None:
            medium, sound = self._medium(), self._sound_medium()
            self._probe = read_headers(medium, sound, self._rotation())
        return self._probe

    def _rotation(self) -> int:
        """Return how far the picture is turned, which only a frame tells."""
        try:
            first = next(self._reader().timed(), None)
        except TriptychError:  # sound alone
            return 0
        return 0 if first is None else int(first[1].rotation)

    @property
    def timeline(self) -> Timeline:
        """What is known without decoding."""
        if self._timeline is None:
            self._timeline = self._find_timeline()
        return self._timeline

    def _find_timeline(self) -> Timeline:
        probe = self.probe
        streams = {}
        if probe.video is not None:
            streams["video"] = Extent(*probe.video, None if probe.still else probe.fps)
        if probe.audio is not None:
            streams["audio"] = Extent(*probe.audio, float(probe.audio_rate))
        streams |= self._vector_extents(self.sequences)
        return Timeline(0.0, probe.duration, streams).captioned(self._find_captions(probe))

    def _vector_extents(self, streams: Iterable[str]) -> dict[str, Extent]:
        found = {stream: self._all_vectors(stream) for stream in streams}
        return {stream: Extent(float(x.times[0]), x.end) for stream, x in found.items() if len(x.times)}

    def _find_captions(self, probe: Probe) -> tuple[Caption, ...]:
        found = () if isinstance(self.source, bytes) else read_sidecars(self.path, probe.duration)
        found = found or read_embedded(self._medium())
        return found or ((Caption(probe.title, 0.0, probe.duration),) if probe.title else ())

    def remember(self, probe: Probe, timeline: Timeline) -> None:
        """Take what was measured before, so that the file is not opened for it; of vectors added since, measure it."""
        new = self._vector_extents(stream for stream in self.sequences if stream not in timeline.streams)
        self._probe, self._timeline = probe, replace(timeline, streams={**timeline.streams, **new})

    def caption(self, captions: tuple[Caption, ...]) -> None:
        """Replace the captions."""
        self._timeline = self.timeline.captioned(captions)

    def narrow(self, caption: str | None, start: float | None, end: float | None) -> None:
        """Keep to a part of the file, and replace its captions by one; an empty one means that it has none.

        Raises:
            UsageError: If the part is empty or begins after the end of the file.
        """
        try:
            part = self.timeline.narrowed(start, end)
        except UsageError as error:
            raise UsageError(f"{self.name}: {error}") from None
        if caption is not None:
            part = part.captioned((Caption(caption, part.start, part.end),) if caption else ())
        self._timeline = part

    # ------------------------------------------------------------------------------------------------ pictures

    def frames(
        self, times: Ordered[float] | Tensor, short_side: int | None = None
    ) -> UInt8[Tensor, "frames height width 3"]:
        """Return the frame shown at each time, upright and with square pixels.

        The frame shown at t is the last one that begins at t or before; before the first frame it is the first. A still
        image gives the same frame whatever the times.

        Args:
            times: Seconds, in any order; repeats are allowed.
            short_side: Scale so that the shorter side has so many pixels (area averaging); own size where None.

        Raises:
            TriptychError: If there is no picture, or nothing can be decoded.
            EndedEarly: If a time lies in the declared extent but beyond where the file truly ends.
        """
        seconds = times.tolist() if isinstance(times, Tensor) else [float(second) for second in times]
        reader = self._reader()
        order = sorted(range(len(seconds)), key=seconds.__getitem__)
        asked = [0.0] * len(order) if is_still(reader.medium) else [seconds[place] for place in order]
        result: np.ndarray = np.empty((0, 0, 0, 3), np.uint8)
        missing = set(order)
        picture: tuple[VideoFrame, np.ndarray] | None = None
        for place, frame in reader.shown(asked):
            if picture is None or frame is not picture[0]:
                picture = (frame, reader.picture(frame, short_side))
            if not len(result):
                result = np.empty((len(order), *picture[1].shape), np.uint8)
            result[order[place]] = picture[1]
            missing.discard(order[place])
        if missing:
            raise TriptychError(f"{self.name}: no picture can be decoded at {min(seconds[k] for k in missing):.2f} s.")
        if asked and reader.stopped is not None and not is_still(reader.medium):
            self._check_end("picture", asked[-1], reader.stopped, self.probe.video)
        return torch.from_numpy(result)

    def pictures(
        self, fps: float, short_side: int | None = None, end: float = math.inf
    ) -> Iterator[UInt8[Tensor, "height width 3"]]:
        """Yield the picture shown at every k / ``fps`` from second 0 to the end of the video, decoding it once.

        Args:
            fps: Pictures a second.
            short_side: As for ``frames``.
            end: Second at which to stop.

        Raises:
            TriptychError: As ``frames``.
            EndedEarly: If the file ends before its declared end.
        """
        extent = self.probe.video
        if extent is None:
            raise TriptychError(f"{self.name} has no picture.")
        count = max(round(min(extent[1], end) * fps), 1)
        with self._apart() as reader:
            number, last = 0, None
            for second, frame in reader.timed():
                if last is not None and number < count and second > number / fps + GRACE:
                    picture = _tensor(reader.picture(last, short_side))
                    while number < count and second > number / fps + GRACE:
                        yield picture
                        number += 1
                if number == count:
                    return
                last = frame
            if last is None or reader.stopped is None:
                raise TriptychError(f"{self.name}: no picture can be decoded.")
            self._check_end("picture", count / fps, reader.stopped, extent)
            picture = _tensor(reader.picture(last, short_side))
            for _ in range(number, count):
                yield picture

    def all_frames(self) -> Iterator[VideoFrame]:
        """Yield every frame that can be decoded, from the first on; ``skipped`` counts damaged packets."""
        with self._apart() as reader:
            for _, frame in reader.timed():
                yield frame

    def _reader(self) -> VideoReader:
        if self._video is None:
            self._video = VideoReader(self._medium())
        return self._video

    @contextmanager
    def _apart(self) -> Iterator[VideoReader]:
        """Lend a reader with a reading position of its own, so that the recording may be asked for other things."""
        medium = Medium(self.source, self.name)
        try:
            yield VideoReader(medium)
        finally:
            self._note("file", medium)
            medium.close()

    # ------------------------------------------------------------------------------------------------ sound

    def waveform(self, start: float, end: float, rate: float) -> Float[Tensor, "channels samples"]:
        """Return the sound of a span, in [-1, 1]; zeros where the track has none.

        Args:
            start: Second of the first sample.
            end: Second after the last; exactly round((end - start) * rate) samples are returned.
            rate: Samples a second to resample to.

        Raises:
            TriptychError: If there is no sound at all.
            EndedEarly: If the span lies in the declared extent but beyond where the file truly ends.
        """
        sound, stopped = read_sound(self._sound_medium(), start, end, rate)
        if stopped is not None:
            self._check_end("sound", end, stopped, self.probe.audio)
        return sound

    # ------------------------------------------------------------------------------------------------ vectors

    def sequence(self, stream: str, start: float, end: float) -> Sequence:
        """Return the precomputed vectors of a stream whose stretches meet [start, end); see ``read_sequence``.

        Raises:
            TriptychError: If the recording has no such stream, or its file cannot be read.
        """
        if stream not in self.sequences:
            raise TriptychError(f"{self.name} has no stream '{stream}'; it has {', '.join(self.sequences) or 'none'}.")
        return self._all_vectors(stream).between(start, end)

    def _all_vectors(self, stream: str) -> Sequence:
        if stream not in self._vectors:
            self._vectors[stream] = read_sequence(Path(self.sequences[stream]))
        return self._vectors[stream]

    # ------------------------------------------------------------------------------------------------ the end

    def _check_end(self, what: str, asked: float, stopped: float, extent: tuple[float, float] | None) -> None:
        """Raise if the file stops well before ``asked`` although its header goes on.

        Args:
            what: "picture" or "sound".
            asked: Last second that was asked for.
            stopped: Second at which the stream's packets end.
            extent: Where the header says that it lies.
        """
        if extent is None:
            return
        slack = SLACK if what == "sound" else max(SLACK, FEW_FRAMES / self.probe.fps)
        if min(asked, extent[1]) - stopped <= slack:
            return
        medium = Medium(self.audio if what == "sound" and self.audio is not None else self.source, self.name)
        try:  # a picture that stands still, or a sound that stops, ends no file
            medium.container.seek(int((extent[1] - slack + medium.origin) * av.time_base))
            reached = medium.last_packet()[0] - medium.origin
        except av.error.FFmpegError:
            reached = stopped
        finally:
            medium.close()
        if reached < extent[1] - slack:
            raise EndedEarly(
                f"{self.name} ends early: its last {what} is at {max(stopped, reached, 0.0):.2f} s, "
                f"its header promises {extent[1]:.2f} s."
            )


def _tensor(pixels: UInt8[np.ndarray, "height width 3"]) -> UInt8[Tensor, "height width 3"]:
    return torch.from_numpy(np.ascontiguousarray(pixels))
