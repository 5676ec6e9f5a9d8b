"""Preparing a collection: probe every file once, set the broken ones aside, optionally re-encode, write a manifest."""

import csv
import hashlib
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from triptych.errors import TriptychError, UsageError
from triptych.files import replacing
from triptych.media.collection import MEASURED, Rows, probe_columns
from triptych.media.recording import Recording
from triptych.media.write import write_video

FORMAT = 1
"""Version of a collection's folder."""
TRIAL = 3
"""Files that a dry run re-encodes to estimate the whole."""


@dataclass(frozen=True)
class Encoding:
    """How files are re-encoded; nothing set: they stay as they are."""

    short_side: int | None = None
    gop: int | None = None
    fps: float | None = None
    audio_rate: int | None = None

    @property
    def wanted(self) -> bool:
        """Whether anything is to be re-encoded."""
        return any(value is not None for value in asdict(self).values())


@dataclass
class Summary:
    """What was found and done."""

    recordings: int = 0
    seconds: float = 0.0
    bytes_before: int = 0
    bytes_after: int = 0
    quarantined: list[tuple[str, str]] = field(default_factory=list)
    estimate_seconds: float | None = None
    estimate_bytes: float | None = None
    manifest: Path | None = None


def prepare_collection(
    rows: Rows,
    out: str | Path,
    encoding: Encoding | None = None,
    workers: int | None = None,
    dry_run: bool = False,
    progress: bool = True,
) -> Summary:
    """Make a collection of rows; run again, it goes on where it stopped.

    ``OUT/manifest.csv`` has the source's columns and what was measured, ``OUT/quarantine.csv`` the files that cannot be
    used with their reasons, ``OUT/clips`` the re-encoded ones. Without re-encoding the manifest points to the source.

    Args:
        rows: The source.
        out: The collection's folder.
        encoding: What to change.
        workers: Processes; one for each processor where None.
        dry_run: Probe, estimate time and space, and write nothing.
        progress: Whether to show a bar.

    Raises:
        UsageError: If ``out`` holds something that is no collection, or one of other settings.
        TriptychError: If no file can be used, or nothing can be written.
    """
    out, encoding = Path(out), encoding or Encoding()
    summary = Summary()
    if not dry_run:
        _claim(out, encoding)
    journal = out / "journal"
    jobs = [(number, row.path) for number, row in enumerate(rows)]
    work = partial(_prepare_file, rows=rows, out=out, encoding=encoding, dry_run=dry_run)
    done: dict[int, dict[str, Any]] = {}
    for number, outcome in _run(work, jobs, workers, progress, "prepare"):
        done[number] = outcome
    prepared = []
    for number, row in enumerate(rows):
        outcome = done[number]
        summary.bytes_before += outcome["bytes"]
        if outcome["error"]:
            summary.quarantined.append((row["path"], outcome["error"]))
            continue
        summary.recordings += 1
        summary.seconds += float(outcome["columns"]["seconds"])
        kept = {name: value for name, value in row.values.items() if name not in MEASURED}
        prepared.append({**kept, **outcome["columns"], **_places(row, out, outcome)})
        if outcome["clip"] and not dry_run:
            summary.bytes_after += (out / outcome["clip"]).stat().st_size
    if not prepared:
        path, reason = summary.quarantined[0]
        raise TriptychError(f"None of the {len(jobs)} files of {rows.source} can be used; the first, {path}: {reason}")
    if dry_run:
        _estimate(summary, rows, encoding, [number for number in done if not done[number]["error"]])
        return summary
    _write_table(out / "quarantine.csv", [{"path": path, "reason": reason} for path, reason in summary.quarantined])
    summary.manifest = _write_table(out / "manifest.csv", prepared)
    shutil.rmtree(journal, ignore_errors=True)
    return summary


def _claim(out: Path, encoding: Encoding) -> None:
    path = out / "collection.json"
    settings = {"format": FORMAT, "encoding": asdict(encoding)}
    if path.is_file():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise TriptychError(f"{path} is damaged ({error}); remove {out} and prepare again.") from error
        if before != settings:
            raise UsageError(f"{out} was prepared with other settings ({before['encoding']}); choose another place.")
        return
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} holds something that is no collection; choose an empty place.")
    with replacing(path) as place:
        place.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _run(
    work: Any, jobs: list[tuple[int, Path]], workers: int | None, progress: bool, title: str
) -> Iterator[tuple[int, dict[str, Any]]]:
    bar = tqdm(total=len(jobs), desc=title, unit="file", delay=2, disable=None if progress else True)
    count = min(_processors() if workers is None else max(workers, 1), len(jobs))
    with bar:
        if count <= 1:
            for job in jobs:
                yield work(job)
                bar.update()
            return
        with multiprocessing.get_context("spawn").Pool(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for outcome in pool.imap_unordered(work, jobs, chunksize=4):
                yield outcome
                bar.update()


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _prepare_file(
    job: tuple[int, Path], rows: Rows, out: Path, encoding: Encoding, dry_run: bool
) -> tuple[int, dict[str, Any]]:
    """Probe (and re-encode) one file; what came of it is kept in the journal, so that it is done once."""
    number, path = job
    row = rows.row(number)
    key = hashlib.sha256(f"{row['path']}\0{row['start']}\0{row['end']}".encode()).hexdigest()[:24]
    note = out / "journal" / f"{key}.json"
    size = path.stat().st_size if path.is_file() else 0
    stamp = f"{size} {path.stat().st_mtime_ns}" if size else ""
    if not dry_run and note.is_file():
        outcome: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
        if outcome["stamp"] == stamp:
            return number, outcome
    outcome = {"bytes": size, "stamp": stamp, "error": "", "clip": "", "columns": {}}
    try:
        with Recording(path, audio=row.audio) as recording:
            check(recording)
            if encoding.wanted and not dry_run and not recording.probe.still and recording.probe.video is not None:
                clip = out / "clips" / f"{Path(row['path']).stem}-{key[:8]}.mp4"
                encode(recording, clip, encoding)
                outcome["clip"] = str(clip.relative_to(out))
                captions = recording.timeline.captions
                with Recording(clip) as encoded:
                    encoded.caption(captions)
                    outcome["columns"] = probe_columns(encoded, find_moments(encoded))
            else:
                outcome["columns"] = probe_columns(recording, () if dry_run else find_moments(recording))
    except TriptychError as error:
        outcome["error"] = str(error)
    if not dry_run:
        with replacing(note) as place:
            place.write_text(json.dumps(outcome, ensure_ascii=False), encoding="utf-8")
    return number, outcome


def probe_rows(rows: Rows, workers: int | None = None, progress: bool = True) -> tuple[Rows, list[tuple[str, str]]]:
    """Return the rows with what ``prepare`` measures of each, kept in memory, and path and reason of those left out.

    Raises:
        TriptychError: If no file can be read.
    """
    jobs = [(number, row.path) for number, row in enumerate(rows)]
    work = partial(_probe_file, rows=rows)
    done = dict(_run(work, jobs, workers if len(jobs) > 64 else 1, progress, "probe"))
    bad = [
        (str(rows.row(number).path), outcome["error"]) for number, outcome in sorted(done.items()) if outcome["error"]
    ]
    good = [number for number in range(len(rows)) if not done[number]["error"]]
    if not good:
        raise TriptychError(f"None of the {len(jobs)} files of {rows.source} can be read; the first: {bad[0][1]}")
    columns = {name: [done[number]["columns"][name] for number in good] for name in done[good[0]]["columns"]}
    return rows.select(good).with_columns(columns), bad


def _probe_file(job: tuple[int, Path], rows: Rows) -> tuple[int, dict[str, Any]]:
    number, path = job
    try:
        with Recording(path, audio=rows.row(number).audio) as recording:
            return number, {"error": "", "columns": probe_columns(recording)}
    except TriptychError as error:
        return number, {"error": str(error), "columns": {}}


def check(recording: Recording) -> None:
    """Decode a little of the beginning, so that a file without a single good frame is found now.

    Raises:
        TriptychError: If nothing can be decoded.
    """
    timeline = recording.timeline
    if "video" in timeline.streams:
        recording.frames([timeline.streams["video"].start], short_side=16)
    if "audio" in timeline.streams:
        start = timeline.streams["audio"].start
        recording.waveform(start, start + 0.1, 8000)


def encode(recording: Recording, out: Path, encoding: Encoding) -> None:
    """Write a recording as mp4: upright, square pixels, constant frame rate, from its second 0."""
    probe = recording.probe
    assert probe.video is not None
    begin = probe.video[0]
    fps = Fraction(encoding.fps or probe.fps).limit_denominator(1001)
    count = max(round((probe.video[1] - probe.video[0]) * fps), 1)
    short = min(encoding.short_side or min(probe.width, probe.height), min(probe.width, probe.height))
    short += short % 2

    def pictures() -> Iterable[Any]:
        for first in range(0, count, 64):
            times = [begin + number / float(fps) for number in range(first, min(first + 64, count))]
            yield from recording.frames(times, short_side=short)

    sound, rate = None, int(encoding.audio_rate or probe.audio_rate or 16_000)
    if probe.audio is not None:
        sound = recording.waveform(probe.video[0], probe.video[0] + count / float(fps), rate)[:2]
    write_video(out, pictures(), fps, sound, rate, crf=20, gop=encoding.gop or 250, preset="medium", fast_decode=True)


def find_moments(recording: Recording, rate: float = 16_000, hop: float = 0.02, most: int = 32) -> list[float]:
    """Return the seconds of the loudest onsets of the sound, in order; none where there is no sound.

    The energy of 20 ms steps, in decibels above the median; an onset is a rise to a local peak of 10 dB or more.
    """
    extent = recording.timeline.streams.get("audio")
    if extent is None or extent.end - extent.start < 2 * hop:
        return []
    end = min(extent.end, extent.start + 3600.0)
    return pick_peaks(recording.waveform(extent.start, end, rate).mean(dim=0), rate, hop, most, extent.start)


def pick_peaks(sound: Float[Tensor, " samples"], rate: float, hop: float, most: int, start: float) -> list[float]:
    """Return the seconds of the loudest onsets of a waveform that begins at ``start``; see ``find_moments``."""
    step = round(rate * hop)
    energy = sound[: len(sound) // step * step].view(-1, step).square().mean(dim=1).clamp(min=1e-10)
    level = (10 * energy.log10()).numpy()
    before = np.concatenate([np.full(3, level[0]), level])
    floor = np.minimum.reduce([before[shift : shift + len(level)] for shift in range(3)])
    rise = level - floor
    peaks = [
        place
        for place in range(len(level))
        if rise[place] >= 10 and rise[place] == rise[max(place - 5, 0) : place + 6].max()
        and level[place] >= np.median(level)
    ]  # fmt: skip
    best = sorted(sorted(peaks, key=lambda place: -rise[place])[:most])
    return [round(start + place * hop, 3) for place in best]


def _places(row: Any, out: Path, outcome: dict[str, Any]) -> dict[str, str]:
    """Return the row's paths relative to the collection; a re-encoded clip holds its own sound and span."""
    if outcome["clip"]:
        return {"path": outcome["clip"], "audio": "", "source_path": row["path"]}
    places = {"path": os.path.relpath(row.path, out)}
    if row.audio is not None:
        places["audio"] = os.path.relpath(row.audio, out)
    return places


def _estimate(summary: Summary, rows: Rows, encoding: Encoding, usable: list[int]) -> None:
    """Re-encode a few seconds of some files to tell how long all would take, and how large they would be."""
    if not encoding.wanted:
        return
    import tempfile

    spent, seconds, size = 0.0, 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        for number in usable[:: max(len(usable) // TRIAL, 1)][:TRIAL]:
            with rows.recording(number) as recording:
                if recording.probe.video is None or recording.probe.still:
                    continue
                began = time.process_time()
                clip = Path(folder) / f"{number}.mp4"
                encode(recording, clip, encoding)
                spent += time.process_time() - began
                seconds += recording.probe.duration
                size += clip.stat().st_size
    if seconds:
        summary.estimate_seconds = spent / seconds * summary.seconds / _processors()
        summary.estimate_bytes = size / seconds * summary.seconds


def _write_table(path: Path, lines: list[dict[str, Any]]) -> Path:
    columns = list(dict.fromkeys(name for line in lines for name in line)) or ["path", "reason"]
    with replacing(path) as place, place.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    return path
