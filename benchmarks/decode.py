"""CPU time of a random 2 s clip, and wrong frames: this package, a plain PyAV sampler, and torchcodec where it loads.

A clip is 16 frames at 8 fps scaled to a short side of 128 pixels, with its sound at 16 kHz. Files are made here: x264
``medium``, GOP 250, default B-frames, 40 s, AAC. Every reader uses one thread; the same random clips in turn, the
medians of CPU time, and ratios of those medians within this run.

Frames are wrong if another one is shown at that time: counted on files whose frames carry their number.

    python benchmarks/decode.py [--clips 40] [--asked 1000] [--rounds 200 --robustness DIR]
"""

import argparse
import platform
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

from triptych.errors import TriptychError
from triptych.media.collection import Rows
from triptych.media.prepare import Encoding, prepare_collection
from triptych.media.recording import Recording

SECONDS, FRAMES, FPS, SIDE, RATE = 40.0, 16, 8.0, 128, 16_000

Reader = Callable[[Path, float], tuple[np.ndarray, np.ndarray]]


def write(path: Path, height: int, bframes: int | None = None) -> Path:
    """Write a moving picture with detail at all scales (about 1/f, as in photographs), 25 fps, and a tone."""
    width = height * 16 // 9 // 2 * 2
    rng = np.random.default_rng(0)
    field = np.zeros((height + 256, width + 256, 3))
    for octave in range(3, 9):
        noise = torch.from_numpy(rng.standard_normal((1, 3, *(side // 2**octave + 2 for side in field.shape[:2]))))
        smooth = torch.nn.functional.interpolate(noise, field.shape[:2], mode="bicubic")
        field += 2**octave * smooth[0].permute(1, 2, 0).numpy()
    field = (127 + 50 * field / field.std()).clip(0, 255).astype(np.uint8)
    options = {"preset": "medium", "threads": "1"} | ({} if bframes is None else {"bf": str(bframes)})
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25, options=options)
        video.width, video.height, video.pix_fmt, video.gop_size = width, height, "yuv420p", 250
        audio = container.add_stream("aac", rate=44_100, layout="stereo")
        for number in range(round(SECONDS * 25)):
            x, y = round(100 + 90 * np.sin(number / 40)), round(100 + 90 * np.cos(number / 55))
            picture = field[y : y + height, x : x + width].copy()
            picture[: height // 4] = np.clip(picture[: height // 4].astype(int) + rng.integers(-12, 12), 0, 255)
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode(None))
        tone = np.sin(np.arange(round(SECONDS * 44_100)) / 20).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(np.stack([tone, tone]), format="fltp", layout="stereo")
        frame.sample_rate = 44_100
        container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
    return path


def ours(path: Path, start: float) -> tuple[np.ndarray, np.ndarray]:
    with Recording(path) as recording:
        times = [start + k / FPS for k in range(FRAMES)]
        return recording.frames(times, short_side=SIDE).numpy(), recording.waveform(start, start + 2, RATE).numpy()


def plain(path: Path, start: float) -> tuple[np.ndarray, np.ndarray]:
    """What a careful person writes in twenty lines: seek, decode on, keep what is shown, resample the sound."""
    times = [start + k / FPS for k in range(FRAMES)]
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "SLICE"
        stream.codec_context.thread_count = 1
        container.seek(int(start / stream.time_base), stream=stream)
        kept, last, place = [], None, 0
        for frame in container.decode(stream):
            while place < FRAMES and last is not None and frame.time > times[place] + 1e-6:
                kept.append(last)
                place += 1
            last = frame
            if place == FRAMES:
                break
        kept += [last] * (FRAMES - place)
        width = round(kept[0].width * SIDE / kept[0].height)
        frames = np.stack([f.to_ndarray(format="rgb24", width=width, height=SIDE) for f in kept])
        sound = container.streams.audio[0]
        container.seek(int(max(start - 0.25, 0) / sound.time_base), stream=sound)
        resampler = av.AudioResampler(format="fltp", layout="stereo", rate=RATE)
        pieces = []
        for frame in container.decode(sound):
            if frame.time > start + 2:
                break
            pieces += [piece.to_ndarray() for piece in resampler.resample(frame)]
    return frames, np.concatenate(pieces, axis=1)


def load_torchcodec() -> Reader | None:
    """Return a reader by torchcodec, if it truly decodes here."""
    try:
        from torchcodec.decoders import AudioDecoder, VideoDecoder
    except Exception as error:
        print(f"torchcodec does not load here ({str(error).splitlines()[0]}): not compared")
        return None

    def read(path: Path, start: float) -> tuple[np.ndarray, np.ndarray]:
        decoder = VideoDecoder(str(path), seek_mode="exact", num_ffmpeg_threads=1)
        frames = decoder.get_frames_played_at([start + k / FPS for k in range(FRAMES)]).data
        width = round(frames.shape[-1] * SIDE / frames.shape[-2])
        small = torch.nn.functional.interpolate(frames.float(), (SIDE, width), mode="bilinear", antialias=True)
        sound = AudioDecoder(str(path), sample_rate=RATE).get_samples_played_in_range(start, start + 2)
        return small.to(torch.uint8).numpy(), sound.data.numpy()

    return read


def cost(readers: dict[str, Reader], path: Path, clips: int) -> dict[str, float]:
    """Return the median CPU milliseconds of a clip by each reader, the same clips in turn."""
    rng = random.Random(1)
    spent: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(clips):
        start = rng.uniform(0, SECONDS - 2.2)
        for name, read in readers.items():
            began = time.process_time()
            read(path, start)
            spent[name].append(time.process_time() - began)
    return {name: 1000 * statistics.median(times) for name, times in spent.items()}


BITS, CELL = 8, 16


def numbered(number: int) -> np.ndarray:
    """Draw a number in black and white cells, with something moving below."""
    picture = np.zeros((3 * CELL, BITS * CELL, 3), np.uint8)
    for bit in range(BITS):
        picture[:CELL, bit * CELL : (bit + 1) * CELL] = 235 if number >> bit & 1 else 20
    picture[CELL:, number * 3 % (BITS * CELL - 8) :][:, :8] = 200
    return picture


def write_numbered(
    path: Path, times: list[float], shift: float = 0.0, rotation: int = 0, codec: str = "libx264"
) -> Path:
    """Write a file whose frame k is shown at ``times[k] + shift``; in mp4 a negative shift gives an edit list."""
    base = Fraction(1, 12_800)
    options = {"bf": "2", "threads": "1", "crf": "12"}
    if codec == "libx265":
        options["x265-params"] = "open-gop=1:log-level=none:pools=none:frame-threads=1"
    with av.open(str(path), "w", options={"avoid_negative_ts": "disabled"} if shift < 0 else {}) as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = 3 * CELL, BITS * CELL, "yuv420p", 24
        stream.codec_context.time_base = stream.time_base = base
        if rotation:
            stream.set_display_rotation(rotation)
        frames = [av.VideoFrame.from_ndarray(numbered(number), format="rgb24") for number in range(len(times))]
        for second, frame in zip([*times, None], [*frames, None], strict=True):
            if frame is not None and second is not None:
                frame.pts, frame.time_base = round(second / base), base
            for packet in stream.encode(frame):
                packet.pts = (packet.pts or 0) + round(shift / packet.time_base)
                packet.dts = (packet.dts or 0) + round(shift / packet.time_base)
                container.mux(packet)
    return path


def count_wrong(path: Path, times: list[float], turns: int, asked: int) -> int:
    """Ask for random frames, a few at a time from a file opened anew, and count those that are not the ones shown."""
    rng = random.Random(0)
    wrong = 0
    for _ in range(asked // 8):
        start = rng.uniform(-0.3, times[-1] + 0.2)
        seconds = [start + k / 8 for k in range(7)] + [max(rng.choice(times), 0.0)]
        with Recording(path) as recording:
            frames = recording.frames(seconds).numpy()
        for second, frame in zip(seconds, frames, strict=True):
            row = np.rot90(frame, turns)[:CELL].mean(axis=(0, 2))
            shown = sum(int(row[round((bit + 0.5) * CELL)] > 128) << bit for bit in range(BITS))
            wrong += shown != max((k for k, begin in enumerate(times) if begin <= max(second, 0.0) + 1e-6))
    return wrong


def check_frames(root: Path, asked: int) -> None:
    """Print the wrong frames of each kind of file."""
    even = [k / 25 for k in range(100)]
    steps = random.Random(0).choices((0.02, 0.04, 0.11, 0.3), k=99)
    uneven = [0.0, *np.cumsum(steps).round(2).tolist()]
    cases = {
        "constant rate": (write_numbered(root / "even.mp4", even), even, 0),
        "variable rate": (write_numbered(root / "uneven.mkv", uneven), uneven, 0),
        "cut (edit list)": (write_numbered(root / "cut.mp4", even, shift=-0.48), [second - 0.48 for second in even], 0),
        "offset": (write_numbered(root / "late.mkv", even, shift=5.0), even, 0),
        "rotated": (write_numbered(root / "turned.mp4", even, rotation=90), even, 3),
        "open groups (HEVC)": (write_numbered(root / "open.mp4", even, codec="libx265"), even, 0),
    }
    for name, (path, times, turns) in cases.items():
        print(f"{name}: {count_wrong(path, times, turns, asked)} of {asked // 8 * 8} frames wrong")


def check_robustness(folder: Path, rounds: int) -> None:
    """Open every odd file again and again; memory and open files must not grow."""
    files = sorted((folder / "files").iterdir())
    for number in range(rounds):
        for path in files:
            try:
                with Recording(path) as recording:
                    end = recording.timeline.end
                    if "video" in recording.timeline.streams:
                        recording.frames([0.0, end / 2], short_side=64)
                    if "audio" in recording.timeline.streams:
                        recording.waveform(0.0, min(end, 1.0), RATE)
            except TriptychError:
                continue
        if number in (rounds // 10, rounds // 2, rounds - 1):
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            opened = len(list(Path("/proc/self/fd").iterdir()))
            print(f"round {number + 1}: peak memory {peak:.0f} MiB, {opened} open files")


def compare(root: Path, clips: int) -> None:
    """Print the cost of a clip by each reader, and what preparing saves."""
    readers: dict[str, Reader] = {"triptych": ours, "plain PyAV": plain}
    other = load_torchcodec()
    if other is not None:
        readers["torchcodec exact"] = other
    for name, height, bframes in (("240p", 240, None), ("720p", 720, None), ("240p without B-frames", 240, 0)):
        path = write(root / f"{name}.mp4", height, bframes)
        found = cost(readers, path, clips)
        best = min(value for who, value in found.items() if who != "triptych")
        shown = ", ".join(f"{who} {value:.1f} ms" for who, value in found.items())
        print(f"{name}: {shown}; ratio to the better {found['triptych'] / best:.2f}")
        if name == "720p":
            raw = found["triptych"]
            only = Rows.build([{"path": path.name}], root, "one")
            prepare_collection(only, root / "out", Encoding(short_side=256, gop=30), workers=1, progress=False)
            (clip,) = (root / "out" / "clips").iterdir()
            after = cost({"triptych": ours}, clip, clips)["triptych"]
            print(f"720p after prepare --short-side 256 --gop 30: {after:.1f} ms; ratio {after / raw:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--asked", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--robustness", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, PyAV {av.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        if options.clips:
            compare(Path(folder), options.clips)
        if options.asked:
            check_frames(Path(folder), options.asked)
    if options.robustness and options.rounds:
        check_robustness(options.robustness, options.rounds)


if __name__ == "__main__":
    main()
