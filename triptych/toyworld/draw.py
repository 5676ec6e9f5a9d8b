"""From a scene to its pictures: shapes as signed distances, drawn for all frames at once in a small box round each."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from triptych.toyworld.motion import Pose, Thing, pose
from triptych.toyworld.speech import mouth
from triptych.toyworld.world import Collision, Scene, Scenery, Talk

BORDER = 0.02
"""Width of the dark line round everything that counts, as a fraction of the side."""


class Layer(NamedTuple):
    """A small box over a run of frames: what it adds, what it hides, and where it lies.

    ``light`` times ``rgb`` is added to what ``opacity`` leaves of the picture below; ``corner`` is the box's upper left
    pixel (x, y) in each frame; the run begins at frame ``first``.
    """

    first: int
    light: Float[np.ndarray, "frames height width"]
    opacity: Float[np.ndarray, "frames height width"]
    rgb: Float[np.ndarray, "frames 3"]
    corner: Int[np.ndarray, "frames 2"]


def distance(
    kind: str, x: Float[np.ndarray, "frames height width"], y: Float[np.ndarray, "frames height width"]
) -> Float[np.ndarray, "frames height width"]:
    """Signed distance to the outline of a shape of about unit radius: below 0 inside."""
    across, down = np.abs(x), np.abs(y)
    outside: Float[np.ndarray, "frames height width"]
    match kind:
        case "disc":
            outside = np.hypot(x, y) - 0.95
        case "square":
            outside = np.maximum(across, down) - 0.83
        case "triangle":
            outside = np.maximum(0.866 * across - 0.5 * y - 0.55, y - 0.65)
        case "star":
            radius, angle = np.hypot(x, y), np.arctan2(x, -y)
            part = np.abs((angle / (2 * np.pi / 5) + 0.5) % 1.0 - 0.5) * (2 * np.pi / 5)
            # The straight edge from a tip (radius 1.1) to a notch (radius 0.5), 36 degrees apart.
            tip, notch = np.array([1.1, 0.0]), 0.5 * np.array([np.cos(np.pi / 5), np.sin(np.pi / 5)])
            normal = np.array([notch[1], tip[0] - notch[0]]) / np.hypot(notch[1], tip[0] - notch[0])
            along, aside = radius * np.cos(part), radius * np.sin(part)
            outside = normal[0] * (along - 1.1) + normal[1] * aside
        case "ring":
            outside = np.abs(np.hypot(x, y) - 0.70) - 0.26
        case "cross":
            outside = np.minimum(np.maximum(across - 1.0, down - 0.32), np.maximum(down - 1.0, across - 0.32))
        case "moon":
            outside = np.maximum(np.hypot(x + 0.1, y) - 1.0, 0.78 - np.hypot(x - 0.42, y))
        case _:
            lobes = np.hypot(across - 0.46, y + 0.32) - 0.52
            # The tangents from the tip (0, 0.98) to the lobes.
            point = np.maximum(0.747 * across + 0.664 * y - 0.651, -y - 0.05)
            outside = np.minimum(np.minimum(lobes, point), np.hypot(x, y) - 0.3)
    return outside


def render_frames(scene: Scene, size: int, fps: float) -> UInt8[np.ndarray, "frames height width 3"]:
    """The pictures of ``scene``: ``size`` pixels square, ``duration * fps`` of them, frame k shown at ``k / fps``."""
    rng = np.random.default_rng([scene.seed, scene.index, 4])
    times = np.arange(round(scene.duration * fps)) / fps
    scenery = scene.scenery
    turn = 2 * np.pi * (scenery.drift[2] * times + scenery.drift[3])
    shift = np.stack([scenery.drift[0] * np.sin(turn), scenery.drift[1] * np.cos(1.3 * turn)], axis=1) * size
    layers = _happenings(scene, times, size, shift)
    wall = _backdrop(scenery, size)
    margin = (wall.shape[1] // 2 - size) // 2
    corner = np.round(2 * (margin - shift)).astype(int)
    grain = (255 * scenery.noise * rng.standard_normal((3, size + 32, size + 32), np.float32)).astype(np.float32)
    offsets = rng.integers(0, 32, (len(times), 2))
    bright = 255 * (1 + scenery.light[0] * np.sin(2 * np.pi * (scenery.light[1] * times + scenery.light[2])))
    gain = (bright[:, None] * np.array(scenery.tint)).astype(np.float32)[..., None, None]
    frames = np.empty((len(times), size, size, 3), np.uint8)
    for k in range(len(times)):
        left, top = corner[k]
        frame = wall[:, top : top + 2 * size : 2, left : left + 2 * size : 2].copy()
        for layer in layers:
            _lay(frame, layer, k)
        frame *= gain[k]
        down, right = offsets[k]
        frame += grain[:, down : down + size, right : right + size]
        np.clip(frame, 0, 255, out=frame)
        frames[k] = frame.transpose(1, 2, 0)
    return frames


def _lay(frame: Float[np.ndarray, "3 height width"], layer: Layer, k: int) -> None:
    """Draw frame ``k`` of ``layer`` onto ``frame``; channels come first, for long rows are what numpy is quick at."""
    k -= layer.first
    if not 0 <= k < len(layer.corner):
        return
    x, y = layer.corner[k]
    high, wide = layer.opacity.shape[1:]
    top, bottom, left, right = max(0, -y), min(high, frame.shape[1] - y), max(0, -x), min(wide, frame.shape[2] - x)
    if top >= bottom or left >= right:
        return
    below = frame[:, y + top : y + bottom, x + left : x + right]
    below *= 1 - layer.opacity[k, top:bottom, left:right]
    below += layer.light[k, top:bottom, left:right] * layer.rgb[k][:, None, None]


def _grid(
    x: np.ndarray, y: np.ndarray, reach: float, size: int, shift: np.ndarray
) -> tuple[Float[np.ndarray, "frames height width"], Float[np.ndarray, "frames height width"], np.ndarray]:
    """A box of pixels round each centre: distances from it (pixels) to the right and down, and the box's corner."""
    side = 2 * int(np.ceil(reach * size + 1.5))
    centre = np.stack([x, y], axis=1) * size + shift
    corner = np.floor(centre).astype(int) - side // 2
    steps = np.arange(side) + 0.5
    right = (corner[:, :1] + steps - centre[:, :1])[:, None, :]
    down = (corner[:, 1:] + steps - centre[:, 1:])[:, :, None]
    shape = (len(x), side, side)
    return (
        np.broadcast_to(right, shape).astype(np.float32),
        np.broadcast_to(down, shape).astype(np.float32),
        corner,
    )


def _draw(
    thing: Thing,
    at: Pose,
    rgb: Float[np.ndarray, "frames 3"],
    size: int,
    shift: Float[np.ndarray, "frames 2"],
    border: float = BORDER,
) -> Layer:
    """A thing at its poses, over the frames from its first appearance to its last, with a dark line round it."""
    there = np.flatnonzero(at.visible)
    first, last = (there[0], there[-1] + 1) if len(there) else (0, 0)
    x, y, half_x, half_y, visible = (values[first:last] for values in at)
    reach = 1.15 * float(max(at.width.max(), at.height.max())) + border
    right, down, corner = _grid(x, y, reach, size, shift[first:last])
    wide, high = (np.maximum(half * size, 1).astype(np.float32)[:, None, None] for half in (half_x, half_y))
    right, down = right / wide, down / high
    turn_x, turn_y = np.float32(np.cos(thing.tilt)), np.float32(np.sin(thing.tilt))
    outside = distance(thing.kind, turn_x * right + turn_y * down, turn_x * down - turn_y * right)
    outside *= np.sqrt(wide * high)
    opacity = np.clip(0.5 + border * size - outside, 0, 1) * visible[:, None, None].astype(np.float32)
    light = opacity * np.clip(0.5 - outside, 0, 1) if border else opacity
    return Layer(int(first), light * (1 - 0.18 * np.clip(down, -1, 1)), opacity, rgb[first:last], corner)


def _stand(thing: Thing, times: np.ndarray) -> tuple[Pose, Float[np.ndarray, "frames 3"]]:
    """The pose and the colour of something that never moves."""
    x, y, half = (np.full(len(times), value) for value in (thing.x, thing.y, thing.radius))
    return Pose(x, y, half, half, np.ones(len(times), bool)), _paint(thing, times)


def _paint(thing: Thing, times: np.ndarray) -> Float[np.ndarray, "frames 3"]:
    return np.tile(np.array(thing.rgb, np.float32), (len(times), 1))


def _happenings(scene: Scene, times: np.ndarray, size: int, shift: np.ndarray) -> list[Layer]:
    """Everything that counts, from back to front."""
    main, collision = scene.main, scene.collision
    at, rgb = pose(main, times), _paint(main, times)
    layers: list[Layer] = []
    if collision and collision.effect == "recolour":
        rgb[times >= collision.time] = collision.striker.rgb
    if collision and collision.effect == "break":
        at = at._replace(visible=at.visible & (times < collision.time))
        layers += _pieces(main, collision, times, size, shift)
    layers.append(_draw(main, at, rgb, size, shift))
    if collision:
        since = times - collision.time
        way = np.where(since < 0, 1.6 * since, -0.7 * since)
        striker = collision.striker
        half = np.full(len(times), striker.radius)
        there = np.abs(since + 0.1) < 1.0
        fall = np.where(since > 0, 0.8 * since**2, 0)
        path = Pose(
            striker.x + way * collision.direction[0], striker.y + way * collision.direction[1] + fall, half, half, there
        )
        layers.append(_draw(striker, path, _paint(striker, times), size, shift))
    if scene.highlight:
        layers.append(_burst(scene.highlight, times, size, shift))
    if scene.talk:
        layers += _face(scene.talk, times, size)
    return layers


def _pieces(main: Thing, collision: Collision, times: np.ndarray, size: int, shift: np.ndarray) -> list[Layer]:
    """Five shards of what was struck, flying apart and falling."""
    at = pose(main, np.array([collision.time]))
    since = times - collision.time
    half = np.full(len(times), 0.42 * main.radius)
    forward = np.arctan2(collision.direction[1], collision.direction[0])
    shards = []
    for number in range(5):
        angle = forward + (number - 2) * 2 * np.pi / 5 + 0.2
        flight = 0.5 * main.radius + 0.30 * np.maximum(since, 0)
        x = at.x + np.cos(angle) * flight
        y = at.y + np.sin(angle) * flight + 0.22 * np.maximum(since, 0) ** 2
        shard = Pose(x, y, half, half, since >= 0)
        shape = Thing(**{**vars(main), "kind": "triangle", "tilt": angle})
        shards.append(_draw(shape, shard, _paint(main, times), size, shift))
    return shards


def _burst(span: tuple[float, float], times: np.ndarray, size: int, shift: np.ndarray) -> Layer:
    """A flash that fills the middle of the picture and a bright ring that runs outward."""
    there = np.flatnonzero((times >= span[0]) & (times < span[1]))
    centre = np.full(len(there), 0.5)
    right, down, corner = _grid(centre, centre, 0.5, size, shift[there])
    part = ((times[there] - span[0]) / (span[1] - span[0])).astype(np.float32)[:, None, None]
    ring = np.exp(-0.5 * ((np.hypot(right, down) / size - 0.5 * part) / 0.035) ** 2) * (1 - 0.5 * part)
    opacity = np.maximum(ring, 0.85 * np.exp(-(part**2) / 0.02))
    rgb = np.tile(np.array([1.0, 1.0, 0.8], np.float32), (len(there), 1))
    return Layer(int(there[0]) if len(there) else 0, opacity, opacity, rgb, corner)


def _face(talk: Talk, times: np.ndarray, size: int) -> list[Layer]:
    """The lower half of a face: skin, lips, and in the opening tongue and teeth. It does not drift with the camera."""
    still = np.zeros((len(times), 2))
    centre = [np.full(len(times), value) for value in (talk.x, talk.y)]
    pixel = np.float32(1 / (talk.radius * size))
    layers: list[Layer] = []

    def cover(mask: np.ndarray, rgb: tuple[float, float, float], corner: np.ndarray) -> None:
        layers.append(Layer(0, mask, mask, np.tile(np.array(rgb, np.float32), (len(times), 1)), corner))

    head = Thing("disc", "", "", "", talk.x, talk.y, talk.radius / 0.95, 0.0, talk.skin, 0.0, 1.0, 0.0)
    layers.append(_draw(head, *_stand(head, times), size, still))
    x, y, corner = _grid(centre[0], centre[1], 0.80 * talk.radius, size, still)
    x, y = x * pixel, y * pixel
    lips, width, teeth, tongue, tuck = mouth(talk.seen, times).astype(np.float32).T[..., None, None]
    half = 0.38 + 0.36 * width
    high = 0.48 * lips
    thick = 0.20 - 0.06 * width

    def oval(across: np.ndarray, tall: np.ndarray, below: np.ndarray | float = 0.0) -> np.ndarray:
        """Opacity of an ellipse of these half-axes, ``below`` the middle of the mouth."""
        spread = np.sqrt((x / across) ** 2 + ((y - below) / tall) ** 2)
        inside: np.ndarray = np.clip(0.5 - (spread - 1) * np.minimum(across, tall) / pixel, 0, 1)
        return inside

    cover(oval(half, high + thick), talk.lips, corner)
    opening = oval(np.maximum(half - 0.10, 0.05), np.maximum(high, 0.02))
    cover(opening, (0.12, 0.03, 0.04), corner)
    cover(opening * tongue * oval(half * 0.7, high * 0.7 + 0.02, 0.5 * high), (0.92, 0.45, 0.50), corner)
    # Teeth show between the lips; when the lower lip is tucked they bite on it.
    inside = oval(np.maximum(half - 0.12, 0.05), np.maximum(high, 0.10 * teeth + 0.01))
    row = np.clip(0.5 - (np.abs(y + 0.35 * high) - 0.06 - 0.05 * teeth) / pixel, 0, 1)
    cover(np.minimum(1.5 * teeth, 1) * inside * row, (0.97, 0.96, 0.92), corner)
    cover(tuck * oval(half, np.full_like(half, 0.11), 0.16), talk.skin, corner)
    cover(tuck * oval(half * 0.75, np.full_like(half, 0.09), 0.02), (0.97, 0.96, 0.92), corner)
    return layers


def _backdrop(scenery: Scenery, size: int) -> Float[np.ndarray, "3 height width"]:
    """The background at twice the resolution, wide enough for the camera's way."""
    margin = int(np.ceil(max(scenery.drift[:2]) * size)) + 1
    steps = (np.arange(2 * (size + 2 * margin), dtype=np.float32) / 2 - margin) / size
    x, y = steps[None, :], steps[:, None]
    turn_x, turn_y = np.cos(scenery.angle), np.sin(scenery.angle)
    along, aside = turn_x * x + turn_y * y, turn_x * y - turn_y * x
    wave = 2 * np.pi / scenery.scale
    match scenery.background:
        case "plain":
            mix = np.zeros_like(along)
        case "gradient":
            mix = np.clip(0.5 + 0.6 * (along - 0.5 * (turn_x + turn_y)), 0, 1)
        case "stripes":
            mix = np.clip(0.5 + 2 * np.sin(wave * along), 0, 1)
        case "checks":
            mix = np.clip(0.5 + 3 * np.sin(wave * along) * np.sin(wave * aside), 0, 1)
        case _:
            clouds = np.sin(0.6 * wave * along + 3 * np.sin(4 * aside)) + np.sin(0.8 * wave * aside + 5 * along)
            mix = 0.5 + 0.25 * clouds
    first, second = (np.array(colour, np.float32)[:, None, None] for colour in scenery.colours)
    wall: Float[np.ndarray, "3 height width"] = (first + mix * (second - first)).astype(np.float32)
    middle = np.full((1, 2), 2.0 * margin)
    for thing in scenery.distractors:
        _lay(wall, _draw(thing, *_stand(thing, np.zeros(1)), 2 * size, middle, 0.0), 0)
    return wall
