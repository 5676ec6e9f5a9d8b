"""Lists of data sets whose labels change within a recording; the functions are as in ``class_lists``."""

import json
from pathlib import Path

from triptych.data.annotations import (
    Entry,
    Listing,
    choose,
    count_note,
    lines,
    malformed,
    numbered,
    present,
    records,
    require,
    seconds,
    seek,
    table,
    whole,
)

BACKGROUND = "background"
"""Label of a second in which no event is both seen and heard; the last class of event localization."""
AVE_SECONDS = 10
"""Length of every video of AVE."""


def ave(annotations: Path, split: str | None, untrimmed: bool) -> Listing:
    """Read AVE: a row an event, with a label for each of its ten seconds; outside the event they are background.

    ``trainSet.txt``, ``valSet.txt`` and ``testSet.txt`` divide the events; where none of them is there, the rows are
    those of ``Annotations.txt`` and have no ``split``. All have lines ``Category&VideoID&Quality&StartTime&EndTime``.
    """
    part = choose("ave", split, ("train", "val", "test"), None)
    index = require("ave", annotations, ("Annotations.txt",))
    everything = _ave_events(index)
    classes = tuple(sorted({category for _, category, *_ in everything}))
    ids = numbered(classes)
    notes = count_note("events", len(everything), 4143) + count_note("classes", len(classes), 28)
    names = {key: (f"{key}Set.txt",) for key in ("train", "val", "test")}
    parts: list[tuple[str | None, Path]] = [(None, index)]
    if part is not None or any((annotations / name).is_file() for (name,) in names.values()):
        parts = [*present("ave", annotations, names if part is None else {part: names[part]}).items()]
    else:
        notes += ("The lists trainSet.txt, valSet.txt and testSet.txt are not there, so rows have no split.",)
    entries = []
    for key, file in parts:
        for line, category, video, start, end in _ave_events(file):
            if category not in ids:
                raise malformed(file, line, f"the class {category!r} is not in {index.name}")
            labels = [category if start <= second < end else BACKGROUND for second in range(AVE_SECONDS)]
            fields: dict[str, object] = {"label": category, "target": ids[category], "segments": json.dumps(labels)}
            fields |= {"youtube_id": video} if key is None else {"split": key, "youtube_id": video}
            entries.append(Entry(f"AVE/{video}.mp4", fields))
    return Listing(entries, classes, notes)


def _ave_events(file: Path) -> list[tuple[int, str, str, int, int]]:
    """Return number, category, video, start and end (seconds) of each line; a line of headings is passed over."""
    events = []
    for line, text in lines(file):
        cells = text.split("&")
        if len(cells) != 5:
            raise malformed(file, line, "CATEGORY&VIDEO&QUALITY&START&END is expected")
        category, video, _, start, end = cells
        if line == 1 and video == "VideoID":
            continue
        events.append((line, category, video, whole(file, line, start), whole(file, line, end)))
    return events


def crosstask(annotations: Path, split: str | None, untrimmed: bool) -> Listing:
    """Read CrossTask: a row a video of a primary task, with the task's steps in order and where each is in the video.

    Tested are the videos of ``cvpr19_test.csv`` (which zero-shot models use), or else of ``videos_val.csv``; all others
    of ``videos.csv`` are for training. The column ``steps`` is what `triptych evaluate --task steps` reads.
    """
    part = choose("crosstask", split, ("train", "test"), None)
    tasks = _crosstask_steps(require("crosstask", annotations, ("tasks_primary.txt",)))
    listed = require("crosstask", annotations, ("videos.csv",))
    everything = [(task, video) for _, (task, video, *_) in table(listed, width=3)]
    ready = seek(annotations, ("cvpr19_test.csv",))
    if ready is not None:
        tested = {(row["task"], row["video_id"]) for _, row in records(ready, ("task", "video_id"))}
    else:
        listed = require("crosstask", annotations, ("videos_val.csv",))
        tested = {(task, video) for _, (task, video, *_) in table(listed, width=3)}
    entries, untold = [], 0
    for task, video in dict.fromkeys([*everything, *sorted(tested)]):
        key = "test" if (task, video) in tested else "train"
        if task not in tasks or part not in (None, key):
            continue
        told = seek(annotations, (f"{task}_{video}.csv",), ("annotations",))
        if told is None:
            untold += 1
            continue
        title, names = tasks[task]
        steps: list[list[object]] = [[name] for name in names]
        for line, cells in table(told, width=3):
            place = whole(told, line, cells[0])
            if not 1 <= place <= len(steps):
                raise malformed(told, line, f"task {task} has the steps 1 to {len(steps)}, not {place}")
            steps[place - 1] += [seconds(told, line, cells[1]), seconds(told, line, cells[2])]
        fields: dict[str, object] = {"split": key, "task": task, "title": title, "youtube_id": video}
        entries.append(Entry(f"{video}.mp4", fields | {"steps": json.dumps(steps)}))
    notes = count_note("tasks", len(tasks), 18)
    if untold:
        notes += (f"{untold} videos have no file of annotations, and are left out.",)
    return Listing(entries, notes=notes)


def _crosstask_steps(file: Path) -> dict[str, tuple[str, list[str]]]:
    """Return title and steps of each task: blocks of id, title, address, number of steps, their names, a blank line."""
    tasks = {}
    found = list(lines(file))
    for place in range(0, len(found), 5):
        block = found[place : place + 5]
        names = [name.strip() for name in block[-1][1].split(",")]
        if len(block) < 5 or len(names) != whole(file, block[3][0], block[3][1]):
            raise malformed(
                file, block[0][0], "a task has five lines, the fourth of which counts the names in the fifth"
            )
        tasks[block[0][1]] = (block[1][1], names)
    return tasks
