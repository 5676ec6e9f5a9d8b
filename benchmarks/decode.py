"""CPU time of a random 2 s clip, and wrong frames: this package, a plain PyAV sampler, and torchcodec where it loads.

A clip is 16 frames at 8 fps scaled to a short side of 128 pixels, with its sound at 16 kHz. Files are made here: x264
``medium``, GOP 250, default B-frames, 40 s, AAC. Every reader uses one thread; the same random clips in turn, the
medians of CPU time, and ratios of those medians within this run.

    python benchmarks/decode.py [--clips 40] [--rounds 0] [--robustness DIR]
"""

import argparse
import platform
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
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
        if number in (rounds // 10, rounds - 1):
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            opened = len(list(Path("/proc/self/fd").iterdir()))
            print(f"round {number + 1}: peak memory {peak:.0f} MiB, {opened} open files")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--robustness", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, PyAV {av.__version__}")
    readers: dict[str, Reader] = {"triptych": ours, "plain PyAV": plain}
    other = load_torchcodec()
    if other is not None:
        readers["torchcodec exact"] = other
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name, height, bframes in (("240p", 240, None), ("720p", 720, None), ("240p without B-frames", 240, 0)):
            path = write(root / f"{name}.mp4", height, bframes)
            found = cost(readers, path, options.clips)
            best = min(value for who, value in found.items() if who != "triptych")
            shown = ", ".join(f"{who} {value:.1f} ms" for who, value in found.items())
            print(f"{name}: {shown}; ratio to the better {found['triptych'] / best:.2f}")
            if name == "720p":
                raw = found["triptych"]
                only = Rows.build([{"path": path.name}], root, "one")
                prepare_collection(only, root / "out", Encoding(short_side=256, gop=30), workers=1, progress=False)
                (clip,) = (root / "out" / "clips").iterdir()
                after = cost({"triptych": ours}, clip, options.clips)["triptych"]
                print(f"720p after prepare --short-side 256 --gop 30: {after:.1f} ms; ratio {after / raw:.3f}")
    if options.robustness and options.rounds:
        check_robustness(options.robustness, options.rounds)


if __name__ == "__main__":
    main()
