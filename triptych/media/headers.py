"""What the headers of a file say: sizes, rates and where each stream lies."""

from typing import Any

import av

from triptych.errors import TriptychError
from triptych.media.container import Medium, main_sound, main_video
from triptych.media.decode import shown_size
from triptych.media.timeline import Probe

STILLS = {
    *("png_pipe", "image2", "jpeg_pipe", "webp_pipe", "bmp_pipe", "tiff_pipe", "gif_pipe", "jpegls_pipe", "ppm_pipe"),
}
"""Container names of still images."""
PICTURES = {"gif", "apng"}
"""Container names of moving pictures, which are stills where they hold but one."""
UNMEASURED = {"aac", "ac3", "dts", "eac3", "mp3"}
"""Container names of bare streams, whose length FFmpeg may have guessed from the first packets."""
NEAR = 0.2
"""Seconds by which a header may differ from the packets without being a guess (padding of the encoder)."""
FASTEST = 1000.0
"""Frames a second beyond which a header is not believed."""


def read_headers(medium: Medium, sound: Medium, rotation: int) -> Probe:
    """Return what is known of a file without decoding it.

    Args:
        medium: The file.
        sound: The file that the sound is in: the same, or another.
        rotation: How far the picture is turned, degrees.

    Raises:
        TriptychError: If it holds neither pictures nor sound.
    """
    known: dict[str, Any] = {}
    ends = [0.0]
    picture = main_video(medium.container)
    if picture is not None:
        context = picture.codec_context
        width, height = shown_size(picture, context.width, context.height, rotation)
        if not (width and height):
            raise TriptychError(f"{medium.name}: its header says nothing of the size of the picture.")
        known |= {"width": width, "height": height, "frames": picture.frames, "video_codec": context.name}
        rate = float(picture.average_rate or picture.guessed_rate or 0)
        (start, end), packets = _extent(medium, picture)
        known["fps"] = rate if 0 < rate <= FASTEST else _counted_rate(known["frames"], end - start)
        known["still"] = is_still(medium) or (medium.container.format.name in PICTURES and packets == 1)
        known["video"] = (start, end)
        ends.append(end)
    stream = main_sound(sound.container)
    if stream is not None:
        known |= {"audio_rate": stream.rate, "channels": stream.channels, "audio_codec": stream.codec_context.name}
        known["audio"], _ = _extent(sound, stream)
        ends.append(known["audio"][1])
    if len(ends) == 1:
        raise TriptychError(f"{medium.name} holds neither pictures nor sound that can be decoded.")
    title = str(medium.container.metadata.get("title", "")).strip()
    return Probe(duration=max(ends), origin=medium.origin, title=title, **known)


def is_still(medium: Medium) -> bool:
    """Return whether a file is of a format that holds one picture."""
    return medium.container.format.name.split(",")[0] in STILLS


def _extent(medium: Medium, stream: Any) -> tuple[tuple[float, float], int | None]:
    """Return where a stream begins and ends, and the number of its packets if they had to be walked over.

    The file may be opened anew for it: no stream that was got before may be touched after.
    """
    tick, origin = float(stream.time_base), medium.origin
    start = 0.0 if stream.start_time is None else max(stream.start_time * tick - origin, 0.0)
    guessed = medium.container.format.name in UNMEASURED
    total = medium.container.duration
    declared = None
    if stream.duration:
        declared = start + stream.duration * tick
    elif total is not None and origin == 0:  # with an offset, some count from it and some from 0
        own = _clock(stream.metadata.get("DURATION", ""))  # Matroska tells each track's own
        declared = min(total / av.time_base, own) if own > start else total / av.time_base
    if declared is not None and not guessed:
        return (start, declared), None
    index = stream.index
    if not medium.seek(stream, stream.start_time or 0):
        medium.reopen()
        stream = medium.container.streams[index]
    last, packets = medium.last_packet(stream)
    end = max(last - origin, start)
    return (start, declared if declared is not None and abs(declared - end) < NEAR else end), packets


def _counted_rate(frames: int, seconds: float) -> float:
    """Return frames a second where the header's rate is missing or absurd."""
    return max(frames, 1) / seconds if seconds > 0 else 25.0


def _clock(text: str) -> float:
    """Return the seconds of HH:MM:SS.fraction, 0 where it is something else."""
    try:
        hours, minutes, seconds = text.split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    except ValueError:
        return 0.0
