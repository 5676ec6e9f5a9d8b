"""The toy world as a folder of real files: mp4 clips and the manifests that say what is in them."""

import csv
import json
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from triptych.errors import TriptychError, UsageError
from triptych.files import is_taken, replacing
from triptych.media.write import write_video
from triptych.toyworld.draw import render_frames
from triptych.toyworld.sound import render_sound
from triptych.toyworld.truth import COLUMNS, tell
from triptych.toyworld.world import Scene, describe, tamper

RECORDINGS = 3600
"""Recordings of the demo: 3120 to train on, 240 to validate, 240 to test."""


@dataclass(frozen=True)
class _Settings:
    """What decides the content of a world's files, kept beside them so that a resumed world is the same one."""

    seed: int
    difficulty: float
    talking: float
    tampering: float
    size: int
    fps: float
    rate: int


def render(
    scene: Scene, size: int = 96, fps: float = 16.0, rate: int = 16000
) -> tuple[UInt8[Tensor, "frames height width 3"], Float[Tensor, "channels samples"]]:
    """The pictures and the sound of a scene.

    Args:
        scene: From `describe`.
        size: Side of the square picture in pixels, an even number.
        fps: Frames per second; frame k is shown at k / fps. Events fall on frames where fps is a multiple of 16.
        rate: Samples of sound per second.
    """
    sound = torch.from_numpy(render_sound(scene, rate))
    return torch.from_numpy(render_frames(scene, size, fps)), sound[None]


def write_toyworld(
    out: Path,
    recordings: int = RECORDINGS,
    seed: int = 0,
    difficulty: float = 1.0,
    size: int = 96,
    fps: float = 16.0,
    rate: int = 16000,
    workers: int | None = None,
    progress: bool = True,
    talking: float = 0.25,
    tampering: float = 0.25,
) -> Path:
    """Write the toy world to a folder; run again, it goes on where it stopped.

    The files depend on everything but ``recordings`` and ``workers``: a larger world begins with the smaller one.

    Args:
        out: The folder: ``clips/*.mp4``, ``manifest.csv`` (every recording), ``talking.csv`` (those with a talking
            mouth, its words as the caption), ``tampered/*.mp4`` and ``tampering.csv`` (as many real as forged).
        recordings: How many; of fifteen in a row thirteen are for training, one for validation, one for testing.
        seed: Names the world.
        difficulty: Scale of the nuisance in picture and sound, from 0 (none) to 2.
        size: Side of the square picture in pixels, even and at least 32.
        fps: Frames per second; events fall on frames exactly where it is a multiple of 16.
        rate: Samples of sound per second.
        workers: Processes; None: one for each processor. They do not change the content.
        progress: Show a bar on stderr when it takes more than two seconds.
        talking: Share of recordings with a talking mouth.
        tampering: Share of the talking recordings of which there is a forged copy.

    Returns:
        The path of ``manifest.csv``.

    Raises:
        UsageError: If a number is out of its range.
        TriptychError: If ``out`` holds another world.
    """
    _check(recordings, seed, difficulty, size, fps, rate, talking, tampering, workers)
    out = Path(out)
    settings = _Settings(seed, difficulty, talking, tampering, size, fps, rate)
    _claim(out, settings)
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    record = partial(_record, out=out, settings=settings)
    with ExitStack() as stack:
        everything, spoken, pairs = (
            stack.enter_context(_table(out / f"{name}.csv")) for name in ("manifest", "talking", "tampering")
        )
        found: Iterator[list[dict[str, str]]] = map(record, range(recordings))
        if workers > 1 and recordings > 1:
            pool = multiprocessing.get_context("spawn").Pool(min(workers, recordings), _one_thread)
            found = stack.enter_context(pool).imap(record, range(recordings), chunksize=4)
        bar = tqdm(found, total=recordings, desc="toy world", unit="clip", delay=2, disable=None if progress else True)
        for rows in bar:
            everything.writerow(rows[0])
            if rows[0]["transcript"]:
                spoken.writerow({**rows[0], "caption": rows[0]["transcript"]})
            if len(rows) > 1:
                pairs.writerows(rows)
    return out / "manifest.csv"


def _record(index: int, out: Path, settings: _Settings) -> list[dict[str, str]]:
    """Write a recording, and its forged copy if there is to be one, unless they are there; their rows."""
    scenes = [describe(settings.seed, index, settings.difficulty, settings.talking)]
    # Multiples of the golden ratio: an even choice that depends on nothing but the recording's own number.
    if scenes[0].talk and (index * 0.6180339887) % 1.0 < settings.tampering:
        scenes.append(tamper(scenes[0]))
    rows = []
    for scene in scenes:
        place = f"{'clips' if scene.tampered == 'none' else 'tampered'}/{index:06d}.mp4"
        if not (out / place).exists():
            (out / place).parent.mkdir(parents=True, exist_ok=True)
            frames, waveform = render(scene, settings.size, settings.fps, settings.rate)
            write_video(
                out / place, frames, settings.fps, waveform=waveform, rate=settings.rate, gop=16, preset="ultrafast"
            )
        rows.append(tell(scene, place))
    return rows


@contextmanager
def _table(path: Path) -> Iterator["csv.DictWriter[str]"]:
    """A CSV file of the manifest's columns that appears when all its rows are written."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        yield writer


def _check(
    recordings: int,
    seed: int,
    difficulty: float,
    size: int,
    fps: float,
    rate: int,
    talking: float,
    tampering: float,
    workers: int | None,
) -> None:
    ranges = {
        "recordings": (recordings, 1, 10**9),
        "seed": (seed, 0, 2**63),
        "difficulty": (difficulty, 0, 2),
        "size": (size, 32, 1024),
        "fps": (fps, 4, 120),
        "rate": (rate, 8000, 48000),
        "talking": (talking, 0, 1),
        "tampering": (tampering, 0, 1),
        "workers": (1 if workers is None else workers, 1, 1024),
    }
    for name, (value, least, most) in ranges.items():
        if not least <= value <= most:
            raise UsageError(f"{name} of the toy world is {value}; give a number from {least} to {most}.")
    if size % 2:
        raise UsageError(f"size of the toy world is {size}; H.264 wants an even number of pixels, say {size + 1}.")


def _claim(out: Path, settings: _Settings) -> None:
    """Note the settings in ``out/world.json``, or check that they are those of what is there."""
    note = out / "world.json"
    mine = json.dumps(asdict(settings), indent=1)
    if not note.exists():
        if is_taken(out):
            raise TriptychError(f"{out} holds something that is no toy world; choose an empty or a new folder.")
        with replacing(note) as path:
            path.write_text(mine)
    elif note.read_text() != mine:
        raise TriptychError(
            f"{out} holds a toy world with other settings (see {note}); choose another folder or remove it first."
        )


def _one_thread() -> None:
    torch.set_num_threads(1)
