"""Verbs that write a manifest: the toy world, and the collection of one's own recordings."""

from pathlib import Path
from typing import Literal

from triptych.data.layouts import LAYOUTS, read_layout
from triptych.errors import UsageError
from triptych.media.collection import Rows
from triptych.media.faces import Cropping, default_detector
from triptych.media.prepare import Encoding, prepare_collection
from triptych.toyworld import write as toyworld


def write_toyworld(
    out: str | Path,
    recordings: int | None = None,
    difficulty: float = 1.0,
    size: int = 96,
    seed: int = 0,
    workers: int | None = None,
) -> Path:
    """Write the toy world and return its manifest; see ``triptych.toyworld.write``.

    Args:
        out: Folder.
        recordings: How many; the demo's number where None.
        difficulty: Scale of what must be ignored, 0 to 2.
        size: Side of the picture, pixels.
        seed: Names the world.
        workers: Processes.
    """
    count = toyworld.RECORDINGS if recordings is None else recordings
    return toyworld.write_toyworld(
        Path(out), recordings=count, difficulty=float(difficulty), size=size, seed=seed, workers=workers
    )


def prepare(
    source: str | Path,
    out: str | Path,
    short_side: int | None = None,
    gop: int | None = None,
    fps: float | None = None,
    audio_rate: int | None = None,
    crop: Literal["mouth", "face"] | None = None,
    landmarks: str | None = None,
    layout: str | None = None,
    annotations: str | Path | None = None,
    layout_split: str | None = None,
    dry_run: bool = False,
    workers: int | None = None,
) -> Path | None:
    """Probe every file once, set the broken ones aside, optionally re-encode; return the manifest.

    Args:
        source: A folder or manifest; with ``layout``, the folder of a public data set.
        out: Folder of the collection.
        short_side: Shorter side of re-encoded pictures, pixels.
        gop: Frames between keyframes of re-encoded files.
        fps: Frame rate of re-encoded files.
        audio_rate: Rate of re-encoded sound, Hz.
        crop: Cut the mouth (96 pixels, 25 frames a second) or the face (224) out of every picture.
        landmarks: Where it lies: a detector, a folder of landmarks, a column of boxes, or a box (docs/speech.md); the
            first detector that is installed where None.
        layout: Name of a public data set's layout.
        annotations: Its lists.
        layout_split: Which of its splits.
        dry_run: Only probe and estimate.
        workers: Processes.
    """
    if layout is not None:
        if layout not in LAYOUTS:
            raise UsageError(f"There is no layout '{layout}'; there are {', '.join(LAYOUTS)}.")
        if annotations is None:
            raise UsageError(f"--layout {layout} needs --annotations, the folder or file of its lists.")
        found = read_layout(layout, source, annotations, split=layout_split)
        print("\n".join(filter(None, [f"{len(found.rows)} rows, {found.missing} files missing", str(found.notes)])))
        rows = Rows.build(found.rows, Path(source), f"{layout} in {source}")
    else:
        rows = Rows.open(source)
    if landmarks is not None and crop is None:
        raise UsageError("--landmarks says where to crop: give --crop mouth or --crop face, too.")
    cropping = None if crop is None else Cropping(crop, landmarks or default_detector())
    if cropping is not None:
        cropping.check(rows.columns)
    encoding = Encoding(short_side, gop, fps, audio_rate, cropping)
    summary = prepare_collection(rows, out, encoding, workers, dry_run)
    hours = summary.seconds / 3600
    print(f"{summary.recordings} recordings, {hours:.2f} h, {summary.bytes_before / 2**20:.1f} MiB")
    for path, reason in summary.quarantined[:10]:
        print(f"  set aside: {path}: {reason}")
    if len(summary.quarantined) > 10:
        print(f"  and {len(summary.quarantined) - 10} more, see quarantine.csv")
    if summary.estimate_seconds is not None and summary.estimate_bytes is not None:
        minutes = summary.estimate_seconds / 60
        print(f"re-encoding would take about {minutes:.1f} minutes and {summary.estimate_bytes / 2**20:.0f} MiB")
    if summary.manifest is None:
        return None
    if encoding.wanted:
        print(f"re-encoded to {summary.bytes_after / 2**20:.1f} MiB")
    print(summary.manifest)
    return summary.manifest
