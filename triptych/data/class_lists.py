"""Lists of the classification data sets: UCF101, HMDB51, ESC-50, AudioSet, VGGSound, Kinetics, Kinetics-Sound.

Every function takes the folder of the annotation files, the split asked for (None: the default) and whether the media
are whole source videos (``untrimmed``), and returns a ``Listing``. The rules of each are in docs/layouts.md.
"""

import re
from pathlib import Path

from triptych.data.annotations import (
    JOIN,
    Entry,
    Listing,
    choose,
    count_note,
    lines,
    malformed,
    numbered,
    present,
    read_json,
    records,
    require,
    seconds,
    seek,
    table,
    whole,
)
from triptych.errors import TriptychError

THREE = ("1", "2", "3")

KINETICS_SOUND: tuple[str, ...] = (
    "blowing nose", "blowing out candles", "bowling", "chopping wood", "dribbling basketball", "laughing",
    "mowing lawn", "playing accordion", "playing bagpipes", "playing bass guitar", "playing clarinet",
    "playing drums", "playing guitar", "playing harmonica", "playing keyboard", "playing organ", "playing piano",
    "playing saxophone", "playing trombone", "playing trumpet", "playing violin", "playing xylophone",
    "ripping paper", "shoveling snow", "shuffling cards", "singing", "stomping grapes", "strumming guitar",
    "tap dancing", "tapping guitar", "tapping pen", "tickling",
)  # fmt: skip
"""The 32 classes that today's Kinetics-400 keeps of the 34 of Kinetics-Sound."""


def clip_fields(youtube_id: str, start: float, end: float | None, untrimmed: bool) -> dict[str, object]:
    """Return the columns that say where a clip of a YouTube video lies.

    In a file that holds the clip alone, the times are the source's (``source_start``, ``source_end``), for the file
    begins at 0; in the whole video they are the window to look at (``start``, ``end``).
    """
    prefix = "" if untrimmed else "source_"
    times: dict[str, object] = {f"{prefix}start": start}
    if end is not None:
        times[f"{prefix}end"] = end
    return {**times, "youtube_id": youtube_id}


def ucf101(annotations: Path, split: str | None, untrimmed: bool) -> Listing:
    """Read UCF101's ``classInd.txt`` and the lists of split 1, 2 or 3."""
    number = choose("ucf101", split, THREE, "1")
    below = ("ucfTrainTestlist",)
    index = require("ucf101", annotations, ("classInd.txt",), below)
    classes: list[str] = []
    for line, text in lines(index):
        parts = text.split()
        if len(parts) != 2 or whole(index, line, parts[0]) != len(classes) + 1:
            raise malformed(index, line, f"'{len(classes) + 1} CLASS' is expected")
        classes.append(parts[1])
    ids = numbered(classes)
    entries = []
    for part in ("train", "test"):
        file = require("ucf101", annotations, (f"{part}list0{number}.txt",), below)
        for line, text in lines(file):
            path, _, given = text.partition(" ")
            label = path.split("/")[0]
            if label not in ids or "/" not in path:
                raise malformed(file, line, f"{text!r} does not begin with one of the {len(ids)} classes and a slash")
            if part == "train" and whole(file, line, given) != ids[label] + 1:
                raise malformed(file, line, f"class {given} is not that of {label} in {index.name} ({ids[label] + 1})")
            fields = {"label": label, "target": ids[label], "split": part}
            entries.append(Entry(path, fields))
    return Listing(entries, tuple(classes), count_note("classes", len(classes), 101))


def hmdb51(annotations: Path, split: str | None, untrimmed: bool) -> Listing:
    """Read HMDB51's ``CLASS_test_splitK.txt`` files, or MIL-NCE's one csv where those are not there."""
    number = choose("hmdb51", split, THREE, "1")
    folders = [annotations, annotations / "splits", annotations / "testTrainMulti_7030_splits"]
    suffix = f"_test_split{number}.txt"
    marks: list[tuple[str, str, str, Path, int]] = []
    for file in sorted(next(filter(None, (list(folder.glob(f"*{suffix}")) for folder in folders)), [])):
        for line, text in lines(file):
            name, _, mark = text.rpartition(" ")
            marks.append((file.name.removesuffix(suffix), name.strip(), mark, file, line))
    if not marks:
        file = require("hmdb51", annotations, (f"CLASS{suffix}", "hmdb51_mil_nce.csv"), ("splits",))
        for line, row in records(file, ("video_id", "label", f"split{number}")):
            marks.append((row["label"].removesuffix("_test"), row["video_id"], row[f"split{number}"], file, line))
    classes = sorted({label for label, *_ in marks})
    ids = numbered(classes)
    entries = []
    for label, name, mark, file, line in marks:
        if mark not in ("0", "1", "2") or not name:
            raise malformed(file, line, "a file name and 0, 1 or 2 are expected")
        if mark != "0":
            fields = {"label": label, "target": ids[label], "split": "train" if mark == "1" else "test"}
            entries.append(Entry(f"{label}/{name}", fields))
    return Listing(entries, tuple(classes), count_note("classes", len(classes), 51))


def esc50(annotations: Path, split: str | None, untrimmed: bool) -> Listing:
    """Read ESC-50's ``meta/esc50.csv``; a split is the fold that is tested on."""
    return _esc("esc50", annotations, split)


def esc10(annotations: Path, split: str | None, untrimmed: bool) -> Listing:
    """Read the ten classes of ESC-10 from ``meta/esc50.csv``."""
    return _esc("esc10", annotations, split)


def _esc(layout: str, annotations: Path, split: str | None) -> Listing:
    tested = choose(layout, split, ("1", "2", "3", "4", "5"), None)
    file = require(layout, annotations, ("esc50.csv",), ("meta",))
    columns = ("filename", "fold", "target", "category", "esc10", "src_file", "take")
    rows = [(line, row) for line, row in records(file, columns) if layout == "esc50" or row["esc10"] == "True"]
    names: dict[int, str] = {}
    for line, row in rows:
        if names.setdefault(whole(file, line, row["target"]), row["category"]) != row["category"]:
            raise malformed(file, line, f"target {row['target']} was {names[int(row['target'])]} before")
    classes = tuple(names[target] for target in sorted(names))
    ids = numbered(classes)
    entries = []
    for line, row in rows:
        fields: dict[str, object] = {
            "label": row["category"],
            "target": ids[row["category"]],
            "fold": whole(file, line, row["fold"]),
            "source_target": int(row["target"]),
            "src_file": row["src_file"],
            "take": row["take"],
        }
        if tested is not None:
            fields["split"] = "test" if row["fold"] == tested else "train"
        entries.append(Entry(f"audio/{row['filename']}", fields))
    notes = count_note("classes", len(classes), 50 if layout == "esc50" else 10)
    folds = sorted({int(row["fold"]) for _, row in rows})
    if folds != [1, 2, 3, 4, 5]:
        notes += (f"Of folds 1 to 5, {', '.join(map(str, folds))} are listed.",)
    if tested is not None and int(tested) not in folds:
        raise TriptychError(f"{file} lists nothing in fold {tested}, which is to be tested on.")
    return Listing(entries, classes, notes)


def audioset(annotations: Path, split: str | None, untrimmed: bool) -> Listing:
    """Read AudioSet's segment lists; the machine ids become names through ``class_labels_indices.csv``."""
    parts = {"balanced_train": "train", "unbalanced_train": "train", "eval": "test"}
    part = choose("audioset", split, tuple(parts), None)
    index = require("audioset", annotations, ("class_labels_indices.csv",))
    names: dict[str, str] = {}
    classes: list[str] = []
    for line, row in records(index, ("index", "mid", "display_name")):
        if whole(index, line, row["index"]) != len(classes) or JOIN in row["display_name"]:
            raise malformed(index, line, f"index {len(classes)} and a name without {JOIN!r} are expected")
        names[row["mid"]] = row["display_name"]
        classes.append(row["display_name"])
    ids = numbered(names)
    wanted = tuple(parts) if part is None else (part,)
    entries = []
    for name, file in present("audioset", annotations, {key: (f"{key}_segments.csv",) for key in wanted}).items():
        for line, (youtube_id, start, end, mids) in table(file, 4, comments=True):
            marks = mids.split(",")
            for mid in marks:
                if mid not in names:
                    raise malformed(file, line, f"{mid!r} is not in {index.name}")
            first, last = seconds(file, line, start), seconds(file, line, end)
            fields = {
                "labels": JOIN.join(names[mid] for mid in marks),
                "targets": JOIN.join(str(ids[mid]) for mid in marks),
                "split": parts[name],
                "part": name,
                **clip_fields(youtube_id, first, last, untrimmed),
            }
            clip = f"{youtube_id}_{first * 1000:.0f}_{last * 1000:.0f}"
            stems = (
                f"{youtube_id}_{first:.0f}_{last:.0f}",
                f"{youtube_id}_{first:06.0f}",
                youtube_id,
                f"Y{youtube_id}",
            )
            entries.append(Entry(f"{youtube_id}.mp4", fields) if untrimmed else Entry(f"{clip}.mp4", fields, stems))
    return Listing(entries, tuple(classes), count_note("classes", len(classes), 527))


def vggsound(annotations: Path, split: str | None, untrimmed: bool) -> Listing:
    """Read VGGSound's ``vggsound.csv``, or the ``train.csv`` and ``test.csv`` of its repository."""
    part = choose("vggsound", split, ("train", "test"), None)
    rows: list[tuple[str, float, str, str]] = []
    whole_list = seek(annotations, ("vggsound.csv",))
    if whole_list is not None:
        for line, (youtube_id, start, label, named) in table(whole_list, 4):
            if named not in ("train", "test"):
                raise malformed(whole_list, line, f"the split is {named!r}, not train or test")
            rows.append((youtube_id, seconds(whole_list, line, start), label, named))
    else:
        require("vggsound", annotations, ("vggsound.csv", "test.csv", "train.csv"))
        for named, file in present(
            "vggsound", annotations, {key: (f"{key}.csv",) for key in ("train", "test")}
        ).items():
            for line, (name, label) in table(file, 2):
                match = re.fullmatch(r"(.{11})_(\d{6})\.mp4", name)
                if match is None:
                    raise malformed(file, line, f"{name!r} is not ID_SECONDS.mp4")
                rows.append((match[1], float(match[2]), label, named))
    classes = tuple(sorted({label for _, _, label, _ in rows}))
    ids = numbered(classes)
    entries = []
    for youtube_id, start_at, label, named in rows:
        if part in (None, named):
            fields = {
                "label": label,
                "target": ids[label],
                "split": named,
                **clip_fields(youtube_id, start_at, start_at + 10, untrimmed),
            }
            stems = (f"{youtube_id}_{start_at:.0f}", f"{youtube_id}_{start_at:.0f}_{start_at + 10:.0f}", youtube_id)
            clip = f"{youtube_id}_{start_at:06.0f}.mp4"
            entries.append(Entry(f"{youtube_id}.mp4", fields) if untrimmed else Entry(clip, fields, stems))
    return Listing(entries, classes, count_note("classes", len(classes), 309))


def kinetics400(annotations: Path, split: str | None, untrimmed: bool) -> Listing:
    """Read Kinetics-400."""
    return _kinetics("kinetics400", 400, annotations, split, untrimmed)


def kinetics600(annotations: Path, split: str | None, untrimmed: bool) -> Listing:
    """Read Kinetics-600."""
    return _kinetics("kinetics600", 600, annotations, split, untrimmed)


def kinetics700(annotations: Path, split: str | None, untrimmed: bool) -> Listing:
    """Read Kinetics-700, of either year."""
    return _kinetics("kinetics700", 700, annotations, split, untrimmed)


def kinetics_sound(annotations: Path, split: str | None, untrimmed: bool) -> Listing:
    """Read Kinetics lists and keep the 32 classes of Kinetics-Sound."""
    return _kinetics("kinetics_sound", 32, annotations, split, untrimmed)


def _kinetics(layout: str, published: int, annotations: Path, split: str | None, untrimmed: bool) -> Listing:
    """Read the official csv files or lists of ``class/ID_START_END.avi``; class ids are stable whatever the split."""
    parts = {"train": ("train",), "val": ("val", "validate", "validation"), "test": ("test",)}
    part = choose(layout, split, tuple(parts), None)
    names = {
        key: [f"{before}{word}.csv" for word in words for before in ("", f"{layout}_", "kinetics_")] + [f"{key}.txt"]
        for key, words in parts.items()
    }
    files = present(layout, annotations, names)
    if part is not None and part not in files:
        require(layout, annotations, names[part])
    rows: list[tuple[str, str, str, float, float]] = []  # part, label ("" where withheld), id, start, end
    for key, file in files.items():
        rows += [(key, *clip) for clip in (_json_clips(file) if file.suffix == ".txt" else _csv_clips(file))]
    label_map = seek(annotations, ("label_map_k400.txt",)) if layout == "kinetics400" else None
    if layout == "kinetics_sound":
        classes = KINETICS_SOUND
    elif label_map is not None:
        classes = tuple(text for _, text in lines(label_map))
    else:
        classes = tuple(sorted({label for _, label, *_ in rows if label}))
    ids = numbered(classes)
    entries = []
    for key, label, youtube_id, start, end in rows:
        if part not in (None, key) or (layout == "kinetics_sound" and label not in ids):
            continue
        if label and label not in ids:
            raise TriptychError(f"{files[key]} names the class {label!r}, which is not in {label_map}.")
        fields: dict[str, object] = {"label": label, "target": ids[label]} if label else {}
        fields |= {"split": key, **clip_fields(youtube_id, start, end, untrimmed)}
        clip = f"{youtube_id}_{start:06.0f}_{end:06.0f}"
        folder = f"{label}/" if label else ""
        entries.append(
            Entry(f"{youtube_id}.mp4", fields) if untrimmed else Entry(f"{folder}{clip}.mp4", fields, (youtube_id,))
        )
    return Listing(entries, classes, count_note("classes", len(classes), published))


def _csv_clips(file: Path) -> list[tuple[str, str, float, float]]:
    """Read an official csv; the test lists of Kinetics-600 and -700 may withhold ``label``."""
    clips = []
    for line, row in records(file, ("youtube_id", "time_start", "time_end")):
        start, end = seconds(file, line, row["time_start"]), seconds(file, line, row["time_end"])
        clips.append((row.get("label", ""), row["youtube_id"], start, end))
    return clips


def _json_clips(file: Path) -> list[tuple[str, str, float, float]]:
    """Read one JSON array of ``class_name/ID_START_END.avi``; class names get their spaces back."""
    names = read_json(file)
    if not isinstance(names, list):
        raise malformed(file, 1, "a JSON array of file names is expected")
    clips = []
    for position, name in enumerate(names, start=1):
        match = re.fullmatch(r"(.+)/(.{11})_(\d{6})_(\d{6})\.\w+", str(name))
        if match is None:
            raise malformed(file, 1, f"name {position}, {name!r}, is not CLASS/ID_START_END.avi")
        clips.append((match[1].replace("_", " "), match[2], float(match[3]), float(match[4])))
    return clips


def kinetics_sound_ogm(annotations: Path, split: str | None, untrimmed: bool) -> Listing:
    """Read OGM-GE's Kinetics-Sound lists, ``ID_START,SECONDS,CLASS``; its 31 classes have numbers, no names."""
    part = choose("kinetics_sound_ogm", split, ("train", "test"), None)
    names = {name: (f"my_{name}.txt",) for name in ([part] if part else ["train", "test"])}
    classes = tuple(str(number) for number in range(31))
    entries = []
    for name, file in present("kinetics_sound_ogm", annotations, names).items():
        for line, (clip, length, label) in table(file, 3):
            youtube_id, _, start = clip.rpartition("_")
            if len(youtube_id) != 11 or label not in classes:
                raise malformed(file, line, "ID_START, seconds and a class from 0 to 30 are expected")
            first = seconds(file, line, start)
            last = first + seconds(file, line, length)
            fields = {
                "label": label,
                "target": int(label),
                "split": name,
                **clip_fields(youtube_id, first, last, untrimmed),
            }
            kinetics = f"{youtube_id}_{first:06.0f}_{last:06.0f}"
            entries.append(
                Entry(f"{youtube_id}.mp4", fields) if untrimmed else Entry(f"{clip}.mp4", fields, (kinetics,))
            )
    return Listing(entries, classes)
