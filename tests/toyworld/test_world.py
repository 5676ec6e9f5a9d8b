from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from triptych.toyworld.motion import TICK, pose
from triptych.toyworld.world import COLOURS, KINDS, describe, tamper


def test_a_recording_depends_on_seed_and_index_alone():
    assert describe(3, 17) == describe(3, 17)
    assert describe(3, 17) != describe(4, 17)
    assert describe(3, 17) != describe(3, 18)


def test_difficulty_and_talking_leave_the_causes_alone():
    easy, hard, silent = describe(0, 5, 0.0), describe(0, 5, 2.0), describe(0, 5, talking=0.0)
    assert easy.main == hard.main and easy.highlight == hard.highlight
    assert easy.scenery.noise == 0 and easy.acoustics.noise == 0 and not easy.scenery.distractors
    assert hard.scenery.noise > 0
    assert silent.talk is None and silent.duration == easy.duration


@pytest.mark.parametrize("seed", [0, 1])
def test_of_fifteen_in_a_row_thirteen_are_to_train_on_and_one_to_test(seed):
    for first in range(0, 60, 15):
        splits = Counter(describe(seed, index).split for index in range(first, first + 15))
        assert splits == {"train": 13, "val": 1, "test": 1}


def test_attributes_are_balanced_and_independent():
    scenes = [describe(0, index) for index in range(1200)]
    for name, values in (("kind", KINDS), ("colour", tuple(COLOURS))):
        counts = Counter(getattr(scene.main, name) for scene in scenes)
        assert set(counts) == set(values)
        assert max(abs(count - 150) for count in counts.values()) < 45  # about four standard deviations
    pairs = Counter((scene.main.kind, scene.main.colour) for scene in scenes)
    expected = 1200 / 64
    statistic = sum((pairs[kind, colour] - expected) ** 2 / expected for kind in KINDS for colour in COLOURS)
    assert statistic < 110  # chi-squared, 63 degrees of freedom: p about 0.0002


def test_a_striker_touches_what_it_strikes_and_has_another_colour():
    scenes = [scene for scene in (describe(0, index) for index in range(200)) if scene.collision]
    assert 20 < len(scenes) < 80
    for scene in scenes:
        collision = scene.collision
        at = pose(scene.main, np.array([collision.time]))
        gap = np.hypot(collision.striker.x - at.x[0], collision.striker.y - at.y[0])
        assert gap < at.width[0] + collision.striker.radius
        assert bool(at.visible[0]) and 0 < collision.time < scene.duration
        assert (collision.time / TICK) % 1 == 0
        assert collision.striker.colour != scene.main.colour
        assert collision.time in scene.events


def test_a_broken_thing_has_no_events():
    broken = next(
        scene
        for scene in (describe(0, index) for index in range(300))
        if scene.collision and scene.collision.effect == "break"
    )
    assert max(broken.events) == broken.collision.time
    assert len(replace(broken, collision=None).events) > len(broken.events) - 1


def test_words_follow_one_another_within_the_recording():
    for index in range(40):
        scene = describe(0, index, talking=1.0)
        words = scene.talk.heard
        assert scene.talk.seen == words and len(words) >= 3
        assert all(a.end < b.start for a, b in pairwise(words))
        assert words[0].start > 0 and words[-1].end < scene.duration


def test_tampering_changes_one_side_only():
    kinds = set()
    for index in range(20):
        scene = describe(0, index, talking=1.0)
        forged = tamper(scene)
        kinds.add(forged.tampered)
        changed, kept = ("heard", "seen") if forged.tampered == "sound" else ("seen", "heard")
        assert getattr(forged.talk, kept) == getattr(scene.talk, kept)
        assert [w.text for w in getattr(forged.talk, changed)] != [w.text for w in getattr(scene.talk, changed)]
        assert tamper(scene) == forged
    assert kinds == {"sound", "mouth"}
    with pytest.raises(ValueError, match="talking"):
        tamper(describe(0, 0, talking=0.0))
