import json

import pytest

from triptych.toyworld.truth import COLUMNS, ceiling, tell
from triptych.toyworld.world import describe, tamper


def test_rows_tell_everything_later_tasks_are_measured_on():
    scenes = [describe(0, index, talking=0.5) for index in range(200)]
    rows = [tell(scene, f"clips/{scene.index}.mp4") for scene in scenes]
    for scene, row in zip(scenes, rows, strict=True):
        assert tuple(row) == COLUMNS
        assert json.loads(row["events"]) == scene.events
        words = json.loads(row["words"])
        assert bool(words) == (scene.talk is not None)
        assert row["transcript"] == " ".join(text for text, _, _ in words)
        assert row["tampered"] == "none" and row["swapped"] == ""
        assert (row["change"] == "none") == (scene.collision is None) == (row["cause"] == "")
        if scene.collision:
            assert float(row["change_time"]) == scene.collision.time
        assert json.loads(row["highlights"]) == ([list(scene.highlight)] if scene.highlight else [])


def test_each_whole_second_is_told():
    found = set()
    for index in range(200):
        scene = describe(0, index)
        labels = json.loads(tell(scene, "x.mp4")["segments"])
        assert len(labels) == int(scene.duration)
        for second, label in enumerate(labels):
            struck = scene.collision is not None and second == int(scene.collision.time)
            happens = any(int(event) == second for event in scene.events)
            assert label == (scene.collision.effect if struck else scene.main.kind if happens else "background")
            found.add(label)
    assert {"recolour", "break", "background", "disc", "heart"} <= found and len(found) == 11


def test_a_forged_row_says_what_was_swapped():
    seen = set()
    for index in range(20):
        scene = describe(0, index, talking=1.0)
        forged = tamper(scene)
        row, truth = tell(forged, "x.mp4"), tell(scene, "x.mp4")
        seen.add(row["tampered"])
        assert row["transcript"] == truth["transcript"]
        assert [w for w, _, _ in json.loads(row["swapped"])] != [w for w, _, _ in json.loads(row["words"])]
    assert seen == {"sound", "mouth"}


def row(caption, says, **values):
    base = {"kind": "disc", "size": "small", "motion": "bounce", "colour": "red", "events": "[]", "words": "[]"}
    return {**base, "caption": caption, "says": says, "captioned": "yes", **values}


def test_the_ceiling_by_hand():
    rows = [
        row("a red disc", "kind colour"),
        row("a red disc", "kind colour", size="large"),
        row("a large disc", "kind size", size="large"),
        row("a moon", "kind", kind="moon", events="[1.0]"),
        {**row("", "", kind="moon"), "captioned": "missing"},
    ]
    # "a red disc" (twice): three red discs, two of them right; "a large disc", "a moon": two things, one right.
    assert ceiling(rows)["text_to_video"] == pytest.approx((2 / 3 + 2 / 3 + 1 / 2 + 1 / 2) / 4)
    # small disc; large discs (2); small moons (2)
    assert ceiling(rows)["audio_to_video_untimed"] == pytest.approx(3 / 5)
    assert ceiling(rows)["audio_to_video"] == pytest.approx(4 / 5)
