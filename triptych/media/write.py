"""Writing video files: mp4 with H.264 and AAC, and cutting a span out of a file."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.packet import Packet
from jaxtyping import Float, UInt8
from torch import Tensor

from triptych.errors import TriptychError, UsageError
from triptych.files import replacing
from triptych.media.container import reason
from triptych.media.recording import Recording

AAC_FRAME = 1024
"""Samples of an AAC frame."""
AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
"""Samples a second that AAC has."""
BATCH = 60.0
"""Seconds of sound that are decoded at a time while a file is written."""
AT_ONCE = 64
"""Pictures that are decoded at a time."""


def write_video(
    path: str | Path,
    frames: UInt8[Tensor, "frames height width 3"] | Iterable[UInt8[Tensor, "height width 3"]],
    fps: float | Fraction,
    waveform: Float[Tensor, "channels samples"] | Iterable[Float[Tensor, "channels samples"]] | None = None,
    rate: int = 16_000,
    crf: int = 18,
    gop: int = 30,
    preset: str = "veryfast",
    fast_decode: bool = False,
) -> Path:
    """Write an mp4 file (H.264, 4:2:0, and AAC), whole or not at all; the same input gives the same bytes.

    Args:
        path: The file.
        frames: Pictures of at least 2 x 2 pixels; odd sides lose their last row or column, for 4:2:0 has none.
        fps: Frames a second.
        waveform: Sound from second 0, in [-1, 1], in one piece or in several; more than two channels are mixed to one.
        rate: Samples a second of the sound, one of ``AAC_RATES``.
        crf: Quality of the picture; smaller is better, 18 is close to the original.
        gop: Frames between keyframes.
        preset: Of x264: speed against size.
        fast_decode: Spend a little size on cheap decoding: no CABAC, no deblocking, and B-frames that nothing refers
            to, which a reader that skips frames need not decode.

    Raises:
        UsageError: If AAC has no such rate.
        TriptychError: If there are no frames, or the file cannot be written.
    """
    path = Path(path)
    if waveform is not None and rate not in AAC_RATES:
        raise UsageError(f"{path}: AAC sound has no {rate} samples a second; choose {', '.join(map(str, AAC_RATES))}.")
    speed = Fraction(fps).limit_denominator(100_000)
    # The macroblock tree of x264 is not reproducible with B-frames.
    options = {"crf": str(crf), "preset": preset, "threads": "1", "x264-params": "mbtree=0"}
    if fast_decode:
        options |= {"tune": "fastdecode", "x264-params": "mbtree=0:bframes=3:b-adapt=0:b-pyramid=none"}
    pictures = iter(frames)
    first = next(pictures, None)
    if first is None or min(first.shape[:2]) < 2:
        raise TriptychError(f"{path}: there are no frames to write, or they are smaller than 2 x 2 pixels.")
    try:
        with replacing(path) as place, av.open(str(place), "w", options={"movflags": "+faststart"}) as container:
            video = container.add_stream("libx264", rate=speed, options=options)
            video.height, video.width = (side // 2 * 2 for side in first.shape[:2])
            video.gop_size = gop
            video.pix_fmt = "yuv420p"
            sound = _encoded(container, () if waveform is None else waveform, rate)
            heard = next(sound, None)
            for number, picture in enumerate(_with_first(first, pictures)):
                frame = av.VideoFrame.from_ndarray(
                    np.ascontiguousarray(picture.numpy()[: video.height, : video.width]), format="rgb24"
                )
                frame.pts = number
                frame.time_base = 1 / speed
                while heard is not None and heard[0] <= number / speed:  # what is seen together lies together
                    container.mux(heard[1])
                    heard = next(sound, None)
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
            while heard is not None:
                container.mux(heard[1])
                heard = next(sound, None)
    except av.error.FFmpegError as error:
        raise TriptychError(f"{path} cannot be written: {reason(error)}.") from error
    return path


def _with_first(first: Tensor, rest: Iterator[Tensor]) -> Iterator[Tensor]:
    yield first
    yield from rest


def _encoded(
    container: av.container.OutputContainer,
    waveform: Float[Tensor, "channels samples"] | Iterable[Float[Tensor, "channels samples"]],
    rate: int,
) -> Iterator[tuple[Fraction, list["Packet[av.AudioStream]"]]]:
    """Yield the packets of a sound, each lot with the second of the samples that it was made of."""
    stream, layout = None, ""
    for number, block in enumerate(_blocks(waveform)):
        if stream is None:
            layout = "mono" if len(block) == 1 else "stereo"
            # The quicker of the two coders: half the time, and no audible difference at this rate of bits.
            stream = container.add_stream("aac", rate=rate, layout=layout, options={"aac_coder": "fast"})
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block.numpy(), np.float32), "fltp", layout)
        frame.sample_rate = rate
        frame.pts = number * AAC_FRAME
        frame.time_base = Fraction(1, rate)
        yield Fraction(frame.pts, rate), stream.encode(frame)
    if stream is not None:
        yield Fraction(0), stream.encode(None)


def _blocks(waveform: Tensor | Iterable[Tensor]) -> Iterator[Float[Tensor, "channels samples"]]:
    """Cut a sound that comes in one piece or several into frames; more than two channels become their mean."""
    left: Tensor | None = None
    for piece in [waveform] if isinstance(waveform, Tensor) else waveform:
        mixed = piece if len(piece) <= 2 else piece.mean(dim=0, keepdim=True)
        left = mixed if left is None else torch.cat([left, mixed], dim=1)
        whole = left.shape[1] // AAC_FRAME * AAC_FRAME
        yield from left[:, :whole].split(AAC_FRAME, dim=1) if whole else ()
        left = left[:, whole:]
    if left is not None and left.shape[1]:
        yield left


def sound_of(recording: Recording, start: float, end: float, rate: int) -> Iterator[Float[Tensor, "channels samples"]]:
    """Yield the sound of a span in pieces of bounded size; nothing where the recording has none there."""
    extent = recording.timeline.streams.get("audio")
    if extent is None:
        return
    end = min(end, extent.end)
    total = round((end - start) * rate)
    step = round(BATCH * rate)
    for at in range(0, total, step):
        yield recording.waveform(start + at / rate, start + min(at + step, total) / rate, rate)


def aac_rate(rate: float) -> int:
    """Return the lowest rate of AAC that keeps all of a sound of ``rate`` samples a second."""
    return next((known for known in AAC_RATES if known >= rate), AAC_RATES[-1])


def cut(path: str | Path, start: float, end: float, out: str | Path) -> Path:
    """Write a span of a video or sound file as mp4 (re-encoded, so that it begins and ends exactly there).

    Raises:
        TriptychError: If the file cannot be read or ``out`` cannot be written.
    """
    with Recording(path) as recording:
        timeline, probe = recording.timeline, recording.probe
        end = min(end, timeline.end)
        rate = aac_rate(probe.audio_rate)
        fps = probe.fps if "video" in timeline.streams and not probe.still else 1.0
        times = [start + number / fps for number in range(max(round((end - start) * fps), 1))]
        return write_video(out, _pictures(recording, times), fps, sound_of(recording, start, end, rate), rate)


def _pictures(recording: Recording, times: list[float]) -> Iterator[UInt8[Tensor, "height width 3"]]:
    """Yield the frames shown at ``times``, a black square where there is no picture."""
    if recording.probe.video is None:
        yield from [torch.zeros(16, 16, 3, dtype=torch.uint8)] * len(times)
        return
    with Recording(recording.source) as apart:  # the sound is read in between
        for first in range(0, len(times), AT_ONCE):
            yield from apart.frames(times[first : first + AT_ONCE])
