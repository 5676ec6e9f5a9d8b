"""Clips whose frames carry their number as bars, so that a test can tell which frame it was given."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS = 8
CELL = 16


def picture(number: int) -> np.ndarray:
    """Draw the number in black and white cells, with something moving below so that frames differ."""
    frame = np.zeros((3 * CELL, BITS * CELL, 3), dtype=np.uint8)
    for bit in range(BITS):
        frame[:CELL, bit * CELL : (bit + 1) * CELL] = 235 if number >> bit & 1 else 20
    frame[CELL:, (number * 3) % (BITS * CELL - 8) :][:, :8] = 200
    return frame


def read(frame: np.ndarray) -> int:
    """Return the number that a frame carries, whatever its size."""
    cell = frame.shape[1] / BITS
    row = frame[: max(int(cell), 1)].mean(axis=(0, 2))
    return sum(int(row[int((bit + 0.5) * cell)] > 128) << bit for bit in range(BITS))


def write(
    path: Path,
    times: Sequence[float],
    bframes: int = 2,
    gop: int = 24,
    shift: float = 0.0,
    rotation: int = 0,
    codec: str = "libx264",
    parameters: str = "scenecut=0",
    sound: Callable[["av.container.OutputContainer"], Callable[[], None]] | None = None,
) -> Path:
    """Write a clip whose frame k is shown at ``times[k] + shift``; a negative shift gives an edit list in mp4.

    ``sound`` adds a track before the header is written, and returns what writes it after the pictures.
    """
    base = Fraction(1, 12_800)
    options = {"avoid_negative_ts": "disabled"} if shift < 0 else {}
    with av.open(str(path), "w", options=options) as container:
        given = {"bf": str(bframes), "threads": "1", "crf": "12", f"{codec.removeprefix('lib')}-params": parameters}
        stream = container.add_stream(codec, rate=25, options=given)
        stream.height, stream.width = picture(0).shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.gop_size = gop
        stream.codec_context.time_base = base
        stream.time_base = base
        if rotation:
            stream.set_display_rotation(rotation)
        finish = sound(container) if sound else None
        for number, second in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts = round(second / base)
            frame.time_base = base
            _mux(container, stream.encode(frame), shift)
        _mux(container, stream.encode(None), shift)
        if finish:
            finish()
    return path


def track(
    samples: np.ndarray, rate: int, codec: str = "aac"
) -> Callable[["av.container.OutputContainer"], Callable[[], None]]:
    """Return a sound track (channels, samples) for ``write`` or ``write_sound``."""
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(samples)]

    def add(container: "av.container.OutputContainer") -> Callable[[], None]:
        stream = container.add_stream(codec, rate=rate, layout=layout)

        def finish() -> None:
            resampler = av.AudioResampler(stream.codec_context.format.name, layout, rate)
            for start in range(0, samples.shape[1], 1152):
                part = np.ascontiguousarray(samples[:, start : start + 1152], np.float32)
                frame = av.AudioFrame.from_ndarray(part, "fltp", layout)
                frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
                for piece in resampler.resample(frame):
                    container.mux(stream.encode(piece))
            container.mux(stream.encode(None))

        return finish

    return add


def write_sound(path: Path, samples: np.ndarray, rate: int, codec: str) -> Path:
    """Write a sound file."""
    with av.open(str(path), "w", format="adts" if path.suffix == ".aac" else None) as container:
        track(samples, rate, codec)(container)()
    return path


def noise(seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    """Return noise that codecs keep, loud from the first sample on."""
    rough = np.random.default_rng(0).standard_normal((channels, round(seconds * rate) + 64))
    kernel = np.hanning(64) / np.hanning(64).sum()
    return np.stack([np.convolve(line, kernel, "valid")[:-1] for line in rough]).astype(np.float32)


def _mux(container: "av.container.OutputContainer", packets: list["av.Packet"], shift: float) -> None:
    for packet in packets:
        offset = round(shift / packet.time_base)
        if packet.pts is not None:
            packet.pts += offset
        if packet.dts is not None:
            packet.dts += offset
        container.mux(packet)
