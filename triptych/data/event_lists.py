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
    require,
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
