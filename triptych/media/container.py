"""Opening media files and walking over their packets, whatever is wrong with them."""

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from triptych.errors import TriptychError

Source = str | Path | bytes | IO[bytes]

PATIENCE = 16
"""Failures to read in a row after which a file counts as ended."""


class EndedEarly(TriptychError):
    """The file ends before the second that was asked for, though its header says that it goes on."""


def open_container(place: str | Path | bytes, name: str) -> InputContainer:
    """Open a file, or the bytes of one.

    Raises:
        TriptychError: If there is no such file, or it is no media.
    """
    if isinstance(place, bytes):
        file: Any = io.BytesIO(place)
    elif not os.path.isfile(place):
        raise TriptychError(f"{place}: there is no such file.")
    else:
        file = f"file:{place}"  # else a colon or a dash in a name would be taken for something else
    try:
        return av.open(file, metadata_errors="ignore")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise TriptychError(f"{name} cannot be opened as media: {reason(error)}.") from error


def main_video(container: InputContainer) -> VideoStream | None:
    """Return the stream that is the video: the first that is no attached cover and of a codec that is known."""
    for stream in container.streams.video:
        if stream.codec_context and not stream.disposition & av.stream.Disposition.attached_pic:
            return stream
    return None


def main_sound(container: InputContainer) -> AudioStream | None:
    """Return the stream that is the sound: the first of a codec that is known."""
    return next((stream for stream in container.streams.audio if stream.codec_context), None)


class Medium:
    """An open media file with one reading position, shared by all who read from it; to open costs more than to seek."""

    def __init__(self, place: str | Path | bytes, name: str) -> None:
        """Open a file; see ``open_container``."""
        self.place = place
        self.name = name
        self.container = open_container(place, name)
        self.fresh = True
        """Whether nothing was read since the file was opened."""
        self.damaged: set[tuple[int, int | None]] = set()
        """Stream and place in the file of the damaged packets met so far."""

    @property
    def origin(self) -> float:
        """Second of the container that is second 0 of the recording."""
        return 0.0 if self.container.start_time is None else self.container.start_time / av.time_base

    def close(self) -> None:
        """Close the file."""
        self.container.close()

    def reopen(self) -> None:
        """Go back to the first packet: the only exact way in containers without an index."""
        if not self.fresh:
            self.container.close()
            self.container = open_container(self.place, self.name)
            self.fresh = True

    def seek(self, stream: Any, target: int) -> bool:
        """Go to a keyframe at ``target`` (in ticks of the stream) or before; return whether the file allows it."""
        self.fresh = False
        stream.codec_context.flush_buffers()
        try:
            self.container.seek(target, stream=stream, backward=True)
        except av.error.FFmpegError:
            return False
        return True

    def demux(self, stream: Any = None) -> "Iterator[Packet[Any]]":
        """Yield the packets of a stream (of all where None) from here on, passing over what cannot be read."""
        self.fresh = False
        place, failures = None, 0
        while failures < PATIENCE:
            packets = self.container.demux() if stream is None else self.container.demux(stream)
            try:
                for packet in packets:
                    failures = 0
                    if packet.size:
                        place = packet.pos
                        yield packet
                return
            except av.error.EOFError:
                return
            except IndexError:  # a packet of a stream that the header did not name
                continue
            except av.error.FFmpegError:
                failures += 1
                self.damaged.add((-1, place))
            finally:
                packets.close()  # type: ignore[union-attr]  # a generator of PyAV's that is only dropped leaks

    def decode(self, stream: Any, packet: "Packet[Any] | None") -> list[Any]:
        """Return the frames that a packet completes (what is left where None); a damaged packet gives none."""
        try:
            return list(stream.codec_context.decode(packet))
        except av.error.EOFError:
            return []
        except av.error.FFmpegError:
            self.damaged.add((stream.index, None if packet is None else packet.pos))
            return []

    def last_packet(self, stream: Any = None) -> tuple[float, int]:
        """Return, of the packets from here on, the second of the container at which the last ends, and their number."""
        end, count = 0.0, 0
        for packet in self.demux(stream):
            count += 1
            if packet.pts is not None:
                end = max(end, (packet.pts + (packet.duration or 0)) * float(packet.time_base))
        return end, count


def reason(error: Exception) -> str:
    """Return what an error of the system or of FFmpeg says, without the numbers round it."""
    return str(getattr(error, "strerror", None) or error).strip(". ")
