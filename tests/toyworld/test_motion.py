from dataclasses import replace

import numpy as np
import pytest

from triptych.toyworld.motion import MOTIONS, TICK, Thing, events, notes, pose

THING = Thing("disc", "red", "small", "bounce", 0.5, 0.5, 0.1, 0.0, (1.0, 0.0, 0.0), 440.0, 10 * TICK, 3 * TICK)


def test_a_bounce_is_lowest_and_flattest_at_its_events():
    seconds = events(THING, 3.0)
    assert seconds == [0.1875, 0.8125, 1.4375, 2.0625, 2.6875]
    times = np.arange(0, 3, TICK)
    at = pose(THING, times)
    touching = np.isin(times, seconds)
    assert at.y[touching] == pytest.approx(0.5 + 0.18)
    assert at.y[~touching].max() < 0.68 - 0.03
    assert at.height[touching].max() < at.height[~touching].min()


def test_a_circle_is_highest_and_a_pulse_collapses_at_its_events():
    circle = replace(THING, motion="circle")
    assert pose(circle, np.array(events(circle, 3.0))).y == pytest.approx(0.5 - 0.18)
    pulse = replace(THING, motion="pulse")
    seconds = np.array(events(pulse, 3.0))[1:]
    before, after = pose(pulse, seconds - TICK).width, pose(pulse, seconds).width
    assert (before > 1.3 * after).all()


def test_a_shake_turns_round_at_its_events():
    shake = replace(THING, motion="shake", period=8 * TICK)
    seconds = np.array(events(shake, 3.0))
    assert np.diff(seconds) == pytest.approx(4 * TICK)
    assert np.abs(pose(shake, seconds).x - 0.5) == pytest.approx(0.10)


def test_a_blinking_thing_is_there_exactly_while_it_sounds():
    blink = replace(THING, motion="blink")
    times = np.arange(0, 3, TICK)
    heard = np.zeros(len(times), bool)
    for note in notes(blink, 3.0):
        heard |= (times >= note.start) & (times < note.start + note.length)
    assert (pose(blink, times).visible == heard).all()


@pytest.mark.parametrize("motion", MOTIONS)
def test_events_lie_on_the_grid_and_begin_or_crown_a_note(motion):
    thing = replace(THING, motion=motion, period=12 * TICK)
    seconds = events(thing, 4.0)
    assert seconds and all((second / TICK) % 1 == 0 for second in seconds)
    found = notes(thing, 4.0)
    marks = [note.start + (note.length / 2 if note.shape == "swell" else 0) for note in found]
    assert set(seconds) <= {round(mark, 4) for mark in marks}
