"""What a recording of the toy world contains: drawn purely from (seed, index), before a pixel or a sample exists."""

import colorsys
from dataclasses import dataclass, replace

import numpy as np

from triptych.toyworld.motion import LIT, MOTIONS, PERIODS, REACH, TICK, Thing, events, pose
from triptych.toyworld.speech import DIGITS, Voice, Word

KINDS = ("disc", "square", "triangle", "star", "ring", "cross", "moon", "heart")

COLOURS = {
    "red": (0.90, 0.12, 0.12),
    "orange": (1.00, 0.55, 0.05),
    "yellow": (0.97, 0.92, 0.15),
    "green": (0.12, 0.70, 0.18),
    "cyan": (0.15, 0.85, 0.90),
    "blue": (0.12, 0.22, 0.90),
    "purple": (0.62, 0.15, 0.80),
    "white": (0.97, 0.97, 0.97),
}

SIZES = {"small": (0.160, 660.0), "medium": (0.220, 330.0), "large": (0.300, 165.0)}
"""Half-width as a fraction of the picture's side, and pitch in Hz."""

BACKGROUNDS = ("plain", "gradient", "stripes", "checks", "blobs")

SPLITS = ("train",) * 13 + ("val", "test")
"""The splits of fifteen recordings in a row, in an order that depends on the seed."""


@dataclass(frozen=True)
class Collision:
    """A second thing strikes the first one, which breaks or takes on the striker's colour.

    ``striker`` stands where it is at ``time``; it arrives along ``direction`` (a unit vector) and recoils.
    """

    time: float
    striker: Thing
    direction: tuple[float, float]
    effect: str


@dataclass(frozen=True)
class Talk:
    """A talking mouth: ``seen`` are the words its lips form, ``heard`` those of the sound; alike unless tampered with.

    ``x``, ``y`` and ``radius`` place the face, as fractions of the side.
    """

    seen: tuple[Word, ...]
    heard: tuple[Word, ...]
    voice: Voice
    x: float
    y: float
    radius: float
    skin: tuple[float, float, float]
    lips: tuple[float, float, float]


@dataclass(frozen=True)
class Scenery:
    """What is to be ignored in the picture.

    ``colours`` are two of the background; ``drift`` the camera's way (amplitude x, y as fractions of the side, turns
    per second, phase); ``light`` its flicker (amplitude, turns per second, phase); ``tint`` a gain per channel;
    ``noise`` a standard deviation (full scale 1).
    """

    background: str
    colours: tuple[tuple[float, float, float], tuple[float, float, float]]
    scale: float
    angle: float
    drift: tuple[float, float, float, float]
    light: tuple[float, float, float]
    tint: tuple[float, float, float]
    noise: float
    distractors: tuple[Thing, ...]


@dataclass(frozen=True)
class Acoustics:
    """What is to be ignored in the sound.

    ``level`` and ``noise`` are amplitudes, ``tilt`` an exponent of frequency, ``bands`` random gains in decibels at
    octaves from 125 Hz, ``echo`` a delay in seconds and a gain, ``elsewhere`` a sound whose source is not seen.
    """

    level: float
    noise: float
    tilt: float
    bands: tuple[float, ...]
    echo: tuple[float, float]
    elsewhere: Thing | None
    elsewhere_level: float


@dataclass(frozen=True)
class Scene:
    """Everything about one recording; seconds are its own, from 0 to ``duration``."""

    seed: int
    index: int
    split: str
    duration: float
    main: Thing
    collision: Collision | None
    talk: Talk | None
    highlight: tuple[float, float] | None
    scenery: Scenery
    acoustics: Acoustics
    tampered: str = "none"

    @property
    def events(self) -> list[float]:
        """Seconds of the impacts and turning points of the main thing, up to its breaking, and of the collision."""
        found = events(self.main, self.duration)
        if self.collision is None:
            return found
        if self.collision.effect == "break":
            found = [second for second in found if second < self.collision.time]
        return sorted({*found, self.collision.time})


def describe(seed: int, index: int, difficulty: float = 1.0, talking: float = 0.25) -> Scene:
    """Draw recording ``index`` of the world ``seed``.

    Args:
        seed: Names the world.
        index: Number of the recording, from 0; it does not depend on how many there are.
        difficulty: Scale of all nuisance, from 0 (none) to 2; the causes stay the same.
        talking: Share of recordings with a talking mouth.
    """
    rng = np.random.default_rng([seed, index])
    duration = round(float(rng.triangular(3.0, 3.6, 6.0)) / TICK) * TICK
    turn = len(SPLITS)
    split = SPLITS[int(np.random.default_rng([seed, index // turn, turn]).permutation(turn)[index % turn])]
    corner = (int(rng.choice([-1, 1])), int(rng.choice([-1, 1])))
    has_talk, has_collision, has_highlight = (rng.random(3) < (talking, 0.25, 0.2)).tolist()
    main = _thing(rng)
    if has_talk:
        # The face takes a corner; the thing keeps to the opposite one.
        x, y = (0.5 - side * (abs(at - 0.5) + 0.08) for side, at in zip(corner, (main.x, main.y), strict=True))
        main = replace(main, x=x, y=y)
    collision = _collision(rng, main, duration)
    talk = _talk(rng, duration, corner)
    start = _tick(rng.uniform(0.3, duration - 1.2))
    nuisance = np.random.default_rng([seed, index, 1])
    return Scene(
        seed=seed,
        index=index,
        split=split,
        duration=duration,
        main=main,
        collision=collision if has_collision else None,
        talk=talk if has_talk else None,
        highlight=(start, start + 0.75) if has_highlight else None,
        scenery=_scenery(nuisance, difficulty),
        acoustics=_acoustics(nuisance, difficulty),
    )


def tamper(scene: Scene) -> Scene:
    """A forged copy of a talking scene: other words are heard in another voice, or other words are seen."""
    if scene.talk is None:
        raise ValueError("only a talking scene can be tampered with")
    rng = np.random.default_rng([scene.seed, scene.index, 2])
    truth = [word.text for word in scene.talk.heard]
    words = _words(rng, scene.duration)
    while [word.text for word in words] == truth:
        words = _words(rng, scene.duration)
    if rng.random() < 0.5:
        return replace(scene, tampered="sound", talk=replace(scene.talk, heard=words, voice=_voice(rng)))
    red, green, blue = scene.talk.lips
    pale = (red * 0.92, green, blue)
    return replace(scene, tampered="mouth", talk=replace(scene.talk, seen=words, lips=pale))


def _tick(second: float) -> float:
    return round(second / TICK) * TICK


def _shade(rng: np.random.Generator, colour: str) -> tuple[float, float, float]:
    hue, saturation, value = colorsys.rgb_to_hsv(*COLOURS[colour])
    hue += rng.uniform(-0.02, 0.02)
    dimmest = 0.65 if saturation > 0.1 else 0.85  # a dim white would be grey
    return colorsys.hsv_to_rgb(hue % 1.0, saturation * rng.uniform(0.7, 1.0), value * rng.uniform(dimmest, 1.0))


def _thing(rng: np.random.Generator) -> Thing:
    kind, motion, colour, size = (str(rng.choice(list(names))) for names in (KINDS, MOTIONS, COLOURS, SIZES))
    radius, pitch = SIZES[size]
    radius *= rng.uniform(0.94, 1.06)
    margin_x, margin_y = (min(reach + 0.85 * radius, 0.48) for reach in REACH[motion])
    period = int(rng.integers(PERIODS[motion][0], PERIODS[motion][1] + 1))
    if motion == "shake":
        period = 2 * (period // 2)  # its turning points are half a period apart, on the grid
    return Thing(
        kind=kind,
        colour=colour,
        size=size,
        motion=motion,
        x=rng.uniform(margin_x, 1 - margin_x),
        y=rng.uniform(margin_y, 1 - margin_y),
        radius=radius,
        tilt=rng.uniform(-0.45, 0.45),
        rgb=_shade(rng, colour),
        pitch=pitch * 2 ** rng.uniform(-0.25, 0.25),
        period=period * TICK,
        phase=int(rng.integers(period)) * TICK,
    )


def _collision(rng: np.random.Generator, main: Thing, duration: float) -> Collision:
    time = _tick(duration * rng.uniform(0.5, 0.75))
    if main.motion == "blink":  # it must be there to be struck
        turns = np.floor((time - main.phase) / main.period)
        time = float(main.phase + turns * main.period + round(0.5 * LIT * main.period / TICK) * TICK)
    colour = str(rng.choice([name for name in COLOURS if name != main.colour]))
    angle = rng.uniform(0, 2 * np.pi)
    direction = (float(np.cos(angle)), float(np.sin(angle)))
    at = pose(main, np.array([time]))
    radius = 0.085 * rng.uniform(0.95, 1.05)
    gap = 0.8 * (float(at.width[0]) + radius)
    striker = replace(
        _thing(rng),
        colour=colour,
        size="small",
        x=float(at.x[0]) - gap * direction[0],
        y=float(at.y[0]) - gap * direction[1],
        radius=radius,
        rgb=_shade(rng, colour),
    )
    return Collision(time, striker, direction, str(rng.choice(["recolour", "break"])))


def _words(rng: np.random.Generator, duration: float) -> tuple[Word, ...]:
    words: list[Word] = []
    second = rng.uniform(0.15, 0.4)
    while True:
        length = rng.uniform(0.42, 0.56)
        if second + length > duration - 0.1:
            return tuple(words)
        text = str(rng.choice(list(DIGITS)))
        words.append(Word(text, round(second, 3), round(second + length, 3)))
        second += length + rng.uniform(0.08, 0.25)


def _voice(rng: np.random.Generator) -> Voice:
    tract = rng.uniform(0.9, 1.15)
    return Voice(float(110 * 2 ** (6 * (tract - 0.9) + rng.uniform(-0.3, 0.3))), tract)


def _talk(rng: np.random.Generator, duration: float, corner: tuple[int, int]) -> Talk:
    words = _words(rng, duration)
    tone = rng.uniform(0.45, 1.0)
    skin = (0.98 * tone, 0.78 * tone * rng.uniform(0.93, 1.03), 0.64 * tone * rng.uniform(0.88, 1.05))
    lips = (0.80 * tone, 0.30 * tone, 0.32 * tone * rng.uniform(0.9, 1.2))
    return Talk(
        seen=words,
        heard=words,
        voice=_voice(rng),
        x=0.5 + 0.27 * corner[0] + rng.uniform(-0.02, 0.02),
        y=0.5 + 0.27 * corner[1] + rng.uniform(-0.02, 0.02),
        radius=0.22 * rng.uniform(0.93, 1.07),
        skin=skin,
        lips=lips,
    )


def _distractor(rng: np.random.Generator) -> Thing:
    """Something that stands about: it lacks only the dark line round what counts."""
    return replace(_thing(rng), x=rng.uniform(0, 1), y=rng.uniform(0, 1), radius=rng.uniform(0.04, 0.09))


def _scenery(rng: np.random.Generator, difficulty: float) -> Scenery:
    hue, value = rng.uniform(0, 1), rng.uniform(0.25, 0.85)
    colours = []
    for _ in range(2):
        vivid = min(1.0, difficulty * rng.uniform(0.6, 1.0))
        bright = 0.55 + min(1.0, difficulty) * (value - 0.55) + 0.15 * rng.uniform(-1, 1) * min(1.0, difficulty)
        colours.append(colorsys.hsv_to_rgb(hue, vivid, float(np.clip(bright, 0.1, 0.95))))
        hue = (hue + rng.uniform(0, 1)) % 1.0
    pair = (colours[0], colours[1])
    background = str(rng.choice(BACKGROUNDS))
    drift = rng.uniform(0.0, 0.09, 2) * difficulty
    tint = 1 + rng.uniform(-0.4, 0.4, 3) * difficulty
    return Scenery(
        background=background if difficulty > 0 else "plain",
        colours=pair,
        scale=rng.uniform(0.12, 0.35),
        angle=rng.uniform(0, np.pi),
        drift=(drift[0], drift[1], rng.uniform(0.1, 0.4), rng.uniform(0, 1)),
        light=(0.4 * difficulty * rng.uniform(0, 1), rng.uniform(0.1, 0.6), rng.uniform(0, 1)),
        tint=(tint[0], tint[1], tint[2]),
        noise=0.02 * difficulty * rng.uniform(0.3, 1.0),
        distractors=tuple(_distractor(rng) for _ in range(rng.binomial(4, min(1.0, 0.7 * difficulty)))),
    )


def _acoustics(rng: np.random.Generator, difficulty: float) -> Acoustics:
    elsewhere = _thing(rng) if rng.random() < 0.35 * difficulty else None
    return Acoustics(
        level=0.6 * 10 ** (-0.6 * difficulty * rng.uniform(0, 1)),
        noise=0.03 * difficulty * rng.uniform(0.1, 1.0),
        tilt=0.5 * difficulty * rng.uniform(-1, 1),
        bands=tuple((6 * difficulty * rng.uniform(-1, 1, 7)).tolist()),
        echo=(rng.uniform(0.06, 0.2), 0.35 * min(1.0, difficulty) * rng.uniform(0, 1)),
        elsewhere=elsewhere,
        elsewhere_level=0.2 * difficulty * rng.uniform(0.3, 1.0),
    )
