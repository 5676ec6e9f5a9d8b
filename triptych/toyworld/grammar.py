"""Captions: a small grammar with synonyms, and what each caption truly says."""

import numpy as np

from triptych.toyworld.world import Scene

WORDS = {
    "disc": ("disc", "disk"),
    "square": ("square", "box"),
    "triangle": ("triangle", "wedge"),
    "star": ("star", "asterisk"),
    "ring": ("ring", "hoop"),
    "cross": ("cross", "plus"),
    "moon": ("moon", "crescent"),
    "heart": ("heart", "valentine"),
    "red": ("red", "crimson"),
    "orange": ("orange", "amber"),
    "yellow": ("yellow", "golden"),
    "green": ("green", "emerald"),
    "cyan": ("cyan", "turquoise"),
    "blue": ("blue", "navy"),
    "purple": ("purple", "violet"),
    "white": ("white", "pale"),
    "small": ("small", "tiny"),
    "medium": ("middle-sized", "medium"),
    "large": ("large", "big"),
}
"""Each value and its two words; the first is the commoner."""

VERBS = {
    "bounce": ("bounces", "bouncing", "hops", "hopping"),
    "slide": ("slides", "sliding", "glides", "gliding"),
    "circle": ("circles", "circling", "orbits", "orbiting"),
    "shake": ("shakes", "shaking", "trembles", "trembling"),
    "pulse": ("pulses", "pulsing", "swells", "swelling"),
    "blink": ("blinks", "blinking", "flickers", "flickering"),
}
"""Each motion: a verb as 'it ...' and 'it is ...', and a synonym in both forms."""

SCENES = {
    "plain": "in front of a bare wall",
    "gradient": "in front of a fading wall",
    "stripes": "in front of stripes",
    "checks": "in front of a chequered wall",
    "blobs": "in front of clouds",
}

ABOUT_NOTHING = (
    "hello and welcome back to my channel",
    "do not forget to subscribe",
    "part two of last week's upload",
    "recorded on a tuesday afternoon",
    "thanks for watching see you soon",
    "new video every friday",
    "this one took me ages to edit",
    "comments are open below",
)


def write_caption(scene: Scene) -> tuple[str, str, tuple[str, ...]]:
    """The caption of a scene.

    One in ten recordings of the ``train`` split has none, one in ten one about nothing; every one of the other splits
    has a true one, so that retrieval there is well defined.

    Returns:
        The caption; whether there is one (``yes``, ``missing`` or ``nothing``: about nothing); and the names of the
        columns of the manifest that a reader of it knows the values of.
    """
    rng = np.random.default_rng([scene.seed, scene.index, 5])
    luck = rng.random()
    if scene.split == "train" and luck < 0.10:
        return "", "missing", ()
    if scene.split == "train" and luck < 0.20:
        return str(rng.choice(ABOUT_NOTHING)), "nothing", ()

    def say(value: str) -> str:
        return WORDS[value][int(rng.random() < 0.35)]

    main = scene.main
    says = ["kind", *(name for name in ("colour", "size", "motion") if rng.random() < 0.93)]
    article = str(rng.choice(["a", "the"]))
    adjectives = [say(value) for name, value in (("size", main.size), ("colour", main.colour)) if name in says]
    noun = " ".join([article, *adjectives, say(main.kind)])
    form, synonym = int(rng.integers(2)), int(rng.random() < 0.35)
    doing = ("appears", "can be seen")[form]
    if "motion" in says:
        doing = ("", "is ")[form] + VERBS[main.motion][2 * synonym + form]
    text = f"{noun} {doing}"
    if rng.random() < 0.25:
        says.append("background")
        text += f" {SCENES[scene.scenery.background]}"
    if scene.collision and rng.random() < 0.5:
        says.append("change")
        struck = f"{say(scene.collision.striker.colour)} {say(scene.collision.striker.kind)}"
        if scene.collision.effect == "break":
            text += f" until a {struck} breaks it"
        else:
            text += f" until a {struck} paints it {say(scene.collision.striker.colour)}"
    if scene.talk and rng.random() < 0.5:
        says.append("words")
        spoken = " ".join(word.text for word in scene.talk.heard)
        text += f" while {rng.choice(['someone says', 'a voice counts', 'a mouth says'])} {spoken}"
    for vowel in ("amber", "asterisk", "emerald", "orange"):
        text = f" {text}".replace(f" a {vowel}", f" an {vowel}")[1:]
    return text, "yes", tuple(says)
