"""Official layouts: the folders and lists of a public data set, read as they are distributed, into manifest rows.

``read_layout`` finds every listed file below the media root and says what is missing; ``write_layout`` writes the CSV
manifest that every command reads. docs/layouts.md has a table of what is read from where.
"""

import csv
import difflib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from triptych.data import caption_lists, class_lists, event_lists
from triptych.data.annotations import Entry, Listing
from triptych.errors import TriptychError, UsageError
from triptych.files import replacing

SUFFIXES = (
    *(".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".flv", ".mpg"),
    *(".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a"),
)
"""Suffixes that a listed file may have on disk; of several side by side the first here is taken."""

COLUMNS = ("path", "split", "fold", "label", "target", "labels", "targets", "caption", "start", "end", "group")
"""The order of a manifest's columns; a data set's own follow."""

Reader = Callable[[Path, str | None, bool], Listing]

LAYOUTS: dict[str, Reader] = {
    "audiocaps": caption_lists.audiocaps,
    "audioset": class_lists.audioset,
    "ave": event_lists.ave,
    "crosstask": event_lists.crosstask,
    "esc10": class_lists.esc10,
    "esc50": class_lists.esc50,
    "hmdb51": class_lists.hmdb51,
    "kinetics400": class_lists.kinetics400,
    "kinetics600": class_lists.kinetics600,
    "kinetics700": class_lists.kinetics700,
    "kinetics_sound": class_lists.kinetics_sound,
    "kinetics_sound_ogm": class_lists.kinetics_sound_ogm,
    "msrvtt": caption_lists.msrvtt,
    "ucf101": class_lists.ucf101,
    "vggsound": class_lists.vggsound,
    "youcook2": caption_lists.youcook2,
}
"""The layouts by name."""

CUT = frozenset(name for name in LAYOUTS if name.startswith(("audio", "kinetics", "vggsound")))
"""Layouts whose media are clips cut from YouTube videos, and so may also be whole videos (``untrimmed``)."""


@dataclass(frozen=True)
class Layout:
    """A data set as manifest rows.

    Attributes:
        name: The layout's name.
        rows: One dictionary a row. ``path`` is relative to the media root; ``label`` is a class name and ``target`` its
            position in ``classes``; ``labels`` and ``targets`` hold several of them, joined by ``|``; ``start`` and
            ``end`` are seconds of the file, ``source_start`` and ``source_end`` seconds of the video it was cut from.
        classes: Class names in the order of their ids; empty where there are none.
        missing: Listed files (not rows) that are not on disk; their rows are left out.
        notes: What a person should know: what is missing, counts that differ from the published, the protocol.
    """

    name: str
    rows: list[dict[str, object]]
    classes: tuple[str, ...]
    missing: int
    notes: str


def read_layout(
    name: str,
    root: str | Path | None,
    annotations: str | Path,
    split: str | int | None = None,
    untrimmed: bool = False,
) -> Layout:
    """Read a public data set as it is distributed.

    A listed file is looked for under its distributed path, then under that path with another of ``SUFFIXES``, then by
    its name alone anywhere below ``root``, then by the other names that the data set's files are known by.

    Args:
        name: One of ``LAYOUTS``.
        root: The folder of the media; None lists the distributed paths without looking for them.
        annotations: The folder of the annotation files.
        split: Which division, where the data set has several: 1 to 3 (UCF101, HMDB51), the fold to test on (ESC-50), a
            protocol (MSR-VTT), or one part alone.
        untrimmed: The media are whole YouTube videos named by their id, not clips cut from them: rows then have
            ``start`` and ``end``.

    Raises:
        UsageError: If there is no such layout, or it has no such split or no untrimmed form.
        TriptychError: If a folder or annotation file is missing or malformed, none of the listed files is on disk, or a
            name is found in several folders.
    """
    if name not in LAYOUTS:
        near = difflib.get_close_matches(name, LAYOUTS, n=3) or sorted(LAYOUTS)
        raise UsageError(f"There is no layout {name!r}; perhaps {' or '.join(near)}.")
    if untrimmed and name not in CUT:
        raise UsageError(f"Layout {name} has no untrimmed form; {', '.join(sorted(CUT))} have.")
    for folder in (annotations, root):
        if folder is not None and not Path(folder).is_dir():
            raise TriptychError(f"{folder} is no folder; layout {name} reads one of media and one of annotations.")
    listing = LAYOUTS[name](Path(annotations), None if split is None else str(split), untrimmed)
    if not listing.entries:
        raise TriptychError(f"The files of layout {name} in {annotations} list nothing for this split.")
    if root is None:
        rows = [{"path": entry.path, **entry.fields} for entry in listing.entries]
        return Layout(name, rows, listing.classes, 0, " ".join(listing.notes))
    return _match(name, Path(root), listing)


def write_layout(
    name: str,
    root: str | Path,
    annotations: str | Path,
    out: str | Path,
    split: str | int | None = None,
    untrimmed: bool = False,
) -> Layout:
    """Write the CSV manifest of a public data set, and return what ``read_layout`` read.

    Paths in the manifest are relative to its own folder.

    Args:
        name: As for ``read_layout``; so are ``root``, ``annotations``, ``split`` and ``untrimmed``.
        root: The folder of the media.
        annotations: The folder of the annotation files.
        out: The manifest to write; one that is there is replaced.
        split: Which division.
        untrimmed: Whether the media are whole videos.

    Raises:
        UsageError: As ``read_layout``.
        TriptychError: As ``read_layout``, or if ``out`` cannot be written.
    """
    layout = read_layout(name, root, annotations, split, untrimmed)
    out = Path(out)
    present = dict.fromkeys(key for row in layout.rows for key in row)
    columns = [key for key in COLUMNS if key in present] + [key for key in present if key not in COLUMNS]
    to_root = Path(os.path.relpath(Path(root).resolve(), out.parent.resolve()))
    with replacing(out) as neighbour, neighbour.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in layout.rows:
            writer.writerow({**row, "path": (to_root / str(row["path"])).as_posix()})
    return layout


def _match(name: str, root: Path, listing: Listing) -> Layout:
    """Keep the entries whose file is on disk, under the path it has there."""
    media = _Media(root)
    rows: list[dict[str, object]] = []
    found: dict[tuple[str, tuple[str, ...]], str | None] = {}
    for entry in tqdm(listing.entries, desc="find", unit=" rows", delay=2, disable=None):
        key = (entry.path, entry.stems)
        if key not in found:
            found[key] = media.find(entry)
        path = found[key]
        if path is not None:
            rows.append({"path": path, **entry.fields})
    # Captions of one clip may differ in their stems (AudioCaps), so files are counted by their distributed path.
    there = {path for (path, _), place in found.items() if place is not None}
    absent = list(dict.fromkeys(path for path, _ in found if path not in there))
    if not rows:
        raise TriptychError(
            f"None of the {len(absent)} files that layout {name} lists is below {root}; the first is {absent[0]}."
        )
    notes = listing.notes
    if absent:
        notes += (f"{len(absent)} of {len(absent) + len(there)} listed files are not below {root}, e.g. {absent[0]}.",)
    return Layout(name, rows, listing.classes, len(absent), " ".join(notes))


class _Media:
    """The media files below a folder, by path and by name."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.paths: set[str] = set()
        self.by_place: dict[str, str] = {}  # path without suffix -> path with the best suffix there
        self.by_stem: dict[str, list[str]] = {}  # last part of it -> paths without suffix
        for path in sorted(tqdm(_walk(root), desc="scan", unit=" files", delay=2, disable=None)):
            place, suffix = os.path.splitext(path)
            if suffix.lower() not in SUFFIXES:
                continue
            self.paths.add(path)
            if place not in self.by_place:
                self.by_stem.setdefault(place.rpartition("/")[2], []).append(place)
            if place not in self.by_place or _rank(path) < _rank(self.by_place[place]):
                self.by_place[place] = path

    def find(self, entry: Entry) -> str | None:
        """Return the path on disk of a listed file; None where it is not there."""
        if entry.path in self.paths:
            return entry.path
        place, _ = os.path.splitext(entry.path)
        if place in self.by_place:
            return self.by_place[place]
        for stem in (place.rpartition("/")[2], *entry.stems):
            places = self.by_stem.get(stem, [])
            if len(places) > 1:
                raise TriptychError(
                    f"{entry.path} may be {places[0]} or {places[1]} below {self.root}; name the folder of one of them."
                )
            if places:
                return self.by_place[places[0]]
        return None


def _rank(path: str) -> int:
    return SUFFIXES.index(PurePosixPath(path).suffix.lower())


def _walk(root: Path) -> Iterable[str]:
    """Yield the files below ``root``, relative to it through linked folders but never in circles."""
    seen = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        about = os.stat(folder)
        if (about.st_dev, about.st_ino) in seen:
            folders.clear()
            continue
        seen.add((about.st_dev, about.st_ino))
        below = os.path.relpath(folder, root).replace(os.sep, "/")
        yield from (file if below == "." else f"{below}/{file}" for file in files)
