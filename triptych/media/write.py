"""Writing video files: mp4 with H.264 and AAC, and cutting a span out of a file."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from triptych.errors import TriptychError
from triptych.files import replacing
from triptych.media.recording import Recording

AAC_FRAME = 1024
"""Samples of an AAC frame."""


def write_video(
    path: str | Path,
    frames: UInt8[Tensor, "frames height width 3"] | Iterable[UInt8[Tensor, "height width 3"]],
    fps: float | Fraction,
    waveform: Float[Tensor, "channels samples"] | None = None,
    rate: int = 16_000,
    crf: int = 18,
    gop: int = 30,
    preset: str = "veryfast",
    fast_decode: bool = False,
) -> Path:
    """Write an mp4 file (H.264, 4:2:0, and AAC), whole or not at all; the same input gives the same bytes.

    Args:
        path: The file.
        frames: Pictures; odd sides lose their last row or column, for 4:2:0 has none.
        fps: Frames a second.
        waveform: Sound from second 0, in [-1, 1].
        rate: Samples a second of the sound.
        crf: Quality of the picture; smaller is better, 18 is close to the original.
        gop: Frames between keyframes.
        preset: Of x264: speed against size.
        fast_decode: Spend a little size on cheap decoding: no CABAC, no deblocking, and B-frames that nothing refers
            to, which a reader that skips frames need not decode.

    Raises:
        TriptychError: If there are no frames, or the file cannot be written.
    """
    path = Path(path)
    speed = Fraction(fps).limit_denominator(100_000)
    with replacing(path) as place, av.open(str(place), "w", options={"movflags": "+faststart"}) as container:
        # The macroblock tree of x264 is not reproducible with B-frames.
        options = {"crf": str(crf), "preset": preset, "threads": "1", "x264-params": "mbtree=0"}
        if fast_decode:
            options |= {"tune": "fastdecode", "x264-params": "mbtree=0:bframes=3:b-adapt=0:b-pyramid=none"}
        video = container.add_stream("libx264", rate=speed, options=options)
        video.gop_size = gop
        video.pix_fmt = "yuv420p"
        audio = None
        if waveform is not None:
            audio = container.add_stream("aac", rate=rate, layout="mono" if len(waveform) == 1 else "stereo")
        number = -1
        for number, picture in enumerate(frames):
            array = picture.numpy()
            array = array[: array.shape[0] // 2 * 2, : array.shape[1] // 2 * 2]
            if number == 0:
                video.height, video.width = array.shape[:2]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")
            frame.pts = number
            frame.time_base = 1 / speed
            container.mux(video.encode(frame))
        if number < 0:
            raise TriptychError(f"{path}: there are no frames to write.")
        container.mux(video.encode(None))
        if audio is not None and waveform is not None:
            _encode_sound(container, audio, waveform, rate)
    return path


def _encode_sound(
    container: av.container.OutputContainer,
    stream: av.AudioStream,
    waveform: Float[Tensor, "channels samples"],
    rate: int,
) -> None:
    samples = np.ascontiguousarray(waveform.numpy(), dtype=np.float32)
    for start in range(0, samples.shape[1], AAC_FRAME):
        part = np.ascontiguousarray(samples[:, start : start + AAC_FRAME])
        frame = av.AudioFrame.from_ndarray(part, format="fltp", layout="mono" if len(samples) == 1 else "stereo")
        frame.sample_rate = rate
        frame.pts = start
        frame.time_base = Fraction(1, rate)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def cut(path: str | Path, start: float, end: float, out: str | Path) -> Path:
    """Write a span of a video or sound file as mp4 (re-encoded, so that it begins and ends exactly there).

    Raises:
        TriptychError: If the file cannot be read or ``out`` cannot be written.
    """
    with Recording(path) as recording:
        timeline = recording.timeline
        end = min(end, timeline.end)
        sound, rate = None, 16_000
        if "audio" in timeline.streams:
            rate = int(recording.probe.audio_rate or rate)
            sound = recording.waveform(start, end, rate)[:2]
        if "video" in timeline.streams:
            fps = recording.probe.fps or 1.0
            times = [start + number / fps for number in range(max(round((end - start) * fps), 1))]
            frames: Iterable[UInt8[Tensor, "height width 3"]] = recording.frames(times)
        else:
            fps = 1.0
            blank = torch.zeros(16, 16, 3, dtype=torch.uint8)
            frames = [blank] * max(round(end - start), 1)
        return write_video(out, frames, fps, sound, rate)
