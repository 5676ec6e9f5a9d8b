"""Clips whose frames carry their number as bars, so that a test can tell which frame it was given."""

from collections.abc import Sequence
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
) -> Path:
    """Write a clip whose frame k is shown at ``times[k] + shift``; a negative shift gives an edit list in mp4."""
    base = Fraction(1, 12_800)
    options = {"avoid_negative_ts": "disabled"} if shift < 0 else {}
    with av.open(str(path), "w", options=options) as container:
        codec = {"bf": str(bframes), "threads": "1", "crf": "12", "x264-params": "scenecut=0"}
        stream = container.add_stream("libx264", rate=25, options=codec)
        stream.height, stream.width = picture(0).shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.gop_size = gop
        stream.codec_context.time_base = base
        stream.time_base = base
        if rotation:
            stream.set_display_rotation(rotation)
        for number, second in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts = round(second / base)
            frame.time_base = base
            _mux(container, stream.encode(frame), shift)
        _mux(container, stream.encode(None), shift)
    return path


def _mux(container: "av.container.OutputContainer", packets: list["av.Packet"], shift: float) -> None:
    for packet in packets:
        offset = round(shift / packet.time_base)
        if packet.pts is not None:
            packet.pts += offset
        if packet.dts is not None:
            packet.dts += offset
        container.mux(packet)
