"""Lists of the data sets with captions: MSR-VTT, YouCook2, AudioCaps; the functions are as in ``class_lists``."""

from collections.abc import Iterator
from pathlib import Path

from triptych.data.annotations import (
    Entry,
    Listing,
    choose,
    lines,
    malformed,
    present,
    read_json,
    records,
    require,
    seconds,
    seek,
)
from triptych.data.class_lists import clip_fields
from triptych.errors import TriptychError

MSRVTT_SPLITS = ("1k-A", "1k-A-7k", "1k-B", "full")


def msrvtt(annotations: Path, split: str | None, untrimmed: bool) -> Listing:
    """Read MSR-VTT: a row per caption, the rows of a video sharing ``path`` and ``group``.

    ``1k-A`` (the default) trains on the 9k list with all captions and tests on the 1,000 given pairs; ``1k-A-7k`` the
    same with the 7k list; ``1k-B`` trains on Miech's 6,656 videos and tests on the first caption of each of his 1,000;
    ``full`` is the official division with all captions.
    """
    protocol = choose("msrvtt", split, MSRVTT_SPLITS, "1k-A")
    pairs: list[tuple[str, str]] = []
    if protocol in ("1k-A", "1k-A-7k"):
        file = require("msrvtt", annotations, ("MSRVTT_JSFUSION_test.csv", "msrvtt_test_1k.csv"))
        pairs = [(row["video_id"], row["sentence"]) for _, row in records(file, ("video_id", "sentence"))]
    tested = [_msrvtt_entry(video, "test", {"caption": text}) for video, text in pairs]
    files = [annotations / name for name in ("train_val_videodatainfo.json", "test_videodatainfo.json")]
    files = [file for file in (annotations / "MSRVTT_data.json",) if file.is_file()] or [
        f for f in files if f.is_file()
    ]
    if not files and tested:
        return Listing(
            tested, notes=("The test pairs alone: MSRVTT_data.json, with the other captions, is not there.",)
        )
    if not files:
        require("msrvtt", annotations, ("MSRVTT_data.json", "train_val_videodatainfo.json"))
    videos, captions = _msrvtt_captions(files)
    entries = []
    for part, names in _msrvtt_parts(annotations, str(protocol), videos).items():
        for video in names:
            if video not in videos:
                raise TriptychError(f"{' and '.join(map(str, files))}: no video {video!r}, which the lists name.")
            texts = captions.get(video, [])
            for text in texts[:1] if protocol == "1k-B" and part == "test" else texts:
                entries.append(_msrvtt_entry(video, part, {"caption": text, **videos[video][1]}))
    return Listing(entries + tested, notes=(f"Protocol {protocol}; the column group tells the captions of a video.",))


def _msrvtt_entry(video: str, part: str, fields: dict[str, object]) -> Entry:
    return Entry(f"{video}.mp4", {**fields, "split": part, "group": video, "video_id": video})


def _msrvtt_captions(files: list[Path]) -> tuple[dict[str, tuple[str, dict[str, object]]], dict[str, list[str]]]:
    """Return by video its official split and own columns, and its captions in the order of their numbers."""
    videos: dict[str, tuple[str, dict[str, object]]] = {}
    sentences: dict[str, list[tuple[int, str]]] = {}
    for file in files:
        content = read_json(file)
        try:
            for video in content["videos"]:  # type: ignore[index]
                fields = {
                    "category": video["category"],
                    "source_start": video["start time"],
                    "source_end": video["end time"],
                }
                videos[video["video_id"]] = (video["split"], fields)
            for sentence in content["sentences"]:  # type: ignore[index]
                numbered = (int(sentence["sen_id"]), str(sentence["caption"]))
                sentences.setdefault(sentence["video_id"], []).append(numbered)
        except KeyError as error:
            raise TriptychError(f"{file} has an entry without {error}.") from error
        except (TypeError, ValueError) as error:
            raise TriptychError(f"{file} is not of MSR-VTT's form ({error}).") from error
    return videos, {video: [text for _, text in sorted(texts)] for video, texts in sentences.items()}


def _msrvtt_parts(
    annotations: Path, protocol: str, videos: dict[str, tuple[str, dict[str, object]]]
) -> dict[str, list[str]]:
    """Return the videos of each part whose captions come from the JSON."""
    if protocol == "full":
        words = {"train": "train", "val": "validate", "test": "test"}
        return {part: [video for video, (said, _) in videos.items() if said == word] for part, word in words.items()}
    if protocol == "1k-B":
        return {part: _names(require("msrvtt", annotations, (f"{part}_list_miech.txt",))) for part in ("train", "test")}
    if protocol == "1k-A":
        names = ("MSRVTT_train.9k.csv", "train_list_jsfusion.txt")
        return {"train": _names(require("msrvtt", annotations, names))}
    short = seek(annotations, ("MSRVTT_train.7k.csv",))
    if short is not None:
        return {"train": _names(short)}
    halves = [require("msrvtt", annotations, (f"{part}_list_full.txt",)) for part in ("train", "val")]
    return {"train": [video for half in halves for video in _names(half)]}


def _names(file: Path) -> list[str]:
    """Return the videos of a list: one a line, or the column ``video_id`` of a csv."""
    if file.suffix == ".csv":
        return [row["video_id"] for _, row in records(file, ("video_id",))]
    return [text for _, text in lines(file)]


def youcook2(annotations: Path, split: str | None, untrimmed: bool) -> Listing:
    """Read YouCook2: a row per segment of a whole video; the official JSON, or MIL-NCE's csv of the validation part."""
    parts = {"training": "train", "validation": "val"}
    part = choose("youcook2", split, ("train", "val"), None)
    official = seek(annotations, ("youcookii_annotations_trainval.json",), ("annotations",))
    if official is not None:
        entries = [
            _segment(parts[subset], recipe, video, start, end, text)
            for subset, recipe, video, start, end, text in _youcook2_json(official)
            if part in (None, parts[subset])
        ]
        return Listing(entries)
    names = ("validation_youcook.csv",) if part != "train" else ()
    file = require("youcook2", annotations, ("youcookii_annotations_trainval.json", *names))
    entries = []
    for line, row in records(file, ("end", "start", "task", "text", "video_id")):
        start, end = seconds(file, line, row["start"]), seconds(file, line, row["end"])
        if start >= end:
            raise malformed(file, line, f"the segment begins at {start:g} s and ends at {end:g} s")
        entries.append(_segment("val", row["task"], row["video_id"], start, end, row["text"]))
    return Listing(entries, notes=("The validation part alone, as MIL-NCE lists it.",))


def _segment(part: str, recipe: str, video: str, start: float, end: float, text: str) -> Entry:
    folder = "training" if part == "train" else "validation"
    fields = {"caption": text, "start": start, "end": end, "split": part, "video_id": video, "recipe": recipe}
    return Entry(f"{folder}/{recipe}/{video}.mp4", fields)


def _youcook2_json(file: Path) -> Iterator[tuple[str, str, str, float, float, str]]:
    content = read_json(file)
    try:
        for video, about in content["database"].items():  # type: ignore[index]
            if about["subset"] not in ("training", "validation"):
                raise TriptychError(f"{file}, video {video}: the subset is {about['subset']!r}.")
            for segment in about["annotations"]:
                start, end = (float(second) for second in segment["segment"])
                if not 0 <= start < end < float("inf"):
                    raise TriptychError(f"{file}, video {video}: a segment goes from {start:g} s to {end:g} s.")
                yield about["subset"], str(about["recipe_type"]), video, start, end, segment["sentence"]
    except KeyError as error:
        raise TriptychError(f"{file} has an entry without {error}.") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise TriptychError(f"{file} is not of YouCook2's form ({error}).") from error


def audiocaps(annotations: Path, split: str | None, untrimmed: bool) -> Listing:
    """Read AudioCaps: a row per caption (one in train, five in val and test); those of a clip share ``group``."""
    part = choose("audiocaps", split, ("train", "val", "test"), None)
    names = {key: (f"{key}.csv",) for key in ([part] if part else ["train", "val", "test"])}
    entries = []
    for key, file in present("audiocaps", annotations, names).items():
        for line, row in records(file, ("audiocap_id", "youtube_id", "start_time", "caption")):
            youtube_id, start = row["youtube_id"], seconds(file, line, row["start_time"])
            clip = f"{youtube_id}_{start:.0f}"
            fields = {
                "caption": row["caption"],
                "split": key,
                "group": clip,
                "audiocap_id": row["audiocap_id"],
                **clip_fields(youtube_id, start, start + 10, untrimmed),
            }
            stems = (
                f"{youtube_id}_{start * 1000:.0f}_{(start + 10) * 1000:.0f}",
                f"{youtube_id}_{start:.0f}_{start + 10:.0f}",
                f"{youtube_id}_{start:06.0f}",
                youtube_id,
                f"Y{youtube_id}",
                row["audiocap_id"],
            )
            entries.append(Entry(f"{youtube_id}.wav", fields) if untrimmed else Entry(f"{clip}.wav", fields, stems))
    return Listing(entries)
