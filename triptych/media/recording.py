"""One file, addressed in seconds and decoded on demand.

Second 0 of a recording is where its container starts to be presented, after edit lists; an offset that a container adds
to all its times (as some Matroska and MPEG files do) is taken off.
"""

import io
import os
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Ordered
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import av
import numpy as np
import torch
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation
from jaxtyping import Float, UInt8
from safetensors.torch import load_file
from torch import Tensor

from triptych.errors import TriptychError, UsageError
from triptych.media.captions import Caption, read_embedded, read_sidecars
from triptych.media.decode import VideoReader

STILLS = {
    "png_pipe",
    "image2",
    "jpeg_pipe",
    "webp_pipe",
    "bmp_pipe",
    "tiff_pipe",
    "gif_pipe",
    "jpegls_pipe",
    "ppm_pipe",
}
"""Container names of still images."""
SLACK = 1.0
"""Seconds that a track may end before its declared end without being called cut short."""
PREROLL = 0.1
"""Seconds of sound decoded before the wanted ones, so that codecs with memory have settled."""
SOUND_GAP = 0.05
"""A jump of so many seconds in the times of a track is a gap, not the rounding of its times."""

Source = str | Path | bytes | IO[bytes]


class EndedEarly(TriptychError):
    """The file ends before the second that was asked for, though its header says that it goes on."""


@dataclass(frozen=True, slots=True)
class Extent:
    """Where a stream lies."""

    start: float
    end: float
    rate: float | None = None
    """Frames or samples a second; None for text and still images."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """What is known of a row without decoding it; seconds of the recording."""

    start: float
    end: float
    streams: Mapping[str, Extent] = field(default_factory=dict)
    captions: tuple[Caption, ...] = ()
    moments: tuple[float, ...] = ()
    """Seconds of interest, measured once by ``prepare`` and kept, or given."""


@dataclass(frozen=True, slots=True)
class Sequence:
    """Precomputed vectors and the second of each."""

    vectors: Float[Tensor, "steps width"]
    times: Float[Tensor, " steps"]


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
        self._containers: dict[str, InputContainer] = {}
        self._video: VideoReader | None = None
        self.skipped = 0
        """Damaged packets met so far."""

    # ------------------------------------------------------------------------------------------------ opening

    def __enter__(self) -> "Recording":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; anything asked later opens them again."""
        for container in self._containers.values():
            container.close()
        self._containers.clear()
        if self._video is not None:
            self._video.close()
            self._video = None

    @property
    def timeline(self) -> Timeline:
        """What is known without decoding."""
        if self._timeline is None:
            self._timeline = self._find_timeline()
        return self._timeline

    @property
    def probe(self) -> Probe:
        """What the headers say."""
        if self._probe is None:
            self._probe = self._read_headers()
        return self._probe

    def _open(self, what: str) -> InputContainer:
        """Return the container to read ``what`` from; pictures and sound each have their own reading position."""
        if what not in self._containers:
            self._containers[what] = self._open_anew(self.audio if what == "audio" and self.audio else self.source)
        return self._containers[what]

    def _open_anew(self, place: str | Path | bytes) -> InputContainer:
        if isinstance(place, bytes):
            file: Any = io.BytesIO(place)
        elif not os.path.isfile(place):
            raise TriptychError(f"{place}: there is no such file.")
        else:
            file = f"file:{place}"  # else a colon or a dash in a name would be taken for something else
        try:
            return av.open(file, metadata_errors="ignore")
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise TriptychError(f"{self.name} cannot be opened as media: {_reason(error)}.") from error

    def remember(self, probe: Probe, timeline: Timeline) -> None:
        """Take what was measured before, so that the file is not opened for it."""
        self._probe, self._timeline = probe, timeline

    def caption(self, captions: tuple[Caption, ...]) -> None:
        """Replace the captions."""
        whole = self.timeline
        streams = {name: extent for name, extent in whole.streams.items() if name != "text"}
        if captions:
            streams["text"] = Extent(min(c.start for c in captions), max(c.end for c in captions), None)
        self._timeline = Timeline(whole.start, whole.end, streams, captions, whole.moments)

    def narrow(self, caption: str | None, start: float | None, end: float | None) -> None:
        """Keep to a part of the file, and replace its captions by one; an empty one means that it has none.

        Raises:
            UsageError: If the part is empty or begins after the end of the file.
        """
        whole = self.timeline
        first = whole.start if start is None else max(start, whole.start)
        last = whole.end if end is None else min(end, whole.end)
        if last < first or (last == first and (start is not None or end is not None)):
            raise UsageError(
                f"{self.name}: there is nothing between {start} and {end} s; it is {whole.end:.2f} s long."
            )
        streams = {
            name: Extent(max(extent.start, first), min(extent.end, last), extent.rate)
            for name, extent in whole.streams.items()
            if name != "text" and ((extent.end > first and extent.start < last) or extent.end == extent.start)
        }
        if caption is not None:
            captions: tuple[Caption, ...] = (Caption(caption, first, last),) if caption else ()
        else:
            captions = tuple(one for one in whole.captions if one.end > first and one.start < last)
        if captions:
            streams["text"] = Extent(min(c.start for c in captions), max(c.end for c in captions), None)
        moments = tuple(moment for moment in whole.moments if first <= moment <= last)
        self._timeline = Timeline(first, last, streams, captions, moments)

    # ------------------------------------------------------------------------------------------------ headers

    def _read_headers(self) -> Probe:
        container = self._open("headers")
        picture = _main_video(container)
        still = picture is not None and container.format.name.split(",")[0] in STILLS
        origin = _origin(container)
        known: dict[str, Any] = {}
        ends = [0.0]
        if picture is not None:
            context = picture.codec_context
            width, height = _shown_size(picture, context.width, context.height, self._find_rotation())
            start, end = _extent(container, picture, origin)
            fps = float(picture.average_rate or picture.guessed_rate or 0)
            known |= {"width": width, "height": height, "fps": fps, "frames": picture.frames, "video": (start, end)}
            known["video_codec"] = context.name
            ends.append(end)
        sound_container = self._open("audio")
        sound = sound_container.streams.audio[0] if sound_container.streams.audio else None
        if sound is not None:
            sound_origin = origin if self.audio is None else _origin(sound_container)
            start, end = _extent(sound_container, sound, sound_origin)
            known |= {"audio": (start, end), "audio_rate": sound.rate, "channels": sound.channels}
            known["audio_codec"] = sound.codec_context.name
            ends.append(end)
        if picture is None and sound is None:
            raise TriptychError(f"{self.name} holds neither pictures nor sound.")
        return Probe(
            duration=max(ends),
            origin=origin,
            still=still,
            title=str(container.metadata.get("title", "")).strip(),
            **known,
        )

    def _find_rotation(self) -> int:
        """Return how the picture is turned, which only a frame tells."""
        frame = next(self.all_frames(), None)
        return 0 if frame is None else int(frame.rotation)

    def _find_timeline(self) -> Timeline:
        probe = self.probe
        streams = {}
        if probe.video is not None:
            streams["video"] = Extent(*probe.video, None if probe.still else probe.fps)
        if probe.audio is not None:
            streams["audio"] = Extent(*probe.audio, float(probe.audio_rate))
        captions: tuple[Caption, ...] = ()
        if not isinstance(self.source, bytes):
            captions = read_sidecars(self.path, probe.duration)
        captions = captions or read_embedded(self._open("captions"), self.name)
        if not captions and probe.title:
            captions = (Caption(probe.title, 0.0, probe.duration),)
        if captions:
            streams["text"] = Extent(min(c.start for c in captions), max(c.end for c in captions), None)
        for stream in self.sequences:
            times = self.sequence(stream, 0.0, float("inf")).times
            if len(times):
                step = float(times[-1] - times[-2]) if len(times) > 1 else 1.0
                streams[stream] = Extent(float(times[0]), float(times[-1]) + step, None)
        return Timeline(0.0, probe.duration, streams, captions)

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
        seconds = [float(second) for second in times]
        reader = self._reader()
        order = sorted(range(len(seconds)), key=lambda place: seconds[place])
        pictures: list[Any] = [None] * len(seconds)
        last: tuple[VideoFrame, Any] | None = None
        still = reader.container.format.name.split(",")[0] in STILLS
        asked = [0.0] * len(order) if still else [seconds[place] for place in order]
        for place, frame in reader.shown(asked):
            if last is None or frame is not last[0]:
                last = (frame, _upright(frame, reader, short_side))
            pictures[order[place]] = last[1]
        self.skipped = reader.skipped
        if any(picture is None for picture in pictures):
            raise TriptychError(f"{self.name}: no picture can be decoded at {seconds[order[0]]:.2f} s.")
        if last is not None and not still and reader.ended:
            self._check_end(asked[-1], last[0], reader)
        return torch.from_numpy(np.stack(pictures)) if pictures else torch.empty(0, 0, 0, 3, dtype=torch.uint8)

    def all_frames(self) -> Iterator[VideoFrame]:
        """Yield every frame that can be decoded, from the first on; ``skipped`` counts damaged packets."""
        reader = self._reader()
        yield from reader.all()
        self.skipped = reader.skipped

    def _reader(self) -> VideoReader:
        if self._video is None:
            container = self._open_anew(self.source)
            if _main_video(container) is None:
                container.close()
                raise TriptychError(f"{self.name} has no picture.")
            origin = _origin(container) if self._probe is None else self._probe.origin
            self._video = VideoReader(lambda: self._open_anew(self.source), _require_video, origin, container)
        return self._video

    def _check_end(self, second: float, frame: VideoFrame, reader: VideoReader) -> None:
        """Raise if the file stops well before ``second`` although its header goes on."""
        if frame.pts is None or self.probe.video is None:
            return
        shown = frame.pts * reader.tick - reader.origin
        end = self.probe.video[1]
        if min(second, end) - shown > SLACK:
            raise EndedEarly(
                f"{self.name} ends early: its last picture is at {shown:.2f} s, its header promises {end:.2f} s."
            )

    # ------------------------------------------------------------------------------------------------ sound

    def waveform(self, start: float, end: float, rate: float) -> Float[Tensor, "channels samples"]:
        """Return the sound of a span, in [-1, 1]; zeros where the track has none.

        Args:
            start: Second of the first sample.
            end: Second after the last; exactly round((end - start) * rate) samples are returned.
            rate: Samples a second to resample to.

        Raises:
            TriptychError: If there is no sound at all.
        """
        if self._video is not None and not self.audio:
            container = self._video.container  # to open a file costs more than to seek in it
            self._video.fresh = False
        else:
            container = self._open("audio")
        if not container.streams.audio:
            raise TriptychError(f"{self.name} has no sound.")
        stream = container.streams.audio[0]
        origin = _origin(container)
        total = round((end - start) * rate)
        result = torch.zeros(stream.channels, total)
        if total == 0:
            return result
        assert stream.time_base is not None
        tick = float(stream.time_base)
        first = (start - PREROLL + origin) / tick
        container.seek(max(int(first), stream.start_time or 0), stream=stream, backward=True)
        stream.codec_context.flush_buffers()
        stretch: list[np.ndarray] = []
        resampler, began, expected = None, 0.0, None
        for frame in self._sounds(container, stream):
            second = frame.time - origin if frame.time is not None else (expected or 0.0)
            if second > end:
                break
            if resampler is None or expected is None or abs(second - expected) > SOUND_GAP:
                if resampler is not None:
                    _place(result, stretch, resampler, round((began - start) * rate))
                resampler = av.AudioResampler(format="fltp", layout=stream.layout.name, rate=round(rate))
                stretch, began = [], second
            stretch += [piece.to_ndarray() for piece in resampler.resample(frame)]
            expected = second + frame.samples / frame.sample_rate
        if resampler is not None:
            _place(result, stretch, resampler, round((began - start) * rate))
        return result

    def _sounds(self, container: InputContainer, stream: av.AudioStream) -> Iterator[av.AudioFrame]:
        demuxer = container.demux(stream)
        while True:
            try:
                packet = next(demuxer)
                yield from packet.decode()
            except StopIteration:
                return
            except av.error.InvalidDataError:
                self.skipped += 1
            except av.error.EOFError:
                return

    # ------------------------------------------------------------------------------------------------ sequences

    def sequence(self, stream: str, start: float, end: float) -> Sequence:
        """Return the precomputed vectors of a stream whose seconds lie in [start, end).

        A file holds ``vectors`` (steps, width) and ``times`` (steps); a bare array has one vector a second.

        Raises:
            TriptychError: If the recording has no such stream, or its file cannot be read.
        """
        if stream not in self.sequences:
            raise TriptychError(f"{self.name} has no stream '{stream}'; it has {', '.join(self.sequences) or 'none'}.")
        path = Path(self.sequences[stream])
        try:
            if path.suffix == ".safetensors":
                tensors = load_file(path)
                vectors, times = tensors["vectors"], tensors.get("times")
            else:
                loaded = np.load(path, allow_pickle=False)
                bare = isinstance(loaded, np.ndarray)
                vectors = torch.from_numpy(loaded if bare else loaded["vectors"])
                times = None if bare or "times" not in loaded else torch.from_numpy(loaded["times"])
        except Exception as error:  # readers of three formats, each with errors of its own
            raise TriptychError(f"{path}: the vectors of '{stream}' cannot be read: {error}.") from error
        times = torch.arange(len(vectors), dtype=torch.float32) if times is None else times.float()
        chosen = (times >= start) & (times < end)
        return Sequence(vectors[chosen].float(), times[chosen])


def _origin(container: InputContainer) -> float:
    return 0.0 if container.start_time is None else container.start_time / av.time_base


def _main_video(container: InputContainer) -> av.VideoStream | None:
    """Return the stream that is the video: the first that is no attached cover."""
    for stream in container.streams.video:
        if not int(stream.disposition) & int(av.stream.Disposition.attached_pic):
            return stream
    return None


def _require_video(container: InputContainer) -> av.VideoStream:
    stream = _main_video(container)
    assert stream is not None
    return stream


def _extent(container: InputContainer, stream: Any, origin: float) -> tuple[float, float]:
    tick = float(stream.time_base)
    start = 0.0 if stream.start_time is None else stream.start_time * tick - origin
    if stream.duration is not None:
        return start, start + stream.duration * tick
    if container.duration is not None and origin == 0:  # with an offset, some count from it and some from 0
        return start, container.duration / av.time_base
    return start, _last_time(container, stream) - origin


def _last_time(container: InputContainer, stream: Any) -> float:
    """Return where a stream ends whose container does not say it, by walking over its packets."""
    end = 0.0
    for packet in container.demux(stream):
        if packet.pts is not None:
            end = max(end, (packet.pts + (packet.duration or 0)) * float(packet.time_base))
    container.seek(0)
    return end


def _shown_size(stream: av.VideoStream, width: int, height: int, rotation: int) -> tuple[int, int]:
    """Return width and height after square pixels and rotation."""
    aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
    if aspect:
        width = max(round(width * float(aspect)), 1)
    return (height, width) if rotation % 180 else (width, height)


def _upright(frame: VideoFrame, reader: VideoReader, short_side: int | None) -> UInt8[np.ndarray, "height width 3"]:
    """Convert and scale in one step, then turn."""
    rotation = int(frame.rotation)
    width, height = _shown_size(reader.stream, frame.width, frame.height, 0)
    if short_side is not None:
        factor = short_side / min(width, height)
        width, height = max(round(width * factor), 1), max(round(height * factor), 1)
    # One reformatter for all frames: to build one costs more than to use it.
    converted = reader.reformatter.reformat(frame, width, height, "rgb24", interpolation=Interpolation.AREA)
    array = converted.to_ndarray()
    turns = round(rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(array, turns)) if turns else array


def _place(result: Tensor, stretch: list[np.ndarray], resampler: av.AudioResampler, at: int) -> None:
    """Copy an unbroken stretch of sound, whose first sample belongs at ``at``."""
    pieces = [*stretch, *(piece.to_ndarray() for piece in resampler.resample(None))]
    if not pieces:
        return
    samples = torch.from_numpy(np.concatenate(pieces, axis=1))
    begin, end = max(at, 0), min(at + samples.shape[1], result.shape[1])
    if begin < end:
        result[:, begin:end] = samples[:, begin - at : end - at]


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).strip(". ")
