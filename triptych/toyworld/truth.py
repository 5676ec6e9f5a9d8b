"""What is true of a recording, as columns of a manifest, and what perfect understanding could score."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence

from triptych.toyworld.grammar import write_caption
from triptych.toyworld.speech import Word
from triptych.toyworld.world import Scene

COLUMNS = (
    "path",
    "caption",
    "split",
    "captioned",
    "says",
    "kind",
    "colour",
    "size",
    "motion",
    "background",
    "duration",
    "events",
    "segments",
    "change",
    "change_time",
    "change_from",
    "change_to",
    "cause",
    "words",
    "transcript",
    "speaker_pitch",
    "mouth",
    "highlights",
    "tampered",
    "swapped",
)
"""The columns of ``manifest.csv``, in their order."""


def tell(scene: Scene, path: str) -> dict[str, str]:
    """The row of the manifest for ``scene``, written at ``path``; lists and spans are JSON, what is not so is empty."""
    caption, captioned, says = write_caption(scene)
    main, collision, talk = scene.main, scene.collision, scene.talk
    row = {
        "path": path,
        "caption": caption,
        "split": scene.split,
        "captioned": captioned,
        "says": " ".join(says),
        "kind": main.kind,
        "colour": main.colour,
        "size": main.size,
        "motion": main.motion,
        "background": scene.scenery.background,
        "duration": f"{scene.duration:g}",
        "events": json.dumps(scene.events),
        "segments": json.dumps(segments(scene)),
        "change": collision.effect if collision else "none",
        "tampered": scene.tampered,
        "highlights": json.dumps([scene.highlight] if scene.highlight else []),
        "words": "[]",
    }
    if collision:
        row["change_time"] = f"{collision.time:g}"
        row["change_from"] = main.colour if collision.effect == "recolour" else "whole"
        row["change_to"] = collision.striker.colour if collision.effect == "recolour" else "pieces"
        row["cause"] = f"{collision.striker.colour} {collision.striker.kind}"
    if talk:
        spoken, other = (talk.seen, talk.heard) if scene.tampered == "sound" else (talk.heard, talk.seen)
        row["words"] = _timed(spoken)
        row["transcript"] = " ".join(word.text for word in spoken)
        row["speaker_pitch"] = f"{talk.voice.pitch:.0f}"
        row["mouth"] = json.dumps([round(value, 4) for value in _box(talk.x, talk.y, 0.8 * talk.radius)])
        row["swapped"] = "" if scene.tampered == "none" else _timed(other)
    return {column: row.get(column, "") for column in COLUMNS}


def segments(scene: Scene) -> list[str]:
    """What is seen and heard to happen in each whole second of ``scene``.

    The effect of the collision in its second (``recolour`` or ``break``); else the kind of the main thing, if it has an
    event there; else ``background``: between the events of what is slow, and after it broke.
    """
    labels = []
    for second in range(int(scene.duration)):
        label = "background"
        if any(second <= event < second + 1 for event in scene.events):
            label = scene.main.kind
        if scene.collision and second <= scene.collision.time < second + 1:
            label = scene.collision.effect
        labels.append(label)
    return labels


def ceiling(rows: Sequence[Mapping[str, str]]) -> dict[str, float]:
    """Best expected R@1 (0 to 1) of a reader who understands captions, pictures and sounds perfectly.

    ``text_to_video``: each caption is a query over the pictures of all rows; every picture of which all that the
    caption says is true is as good a guess as another, and rows with equal captions are all right.
    ``audio_to_video_untimed``: a sound tells kind, size and motion, so that rows alike in these tie.
    ``audio_to_video``: it also tells when things happen and what is spoken.

    Args:
        rows: Rows of the manifest, say those of the ``test`` split.
    """
    told = [row for row in rows if row["captioned"] == "yes"]
    same = Counter(row["caption"] for row in told)
    right = 0.0
    for query in told:
        facts = [(name, query[name]) for said in query["says"].split() for name in _meaning(said)]
        agreeing = sum(all(row[name] == value for name, value in facts) for row in rows)
        right += same[query["caption"]] / agreeing
    heard = [(row["kind"], row["size"], row["motion"]) for row in rows]
    timed = [(*key, row["events"], row["words"]) for key, row in zip(heard, rows, strict=True)]
    return {
        "text_to_video": right / max(1, len(told)),
        "audio_to_video_untimed": len(set(heard)) / len(rows),
        "audio_to_video": len(set(timed)) / len(rows),
    }


def _meaning(said: str) -> tuple[str, ...]:
    """The columns whose values a reader knows when a caption says this."""
    return {"change": ("change", "cause"), "words": ("transcript",)}.get(said, (said,))


def _timed(words: tuple[Word, ...]) -> str:
    return json.dumps([[word.text, word.start, word.end] for word in words])


def _box(x: float, y: float, half: float) -> tuple[float, float, float, float]:
    return x - half, y - half, x + half, y + half
