from dataclasses import replace

import numpy as np
import pytest

from triptych.toyworld.draw import distance, render_frames
from triptych.toyworld.motion import pose
from triptych.toyworld.speech import Word
from triptych.toyworld.world import KINDS, describe


def plain(index, **changes):
    scene = describe(0, index, difficulty=0.0, talking=0.0)
    return replace(scene, highlight=None, collision=None, **changes)


def test_frames_are_the_same_for_the_same_scene_and_fill_the_duration():
    scene = describe(0, 3)
    frames = render_frames(scene, 64, 16.0)
    assert frames.shape == (round(scene.duration * 16), 64, 64, 3) and frames.dtype == np.uint8
    assert (frames == render_frames(scene, 64, 16.0)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_visible_centred_and_unlike_the_others(kind):
    steps = (np.arange(64, dtype=np.float32) - 31.5) / 26
    x, y = np.meshgrid(steps, steps)
    inside = distance(kind, x[None], y[None])[0] < 0
    assert 0.2 < inside.sum() / (np.pi * 26**2) < 1.0
    assert not inside[0].any() and not inside[:, 0].any() and not inside[-1].any() and not inside[:, -1].any()
    others = [distance(other, x[None], y[None])[0] < 0 for other in KINDS if other != kind]
    assert min((inside ^ other).sum() / (inside | other).sum() for other in others) > 0.1


def test_the_thing_is_drawn_in_its_colour_where_it_is():
    scene = plain(4)
    scene = replace(scene, main=replace(scene.main, kind="disc", motion="shake", rgb=(1.0, 0.0, 0.0), x=0.5, y=0.5))
    frames = render_frames(scene, 96, 16.0)
    at = pose(scene.main, np.arange(len(frames)) / 16)
    for k in (0, 5, 11):
        red = (frames[k, ..., 0] > 150) & (frames[k, ..., 1] < 60)
        rows, columns = np.nonzero(red)
        assert columns.mean() + 0.5 == pytest.approx(96 * at.x[k], abs=0.5)
        assert rows.mean() + 0.5 == pytest.approx(96 * at.y[k], abs=0.5)
        assert red.sum() == pytest.approx(np.pi * (0.95 * 96 * scene.main.radius) ** 2, rel=0.08)


def test_a_struck_thing_changes_at_the_very_frame():
    scene = next(
        scene
        for scene in (describe(0, index, 0.0, 0.0) for index in range(200))
        if scene.collision and scene.collision.effect == "recolour"
    )
    scene = replace(scene, highlight=None, main=replace(scene.main, motion="pulse", kind="square", rgb=(1.0, 0.0, 0.0)))
    striker = replace(scene.collision.striker, rgb=(0.0, 0.0, 1.0), x=0.05, y=0.05)
    scene = replace(scene, collision=replace(scene.collision, striker=striker, direction=(-1.0, 0.0)))
    frames = render_frames(scene, 96, 16.0)
    x, y = int(96 * scene.main.x), int(96 * scene.main.y)
    when = round(scene.collision.time * 16)
    assert frames[when - 1, y, x, 0] > 150 > frames[when - 1, y, x, 2]
    assert frames[when, y, x, 2] > 150 > frames[when, y, x, 0]


def test_a_mouth_opens_for_five_and_rests_between_words():
    scene = describe(0, 1, difficulty=0.0, talking=1.0)
    words = (Word("five", 1.0, 1.5),)
    scene = replace(scene, highlight=None, collision=None, talk=replace(scene.talk, seen=words))
    frames = render_frames(scene, 96, 16.0).astype(int)
    half = int(96 * 0.1)
    x, y = int(96 * scene.talk.x), int(96 * scene.talk.y)
    dark = (frames[:, y - half : y + half, x - half : x + half].sum(-1) < 90).sum((1, 2))
    assert dark[:14].max() < 15 < 50 < dark[17:22].max()
