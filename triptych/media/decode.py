"""Which frame is shown when: exact choice of frames, and as little decoding as that needs."""

from collections.abc import Generator, Iterator, Sequence
from itertools import chain
from typing import Any

import av
import numpy as np
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import UInt8

from triptych.errors import TriptychError
from triptych.media.container import Medium, main_video

GAP = 2.0
"""Seconds between two wanted frames from which on seeking is tried instead of decoding what lies between."""
STRETCH = 60.0
"""Seconds at most that are read in one go: so much compressed video is held in memory."""
GRACE = 0.5e-6
"""Seconds: times are computed as k / fps and must not fall before the frame they mean."""
WIDEST = 16.0
"""Width of a pixel over its height, or the other way round, beyond which a header is not believed."""
ONE_THREAD: dict[str, Any] = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}
"""From 17 on PyAV scales on all processors if not told otherwise; to start those threads costs more than the work."""

Places = Generator[tuple[int, VideoFrame], None, bool]
"""Yields (place among the wanted times, frame); returns whether all of them are there, undamaged."""


class VideoReader:
    """Frames of the video of a file by the time at which they are shown."""

    def __init__(self, medium: Medium) -> None:
        """Prepare reading.

        Raises:
            TriptychError: If the file has no video.
        """
        self.medium = medium
        self.origin = medium.origin
        self.stopped: float | None = None
        """Second at which the packets end, if they were read to the end of the file the last time."""
        self._first: tuple[Any, ...] | None = None
        self._can_seek = True
        self._reformatter = VideoReformatter()
        self._take()
        self.size = shown_size(self.stream, self.stream.codec_context.width, self.stream.codec_context.height)
        """Width and height with square pixels, before rotation; the same for all frames."""

    def _take(self) -> None:
        self._container = self.medium.container
        stream = main_video(self._container)
        if stream is None:
            raise TriptychError(f"{self.medium.name} has no picture.")
        self._stream: VideoStream = stream
        stream.thread_type = "SLICE"  # FRAME and AUTO can deadlock and delay frames
        stream.codec_context.thread_count = 1
        assert stream.time_base is not None
        self.tick = float(stream.time_base)
        rate = stream.average_rate or stream.guessed_rate
        self._step = 1.0 if not rate else 1.0 / float(rate) / self.tick
        # AVI has no times but the order of packets, from which those of frames are guessed, often wrongly.
        self._by_order = self._container.format.name == "avi"

    @property
    def stream(self) -> VideoStream:
        """The stream; taken anew if someone has opened the file again, for one of a closed file must not be touched."""
        if self._container is not self.medium.container:
            self._take()
        return self._stream

    # ------------------------------------------------------------------------------------------------ frames

    def timed(self) -> Iterator[tuple[float, VideoFrame]]:
        """Yield every frame that can be decoded, in order, with the second from which it is shown."""
        last: float | None = None
        self.stopped = 0.0
        for packet in chain(self._from_start(), [None]):
            if packet is not None and packet.pts is not None:
                self.stopped = max(self.stopped, (packet.pts + (packet.duration or 0)) * self.tick - self.origin)
            for frame in self.medium.decode(self.stream, packet):
                last = self._time(frame, last)
                yield last * self.tick - self.origin, frame

    def shown(self, times: Sequence[float]) -> Iterator[tuple[int, VideoFrame]]:
        """Yield (place in ``times``, frame shown then) for increasing times; a place that comes again counts anew.

        The frame shown at t is the last one whose time is not after t; before the first it is the first.
        """
        wanted = [(second + self.origin + GRACE) / self.tick for second in times]
        begin = 0
        while begin < len(wanted):
            end = begin + 1
            while (
                end < len(wanted)
                and times[end] - times[end - 1] < GAP
                and (times[end] - times[begin] < STRETCH or not self._can_seek)
            ):
                end += 1
            yield from self._stretch(wanted[begin:end], begin)
            begin = end

    def _stretch(self, wanted: list[float], begin: int) -> Iterator[tuple[int, VideoFrame]]:
        """Yield the frames of one stretch: from the keyframe before it or, where that fails, from the first packet."""
        start, back, sought = self.stream.start_time or 0, 1.0 / self.tick, False
        target, last = wanted[0], max(wanted[-1], start)
        while self._can_seek and int(target) > start and not sought:
            packets = self._from_key(target, wanted[0], last)
            if packets:
                sought = True
                if (yield from self._pick(packets, wanted, begin, whole=False)):
                    return
            target, back = target - back, 2 * back  # the file led to a place after the keyframe: try further back
        whole = self._until(self._from_start(), last)
        if (yield from self._pick(whole, wanted, begin, whole=True)) and sought:
            self._can_seek = False  # what some decoders need is said in the first packets only

    def _pick(self, packets: "list[Packet[VideoStream]]", wanted: list[float], begin: int, whole: bool) -> Places:
        times = sorted(packet.pts for packet in packets if packet.pts is not None and not packet.is_discard)
        exact = all(packet.pts is not None and packet.dts is not None for packet in packets) and not self._by_order
        if exact and times:
            chosen: dict[int, list[int]] = {}
            at = 0
            for place, moment in enumerate(wanted, begin):
                while at + 1 < len(times) and times[at + 1] <= moment:
                    at += 1
                chosen.setdefault(times[at], []).append(place)
            missing, clean = set(chosen), True
            for frame in self._decode(packets, set(chosen)):
                clean = clean and not frame.is_corrupt  # whatever comes after it may refer to it
                if frame.pts in missing:
                    missing.discard(frame.pts)
                    for place in chosen[frame.pts]:
                        yield place, frame
            if not missing or not whole:
                return clean and not missing
        # Without packet times, or where a wanted picture is damaged: decode all and take what is shown.
        return (yield from self._walk(packets, wanted, begin))

    def _decode(self, packets: "list[Packet[VideoStream]]", chosen: set[int]) -> Iterator[VideoFrame]:
        """Yield frames until all chosen ones are there; those that nothing refers to are not decoded unless chosen."""
        context, skipping, left = self.stream.codec_context, False, set(chosen)
        try:
            for packet in chain(packets, [None]):
                skip = packet is not None and packet.pts not in chosen
                if skip is not skipping:
                    context.skip_frame = "NONREF" if skip else "DEFAULT"
                    skipping = skip
                for frame in self.medium.decode(self.stream, packet):
                    left.discard(frame.pts)
                    yield frame
                if not left:
                    break
        finally:
            context.skip_frame = "DEFAULT"
            context.flush_buffers()

    def _walk(self, packets: "list[Packet[VideoStream]]", wanted: list[float], begin: int) -> Places:
        last, time, place, clean = None, None, 0, True
        for packet in chain(packets, [None]):
            for frame in self.medium.decode(self.stream, packet):
                time = self._time(frame, time)
                if last is None:
                    clean = bool(frame.key_frame) and time <= wanted[0]
                while last is not None and place < len(wanted) and time > wanted[place]:
                    yield begin + place, last
                    place += 1
                last = frame
                clean = clean and not frame.is_corrupt
            if place == len(wanted):
                break
        self.stream.codec_context.flush_buffers()
        while last is not None and place < len(wanted):
            yield begin + place, last
            place += 1
        return clean and last is not None

    def _time(self, frame: VideoFrame, last: float | None) -> float:
        """Return the tick from which a frame is shown; ``last`` is that of the frame before."""
        time = frame.dts if self._by_order else frame.pts
        if time is not None:
            return float(time)
        return float(self.stream.start_time or 0) if last is None else last + self._step

    # ------------------------------------------------------------------------------------------------ packets

    def _from_key(self, target: float, first: float, last: float) -> "list[Packet[VideoStream]]":
        """Seek to ``target`` and return packets up to ``last`` from the last keyframe that is shown by ``first``.

        There are none where the file leads to a later place. What follows a keyframe but is shown before it may refer
        to what precedes it, so the keyframe must itself be shown by then.
        """
        if not self.medium.seek(self.stream, int(target)):
            return []
        packets = self._until(self.medium.demux(self.stream), last)
        room = first - 4 * self._step if self._by_order else first  # a frame comes some packets after its own
        for place in reversed(range(len(packets))):
            packet = packets[place]
            time = packet.dts if self._by_order else packet.pts
            if packet.is_keyframe and time is not None and time <= room:
                return packets[place:]
        return []

    def _from_start(self) -> "Iterator[Packet[VideoStream]]":
        """Yield all packets from the first on; seeks there where that leads to the very packet."""
        if not self.medium.fresh and self._first is not None:
            if self.medium.seek(self.stream, self._first[0]):
                packets = self.medium.demux(self.stream)
                packet = next(packets, None)
                if packet is not None and _identity(packet) == self._first:
                    yield packet
                    yield from packets
                    return
        self.medium.reopen()
        for number, packet in enumerate(self.medium.demux(self.stream)):
            if number == 0 and packet.dts is not None:
                self._first = _identity(packet)
            yield packet

    def _until(self, stream: "Iterator[Packet[VideoStream]]", last: float) -> "list[Packet[VideoStream]]":
        """Return packets up to tick ``last``."""
        packets = []
        self.stopped = None
        for packet in stream:
            packets.append(packet)
            if packet.dts is not None and packet.dts > last:
                return packets
        ends = [packet.pts + (packet.duration or 0) for packet in packets if packet.pts is not None]
        self.stopped = max(ends, default=0) * self.tick - self.origin
        return packets

    # ------------------------------------------------------------------------------------------------ pictures

    def picture(self, frame: VideoFrame, short_side: int | None) -> UInt8[np.ndarray, "height width 3"]:
        """Return a frame upright, with square pixels and scaled, all in one step."""
        width, height = self.size if all(self.size) else (frame.width, frame.height)
        if short_side is not None:
            factor = short_side / min(width, height)
            width, height = max(round(width * factor), 1), max(round(height * factor), 1)
        scaled = self._reformatter.reformat(
            frame, width, height, "rgb24", interpolation=Interpolation.AREA, **ONE_THREAD
        )
        plane = scaled.planes[0]
        pixels: np.ndarray = np.ndarray(
            (height, width, 3), np.uint8, memoryview(plane), strides=(plane.line_size, 3, 1)
        )
        turns = round(int(frame.rotation) / 90) % 4
        return np.rot90(pixels, turns) if turns else pixels


def shown_size(stream: VideoStream, width: int, height: int, rotation: int = 0) -> tuple[int, int]:
    """Return width and height after square pixels and rotation."""
    aspect = float(stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or 1)
    if 1 / WIDEST <= aspect <= WIDEST:
        width = max(round(width * aspect), 1) if width else 0
    return (height, width) if rotation % 180 else (width, height)


def _identity(packet: "Packet[VideoStream]") -> tuple[Any, ...]:
    return packet.dts, packet.pts, packet.size, packet.pos
