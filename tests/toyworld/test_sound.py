from dataclasses import replace

import numpy as np
import pytest

from triptych.toyworld.motion import TICK
from triptych.toyworld.sound import render_sound
from triptych.toyworld.speech import DIGITS, Voice, Word, mouth, speak
from triptych.toyworld.world import describe


def quiet(index):
    return replace(describe(0, index, difficulty=0.0, talking=0.0), highlight=None, collision=None)


def with_main(scene, **changes):
    return replace(scene, main=replace(scene.main, **changes))


def spectrum(sound, rate=16000):
    return np.abs(np.fft.rfft(sound * np.hanning(len(sound)))), np.fft.rfftfreq(len(sound), 1 / rate)


def test_sound_is_deterministic_bounded_and_as_long_as_the_recording():
    scene = describe(0, 2)
    sound = render_sound(scene, 16000)
    assert sound.dtype == np.float32 and len(sound) == round(scene.duration * 16000)
    assert 0.01 < np.abs(sound).max() <= 1
    assert (sound == render_sound(scene, 16000)).all()


def test_an_impact_is_heard_at_the_sample_of_its_event():
    scene = with_main(quiet(2), motion="bounce", kind="disc", period=14 * TICK, phase=5 * TICK)
    sound = np.abs(render_sound(scene, 16000))
    for second in scene.events[:-1]:
        at = round(second * 16000)
        assert sound[at : at + 320].max() > 10 * sound[max(0, at - 320) : at].max()


def test_pitch_follows_the_thing():
    for pitch in (165.0, 660.0):
        heights, hertz = spectrum(render_sound(with_main(quiet(6), kind="disc", motion="blink", pitch=pitch), 16000))
        assert hertz[heights.argmax()] == pytest.approx(pitch, rel=0.02)


def test_timbre_follows_the_kind():
    def share(kind, ratio):
        heights, hertz = spectrum(render_sound(with_main(quiet(6), kind=kind, motion="blink", pitch=330.0), 16000))
        near = np.abs(hertz - ratio * 330) < 15
        return (heights[near] ** 2).sum() / (heights**2).sum()

    assert share("square", 3) > 0.1 > 10 * share("square", 2)
    assert share("star", 4) > 0.3 and share("disc", 1) > 0.9 and share("heart", 1.5) > 0.15


def test_what_is_broken_falls_silent():
    scene = next(
        scene
        for scene in (describe(0, index, 0.0, 0.0) for index in range(300))
        if scene.collision and scene.collision.effect == "break" and scene.duration - scene.collision.time > 1.2
    )
    sound = np.abs(render_sound(replace(scene, highlight=None), 16000))
    at = round(scene.collision.time * 16000)
    assert sound[at + 16000 :].max() < 0.01 * sound[at : at + 800].max()


def test_every_digit_moves_the_mouth_in_its_own_way():
    times = np.linspace(0.0, 0.5, 9)
    shapes = {text: mouth((Word(text, 0.0, 0.5),), times) for text in DIGITS}
    for text, shape in shapes.items():
        assert shape.min() >= 0 and shape.max() <= 1
        assert all(np.abs(shape - other).max() > 0.3 for name, other in shapes.items() if name != text)


def test_the_voice_is_heard_while_the_mouth_moves_and_vowels_have_their_formants():
    words = (Word("four", 0.5, 1.0), Word("three", 1.5, 2.0))
    sound = speak(words, Voice(120.0, 1.0), 2.5, 16000, np.random.default_rng(0))
    level = np.abs(sound).reshape(-1, 800).max(1)
    assert level[:9].max() < 1e-6 and level[22:29].max() < 1e-6
    assert level[12:18].max() > 0.1 and level[33:38].max() > 0.05

    def share(start, end, low, high):
        heights, hertz = spectrum(sound[int(start * 16000) : int(end * 16000)])
        return (heights[(hertz > low) & (hertz < high)] ** 2).sum() / (heights**2).sum()

    assert share(1.85, 1.95, 2000, 3300) > 3 * share(0.68, 0.82, 2000, 3300)  # iy against ao
    assert share(0.50, 0.58, 3000, 8000) > 0.5  # f
