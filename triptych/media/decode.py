"""Which frame is shown when: exact choice of frames, and as little decoding as that needs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

GAP = 2.0
"""Seconds between two wanted frames from which on seeking is tried instead of decoding what lies between."""


@dataclass
class VideoReader:
    """Frames of one stream by the time at which they are shown."""

    open: Callable[[], InputContainer]
    """Opens the file anew: the only exact way back to the first frame in containers without an index."""
    choose: Callable[[InputContainer], VideoStream]
    """Picks the stream."""
    origin: float
    """Second of the container that is second 0 of the recording."""
    container: InputContainer
    reformatter: VideoReformatter = field(init=False, default_factory=VideoReformatter)
    stream: VideoStream = field(init=False)
    skipped: int = 0
    """Damaged packets met so far."""
    fresh: bool = field(init=False, default=True)
    """Whether nothing was read since the file was opened."""
    ended: bool = False
    """Whether the last stretch reached the end of the file."""

    def __post_init__(self) -> None:
        self._take(self.container)

    def _take(self, container: InputContainer) -> None:
        self.container = container
        self.stream = self.choose(container)
        self.stream.thread_type = "SLICE"  # FRAME and AUTO can deadlock and delay frames
        self.stream.codec_context.thread_count = 1
        self.fresh = True

    @property
    def tick(self) -> float:
        """Seconds of one unit of the stream's times."""
        assert self.stream.time_base is not None
        return float(self.stream.time_base)

    def rewind(self) -> None:
        """Go back to the first packet."""
        if not self.fresh:
            self.container.close()
            self._take(self.open())

    def close(self) -> None:
        """Close the file."""
        self.container.close()

    def all(self) -> Iterator[VideoFrame]:
        """Yield every frame that can be decoded, in order."""
        self.rewind()
        self.fresh = False
        for packet in self._demux():
            yield from self._send(packet)
        yield from self._send(None)

    def shown(self, times: Sequence[float]) -> Iterator[tuple[int, VideoFrame]]:
        """Yield (place in ``times``, frame shown then) for increasing times, each frame as soon as it is decoded.

        The frame shown at t is the last one whose time is not after t; before the first it is the first.
        """
        tick = self.tick
        # Half a microsecond of grace: times are computed as k / fps and must not fall before the frame they mean.
        wanted = [(second + self.origin) / tick + 0.5e-6 / tick for second in times]
        begin = 0
        while begin < len(wanted):
            end = begin + 1
            while end < len(wanted) and times[end] - times[end - 1] < GAP:
                end += 1
            yield from self._run(wanted, begin, end)
            begin = end

    def _run(self, wanted: list[float], begin: int, end: int) -> Iterator[tuple[int, VideoFrame]]:
        """Yield the frames of one stretch."""
        back = 0.0
        while True:
            target = wanted[begin] - back
            start = self.stream.start_time or 0
            whole = target <= start
            packets = self._packets(None if whole else target, wanted[end - 1])
            times = [packet.pts for packet in packets if packet.pts is not None and not packet.is_discard]
            exact = all(packet.pts is not None and packet.dts is not None for packet in packets)
            if whole or (times and min(times) <= wanted[begin] and packets[0].is_keyframe):
                break
            back = max(2 * back, 1.0 / self.tick)  # the seek landed too late: try further back
        chosen: dict[int, list[int]] = {}
        if exact and times:
            times.sort()
            at = 0
            for place in range(begin, end):
                while at + 1 < len(times) and times[at + 1] <= wanted[place]:
                    at += 1
                chosen.setdefault(times[at], []).append(place)
            found = dict(self._decode(packets, set(chosen)))
            if len(found) == len(chosen):
                for pts, places in chosen.items():
                    for place in places:
                        yield place, found[pts]
                return
            packets = self._packets(None if whole else target, wanted[end - 1])
        # Without packet times, or where a wanted picture is damaged: decode all and take what is shown.
        yield from self._walk(packets, wanted, begin, end)

    def _packets(self, target: float | None, last: float) -> "list[Packet[VideoStream]]":
        """Return the packets from the keyframe before ``target`` (from the start where None) up to tick ``last``."""
        if target is None:
            self.rewind()
        else:
            self.container.seek(int(target), stream=self.stream, backward=True)
            self.stream.codec_context.flush_buffers()
        self.fresh = False
        packets = []
        self.ended = True
        for packet in self._demux():
            packets.append(packet)
            if packet.dts is not None and packet.dts > last:
                self.ended = False
                break
        return packets

    def _demux(self) -> "Iterator[Packet[VideoStream]]":
        demuxer = self.container.demux(self.stream)
        while True:
            try:
                packet = next(demuxer)
            except StopIteration:
                return
            except av.error.InvalidDataError:
                self.skipped += 1
                continue
            if packet.size:
                yield packet

    def _decode(self, packets: "list[Packet[VideoStream]]", chosen: set[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Yield the chosen frames; frames that nothing refers to are not decoded unless chosen."""
        context = self.stream.codec_context
        left = set(chosen)
        for packet in [*packets, None]:
            context.skip_frame = "DEFAULT" if packet is None or packet.pts in chosen else "NONREF"
            for frame in self._send(packet):
                if frame.pts in left:
                    left.discard(frame.pts)
                    yield frame.pts, frame
            if not left:
                break
        context.skip_frame = "DEFAULT"
        context.flush_buffers()

    def _walk(
        self, packets: "list[Packet[VideoStream]]", wanted: list[float], begin: int, end: int
    ) -> Iterator[tuple[int, VideoFrame]]:
        place, last = begin, None
        for frame in self._frames(packets):
            if last is not None:
                while place < end and (frame.pts or 0) > wanted[place]:
                    yield place, last
                    place += 1
            if place >= end:
                break
            last = frame
        self.stream.codec_context.flush_buffers()
        while last is not None and place < end:
            yield place, last
            place += 1

    def _frames(self, packets: "Sequence[Packet[VideoStream]]") -> Iterator[VideoFrame]:
        for packet in [*packets, None]:
            yield from self._send(packet)

    def _send(self, packet: "Packet[VideoStream] | None") -> list[VideoFrame]:
        try:
            return list(self.stream.codec_context.decode(packet))
        except av.error.InvalidDataError:
            self.skipped += 1
            return []
        except av.error.EOFError:
            return []
