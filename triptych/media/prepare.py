"""Preparing a collection: probe every file once, set the broken ones aside, optionally re-encode, write a manifest."""

import csv
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from triptych.errors import TriptychError, UsageError
from triptych.files import is_taken, replacing
from triptych.media.captions import sidecars_of
from triptych.media.collection import Row, Rows
from triptych.media.faces import Cropping
from triptych.media.measured import MEASURED, SEQUENCE, probe_columns, remembered
from triptych.media.moments import find_moments
from triptych.media.processes import processors, spread
from triptych.media.recording import Recording
from triptych.media.write import AAC_RATES, aac_rate, sound_of, write_video

FORMAT = 2
"""Version of a collection's folder."""
TRIAL = 3
"""Files of which a dry run re-encodes the beginning to estimate the whole."""
TRIAL_SECONDS = 10.0
"""How much of each."""
SYNC = 5.0
"""Seconds of work that may have to be done again after a power failure."""


@dataclass(frozen=True)
class Encoding:
    """How files are re-encoded; nothing set: they stay as they are."""

    short_side: int | None = None
    gop: int | None = None
    fps: float | None = None
    audio_rate: int | None = None
    cropping: Cropping | None = None

    def __post_init__(self) -> None:
        if self.cropping is not None and (self.short_side, self.fps) != (None, None):
            raise UsageError(f"A crop of the {self.cropping.kind} has its own size and frame rate; leave them out.")
        for name, least in (("short_side", 2), ("gop", 1), ("fps", 0.001)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{name} is {value}; it must be at least {least}.")
        if self.audio_rate is not None and self.audio_rate not in AAC_RATES:
            known = ", ".join(map(str, AAC_RATES))
            raise UsageError(f"AAC sound has no {self.audio_rate} samples a second; choose one of {known}.")

    @property
    def wanted(self) -> bool:
        """Whether anything is to be re-encoded."""
        return any(value is not None for value in asdict(self).values())


@dataclass
class Summary:
    """What was found and done."""

    recordings: int = 0
    """Rows that can be used."""
    seconds: float = 0.0
    """Of the files that can be used, each counted once; so are the bytes."""
    bytes_before: int = 0
    bytes_after: int = 0
    quarantined: list[tuple[str, str]] = field(default_factory=list)
    """Path and reason."""
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
    """Make a collection of rows; run again, it does only what is new or has changed.

    ``OUT/manifest.csv`` has the source's columns and what was measured, ``OUT/quarantine.csv`` what cannot be used with
    the reasons, ``OUT/clips`` the re-encoded files, ``OUT/journal.jsonl`` what is done. Without re-encoding the
    manifest points to the source. Rows that are parts of one file share it.

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
    if not dry_run:
        _claim(out, encoding)
    with _Journal(None if dry_run else out / "journal.jsonl") as journal:
        keys: list[str] = []
        jobs: dict[str, int] = {}
        for number, row in enumerate(tqdm(rows, "scan", len(rows), unit="row", delay=2, disable=_silent(progress))):
            keys.append(_key(row))
            jobs.setdefault(keys[-1], number)
        todo = [number for key, number in jobs.items() if not journal.has(key, rows.row(number), out)]
        work = partial(_prepare_file, rows=rows, out=out, encoding=encoding, dry_run=dry_run)
        for number, outcome in _with_bar(work, todo, workers, progress, "prepare"):
            journal.add(keys[number], outcome or _lost(rows.row(number)))
        summary = Summary()
        if dry_run:
            usable = [number for number, _, _ in _usable(rows, keys, journal, out, summary)]
            _estimate(summary, rows, encoding, list(dict.fromkeys(jobs[keys[number]] for number in usable)))
        else:
            source = [name for name in rows.columns if name not in MEASURED]
            columns = [*dict.fromkeys(["path", *source, *(["source_path"] if encoding.wanted else []), *MEASURED])]
            with _table(out / "manifest.csv", columns) as manifest:
                for _, row, outcome in _usable(rows, keys, journal, out, summary):
                    kept = {name: value for name, value in row.values.items() if name not in MEASURED}
                    manifest.writerow({**kept, **outcome["columns"], **_places(row, out, outcome)})
            summary.manifest = out / "manifest.csv"
            with _table(out / "quarantine.csv", ["path", "reason"]) as table:
                table.writerows({"path": path, "reason": reason} for path, reason in summary.quarantined)
    return summary


def _usable(
    rows: Rows, keys: list[str], journal: "_Journal", out: Path, summary: Summary
) -> Iterator[tuple[int, Row, dict[str, Any]]]:
    """Yield number, row and outcome of all rows that can be used, and fill the summary.

    Raises:
        TriptychError: At the end, if there was none.
    """
    seen: set[str] = set()
    for number, row in enumerate(rows):
        outcome = journal.get(keys[number])
        error, new = outcome["error"], keys[number] not in seen
        seen.add(keys[number])
        if not error:
            try:
                remembered(row.path, outcome["columns"]["probe"])[1].narrowed(row.number("start"), row.number("end"))
            except UsageError as wrong:
                error, new = str(wrong), True
        if error:
            if new:
                summary.quarantined.append((row["path"], error))
            continue
        summary.recordings += 1
        if new:
            summary.seconds += float(outcome["columns"]["seconds"])
            summary.bytes_before += outcome["bytes"]
            summary.bytes_after += (out / outcome["clip"]).stat().st_size if outcome["clip"] else 0
        yield number, row, outcome
    if summary.recordings == 0:
        path, reason = summary.quarantined[0]
        raise TriptychError(f"None of the {len(seen)} files of {rows.source} can be used; the first, {path}: {reason}")


def _claim(out: Path, encoding: Encoding) -> None:
    path = out / "collection.json"
    settings = {"format": FORMAT, "encoding": asdict(encoding)}
    if path.is_file():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            same = before == settings
        except ValueError as error:
            raise TriptychError(f"{path} is damaged ({error}); remove {out} and prepare again.") from error
        if not same:
            raise UsageError(f"{out} was prepared with other settings ({before}); choose another place.")
        for leftover in (out / "clips").glob(".*.partial*"):  # of a run that was killed
            leftover.unlink()
        return
    if is_taken(out):
        raise UsageError(f"{out} holds something that is no collection; choose an empty place.")
    with replacing(path) as place:
        place.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


# ---------------------------------------------------------------- what is done


def _files(row: Row) -> list[Path]:
    """Return the files that a row is read from."""
    return [row.path, *([row.audio] if row.audio else []), *row.sequences.values()]


def _key(row: Row) -> str:
    """Return what names the files of a row; rows that are parts of one file share it."""
    return hashlib.sha256("\0".join(os.path.abspath(file) for file in _files(row)).encode()).hexdigest()[:24]


def _stamp(row: Row) -> str:
    """Return what changes when the files of a row, or the captions beside it, do."""
    known = []
    for file in [*_files(row), *sidecars_of(row.path)]:
        try:
            status = file.stat()
            known.append(f"{file.name} {status.st_size} {status.st_mtime_ns}")
        except OSError:
            known.append(file.name)
    return "; ".join(known)


class _Journal:
    """Outcomes by key: lines of a file, of which only the places are in memory, or (without a file) all in memory."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.places: dict[str, int] = {}
        self.stamps: dict[str, str] = {}
        self.held: dict[str, dict[str, Any]] = {}
        self.synced = time.monotonic()

    def __enter__(self) -> "_Journal":
        if self.path is not None:
            self.path.touch()
            self.file = self.path.open("r+b")
            place = 0
            for line in self.file:
                try:
                    entry = json.loads(line)
                except ValueError:  # half a line: the run was killed while it wrote
                    break
                if not line.endswith(b"\n"):
                    break
                self.places[entry["key"]], self.stamps[entry["key"]] = place, entry["stamp"]
                place += len(line)
            self.file.truncate(place)
        return self

    def __exit__(self, *_: object) -> None:
        if self.path is not None:
            self.file.close()

    def has(self, key: str, row: Row, out: Path) -> bool:
        """Return whether the files of a row were done as they are now."""
        if self.stamps.get(key) != _stamp(row):
            return False
        clip = self.get(key)["clip"]
        return not clip or (out / clip).is_file()

    def get(self, key: str) -> dict[str, Any]:
        """Return an outcome."""
        if self.path is None:
            return self.held[key]
        self.file.seek(self.places[key])
        outcome: dict[str, Any] = json.loads(self.file.readline())
        return outcome

    def add(self, key: str, outcome: Mapping[str, Any]) -> None:
        """Keep an outcome.

        Raises:
            TriptychError: If the disk is full.
        """
        if self.path is None:
            self.held[key] = dict(outcome)
            return
        line = json.dumps({"key": key, **outcome}, ensure_ascii=False).encode() + b"\n"
        try:
            self.places[key], self.stamps[key] = self.file.seek(0, os.SEEK_END), outcome["stamp"]
            self.file.write(line)
            self.file.flush()
            if time.monotonic() - self.synced > SYNC:
                os.fsync(self.file.fileno())
                self.synced = time.monotonic()
        except OSError as error:
            raise TriptychError(f"{self.path} cannot be written: {error.strerror}.") from error


def _with_bar(
    work: Any, jobs: list[int], workers: int | None, progress: bool, title: str
) -> Iterator[tuple[int, dict[str, Any] | None]]:
    count = min(processors() if workers is None else max(workers, 1), len(jobs))
    with tqdm(total=len(jobs), desc=title, unit="file", delay=2, disable=_silent(progress)) as bar:
        for job, outcome in spread(work, jobs, count):
            yield job, outcome
            bar.update()


def _silent(progress: bool) -> bool | None:
    return None if progress else True


def _lost(row: Row) -> dict[str, Any]:
    error = f"{row.path}: the process that read it ended unexpectedly (out of memory, or a fault of the decoder)."
    return {**_begun(row), "error": error}


def _begun(row: Row) -> dict[str, Any]:
    size = row.path.stat().st_size if row.path.is_file() else 0
    return {"bytes": size, "stamp": _stamp(row), "error": "", "clip": "", "columns": {}}


def _prepare_file(number: int, rows: Rows, out: Path, encoding: Encoding, dry_run: bool) -> dict[str, Any]:
    """Probe (and re-encode) the file of a row."""
    row = rows.row(number)
    outcome = _begun(row)
    try:
        with row.whole_file() as recording:
            check(recording)
            if encoding.wanted and not dry_run and not recording.probe.still and recording.probe.video is not None:
                clip = out / "clips" / f"{row.path.stem[:80]}-{_key(row)[:12]}.mp4"
                encode(recording, clip, encoding, row=row)
                outcome["clip"] = str(clip.relative_to(out))
                with Recording(clip, sequences=row.sequences) as encoded:
                    encoded.caption(recording.timeline.captions)
                    outcome["columns"] = probe_columns(encoded, find_moments(encoded))
            else:
                outcome["columns"] = probe_columns(recording, () if dry_run else find_moments(recording))
    except TriptychError as error:
        outcome["error"] = str(error)
    return outcome


def probe_rows(rows: Rows, workers: int | None = None, progress: bool = True) -> tuple[Rows, list[tuple[str, str]]]:
    """Return the rows with what ``prepare`` measures of each, kept in memory, and path and reason of those left out.

    Raises:
        TriptychError: If no file can be read.
    """
    keys = [_key(row) for row in rows]
    jobs = {key: number for number, key in reversed(list(enumerate(keys)))}
    todo = sorted(jobs.values())
    done = {}
    for number, outcome in _with_bar(
        partial(_probe_file, rows=rows), todo, workers if len(todo) > 64 else 1, progress, "probe"
    ):
        done[keys[number]] = outcome or _lost(rows.row(number))
    bad = [(str(rows.row(number).path), done[keys[number]]["error"]) for number in todo if done[keys[number]]["error"]]
    good = [number for number, key in enumerate(keys) if not done[key]["error"]]
    if not good:
        raise TriptychError(f"None of the {len(todo)} files of {rows.source} can be read; the first: {bad[0][1]}")
    columns = {name: [done[keys[number]]["columns"][name] for number in good] for name in MEASURED}
    return rows.select(good).with_columns(columns), bad


def _probe_file(number: int, rows: Rows) -> dict[str, Any]:
    try:
        with rows.row(number).whole_file() as recording:
            return {"error": "", "columns": probe_columns(recording)}
    except TriptychError as error:
        return {"error": str(error), "columns": {}}


def check(recording: Recording) -> None:
    """Decode a little of the beginning and of the end, so that a broken file, or half a file, is found now.

    Raises:
        TriptychError: If nothing can be decoded, or the file ends before its declared end.
    """
    streams = recording.timeline.streams
    if "video" in streams:
        recording.frames([streams["video"].start, streams["video"].end], short_side=16)
    if "audio" in streams:
        start, end = streams["audio"].start, streams["audio"].end
        recording.waveform(start, start + 0.1, 8000)
        recording.waveform(end - 0.1, end, 8000)


def encode(
    recording: Recording, out: Path, encoding: Encoding, longest: float | None = None, row: Row | None = None
) -> None:
    """Write a recording as mp4: upright, square pixels, constant frame rate, its second 0 where it was.

    Args:
        recording: One with video.
        out: The file.
        encoding: What to change; pictures are never enlarged.
        longest: Seconds of it that are written; all where None.
        row: Its row, whose columns may say where to crop.
    """
    probe = recording.probe
    cropping = encoding.cropping
    rate_of_frames = cropping.fps(recording) if cropping else encoding.fps or probe.fps
    fps = Fraction(rate_of_frames).limit_denominator(1001)
    short = min(encoding.short_side or min(probe.width, probe.height), min(probe.width, probe.height))
    short += short % 2
    rate = encoding.audio_rate or aac_rate(probe.audio_rate)
    end = recording.timeline.end if longest is None else min(longest, recording.timeline.end)
    if cropping is None:
        pictures = recording.pictures(float(fps), short, end)
    else:
        pictures = cropping.crops(recording, row.values if row else {}, end)
    sound = sound_of(recording, 0.0, end, rate)
    write_video(out, pictures, fps, sound, rate, crf=20, gop=encoding.gop or 250, preset="medium", fast_decode=True)


def _places(row: Row, out: Path, outcome: dict[str, Any]) -> dict[str, str]:
    """Return the row's paths relative to the collection; a re-encoded clip holds its own sound."""
    places = {SEQUENCE + name: os.path.relpath(path, out) for name, path in row.sequences.items()}
    if outcome["clip"]:
        places |= {"path": outcome["clip"], "source_path": row["path"]}
        return places | ({"audio": ""} if row.audio else {})
    places["path"] = os.path.relpath(row.path, out)
    return places | ({"audio": os.path.relpath(row.audio, out)} if row.audio else {})


def _estimate(summary: Summary, rows: Rows, encoding: Encoding, usable: list[int]) -> None:
    """Re-encode the beginning of some files to tell how long all would take, and how large they would be."""
    if not encoding.wanted:
        return
    spent, seconds, size = 0.0, 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        for number in usable[:: max(len(usable) // TRIAL, 1)][:TRIAL]:
            with rows.row(number).whole_file() as recording:
                if recording.probe.video is None or recording.probe.still:
                    continue
                began = time.process_time()
                clip = Path(folder) / f"{number}.mp4"
                encode(recording, clip, encoding, TRIAL_SECONDS, rows.row(number))
                spent += time.process_time() - began
                seconds += min(recording.probe.duration, TRIAL_SECONDS)
                size += clip.stat().st_size
    if seconds:
        summary.estimate_seconds = spent / seconds * summary.seconds / processors()
        summary.estimate_bytes = size / seconds * summary.seconds


@contextmanager
def _table(path: Path, columns: list[str]) -> Iterator["csv.DictWriter[str]"]:
    """Write a CSV table, whole or not at all."""
    with replacing(path) as place, place.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        yield writer
