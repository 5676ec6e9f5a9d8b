"""Crops round the mouth or the face, by the landmarks of a detector that is chosen by name (speech-common, section 1).

A similarity lays the eyes' corners and the base of the nose, averaged over some frames, on those of a mean face; the
crop is cut out of the picture warped so. Detectors are extras: this module imports without any.
"""

import importlib
import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from triptych.errors import TriptychError, UsageError
from triptych.media.recording import Recording

Kind = Literal["mouth", "face"]
"""What is cut out."""

POINTS = 68
"""Landmarks of a face, in the order of iBUG 300-W, which dlib's predictor has."""
STABLE = (33, 36, 39, 42, 45)
"""Base of the nose and corners of the eyes: what hardly moves in speech."""
MOUTH = slice(48, 68)
CANVAS = 256
"""Side of the square that the mean face lies in, pixels."""
MEAN_FACE = ((128.87, 137.30), (92.52, 94.37), (112.77, 94.94), (145.53, 94.53), (166.68, 93.57))
"""Where the stable points lie there: x and y."""


@dataclass(frozen=True)
class Form:
    """How a kind of crop is made."""

    size: int
    """Side, pixels."""
    smoothing: int
    """Frames that landmarks are averaged over, from the current one on."""
    fps: float | None
    """Frames a second, to which the picture is resampled first; the file's own where None."""
    corner: tuple[float, float] | None
    """Left and top of the crop in the canvas; round the mouth of each frame where None."""


FORMS: dict[Kind, Form] = {
    "mouth": Form(size=96, smoothing=12, fps=25.0, corner=None),  # AV-HuBERT
    "face": Form(size=224, smoothing=5, fps=None, corner=(17.05, -5.0)),  # FakeOut
}


@runtime_checkable
class FaceLandmarker(Protocol):
    """Finds the landmarks of the largest face in a picture."""

    def find(self, picture: UInt8[np.ndarray, "height width 3"]) -> Float[np.ndarray, "68 2"] | None:
        """Return x and y of each point in pixels (NaN: one that this detector does not know), None without a face."""
        ...


class Dlib:
    """dlib's frontal detector (after doubling the picture once) and 68-point predictor, as AV-HuBERT uses them.

    The authors turn to a convolutional detector where this one finds nothing, and take the last of several faces.
    """

    def __init__(self) -> None:
        dlib = _import("dlib", "dlib")
        package = importlib.util.find_spec("face_recognition_models")  # importing it needs what setuptools has no more
        if package is None or package.submodule_search_locations is None:
            raise _not_installed("dlib", "face_recognition_models")
        model = Path(next(iter(package.submodule_search_locations))) / "models/shape_predictor_68_face_landmarks.dat"
        self._detect = dlib.get_frontal_face_detector()
        self._predict = dlib.shape_predictor(str(model))

    def find(self, picture: UInt8[np.ndarray, "height width 3"]) -> Float[np.ndarray, "68 2"] | None:
        """Return the landmarks."""
        boxes = self._detect(picture, 1)
        if not boxes:
            return None
        shape = self._predict(picture, max(boxes, key=lambda box: box.area()))
        return np.array([(point.x, point.y) for point in shape.parts()], dtype=np.float64)


class MediaPipe:
    """MediaPipe's face mesh, of whose points some stand for those of the 68 that are needed."""

    STABLE = (2, 130, 243, 463, 359)
    MOUTH = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185)

    def __init__(self) -> None:
        mesh = _import("mediapipe", "mediapipe").solutions.face_mesh
        self._mesh = mesh.FaceMesh(static_image_mode=True, max_num_faces=1, refine_landmarks=True)

    def find(self, picture: UInt8[np.ndarray, "height width 3"]) -> Float[np.ndarray, "68 2"] | None:
        """Return the landmarks."""
        faces = self._mesh.process(np.ascontiguousarray(picture)).multi_face_landmarks
        if not faces:
            return None
        height, width = picture.shape[:2]
        mesh = np.array([(point.x * width, point.y * height) for point in faces[0].landmark])
        points = np.full((POINTS, 2), np.nan)
        points[list(STABLE)], points[MOUTH] = mesh[list(self.STABLE)], mesh[list(self.MOUTH)]
        return points


DETECTORS: dict[str, Callable[[], FaceLandmarker]] = {"dlib": Dlib, "mediapipe": MediaPipe}
"""By name."""


def _import(module: str, detector: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise _not_installed(detector, str(error)) from error


def _not_installed(detector: str, what: str) -> UsageError:
    return UsageError(
        f"The landmarks of '{detector}' cannot be had ({what}): pip install 'triptych[faces]' brings dlib, "
        "docs/speech.md tells of mediapipe; or give landmarks or boxes that you have."
    )


@lru_cache(maxsize=2)
def open_detector(name: str) -> FaceLandmarker:
    """Return a detector, loaded once a process.

    Raises:
        UsageError: If it is not installed.
    """
    return DETECTORS[name]()


def default_detector() -> str:
    """Return the name of the first detector that works here.

    Raises:
        UsageError: If none does.
    """
    for name in DETECTORS:
        with suppress(UsageError):
            open_detector(name)
            return name
    raise _not_installed("dlib", "no detector is installed")


# ---------------------------------------------------------------- where the landmarks come from


@dataclass(frozen=True)
class Cropping:
    """What is cut out of every recording, and by which landmarks."""

    kind: Kind
    landmarks: str
    """A detector's name; a folder of NAME.npy (``frames 68 2``, NaN where there is no face) for each NAME.mp4; four
    numbers (left, top, right and bottom of a fixed box, as shares of the sides); or a column with such a box."""

    def check(self, columns: tuple[str, ...]) -> None:
        """Check that the landmarks can be had.

        Raises:
            UsageError: If they cannot.
        """
        if self.landmarks in DETECTORS:
            open_detector(self.landmarks)
        elif not (Path(self.landmarks).is_dir() or self.landmarks in columns or _box(self.landmarks)):
            raise UsageError(
                f"--landmarks {self.landmarks}: it is none of {', '.join(DETECTORS)}, no folder, no column of the "
                "source, and no box of four numbers such as 0.2,0.5,0.8,0.9."
            )

    def crops(
        self, recording: Recording, row: Mapping[str, str], end: float = math.inf
    ) -> Iterator[UInt8[Tensor, "size size 3"]]:
        """Yield the crop of each picture, decoding the recording once or twice.

        Args:
            recording: One with video.
            row: Its row of the source, by column.
            end: Second at which to stop.

        Raises:
            TriptychError: If no face is found in any picture, or landmarks or box do not fit the recording.
        """
        form = FORMS[self.kind]
        fps = self.fps(recording)
        if self.landmarks not in DETECTORS and not Path(self.landmarks).is_dir():
            cell = row[self.landmarks] if self.landmarks in row else self.landmarks
            box = _box(cell)
            if box is None:
                raise TriptychError(f"{recording.name}: '{cell}' is no box of left, top, right and bottom.")
            for picture in recording.pictures(fps, end=end):
                yield cut_box(picture, box, form.size)
            return
        found = self._landmarks(recording, fps, end)
        for matrix, picture in zip(place_crops(found, form), recording.pictures(fps, end=end), strict=False):
            yield warp(picture, matrix, form.size)

    def fps(self, recording: Recording) -> float:
        """Return the frame rate of the crops."""
        return FORMS[self.kind].fps or float(round(recording.probe.fps))

    def _landmarks(self, recording: Recording, fps: float, end: float) -> Float[np.ndarray, "frames 68 2"]:
        if self.landmarks in DETECTORS:
            detector = open_detector(self.landmarks)
            nowhere = np.full((POINTS, 2), np.nan)
            each = [detector.find(picture.numpy()) for picture in recording.pictures(fps, end=end)]
            found = np.stack([nowhere if points is None else points for points in each])
        else:
            path = Path(self.landmarks) / f"{recording.path.stem}.npy"
            count = sum(1 for _ in recording.pictures(fps, short_side=16))
            found = read_landmarks(path, count, fps)
        return fill_gaps(found, recording.name)


def read_landmarks(path: Path, frames: int, fps: float) -> Float[np.ndarray, "frames 68 2"]:
    """Read landmarks that were found before.

    Raises:
        TriptychError: If there is no such file, or it does not hold 68 points of each of so many frames.
    """
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise TriptychError(f"{path} cannot be read as an array of landmarks: {error}.") from error
    if found.shape != (frames, POINTS, 2):
        raise TriptychError(
            f"{path} has the shape {found.shape}; {frames} frames at {fps:g} a second want {(frames, POINTS, 2)}."
        )
    return found.astype(np.float64)


def _box(text: str) -> tuple[float, float, float, float] | None:
    """Return the box that a cell holds (four numbers, as a JSON list or between commas or blanks), if it holds one."""
    parts = text.strip().strip("[]").replace(",", " ").split()
    try:
        left, top, right, bottom = map(float, parts)
    except ValueError:
        return None
    inside = 0 <= left < right <= 1 and 0 <= top < bottom <= 1
    return (left, top, right, bottom) if inside else None


# ---------------------------------------------------------------- from landmarks to crops


def fill_gaps(points: Float[np.ndarray, "frames 68 2"], name: str) -> Float[np.ndarray, "frames 68 2"]:
    """Return landmarks of all frames: linear between those with a face, the nearest before the first and after them.

    Points that a detector never gives stay NaN.

    Raises:
        TriptychError: If no frame has a face.
    """
    known = np.flatnonzero(~np.isnan(points[:, STABLE[0], 0]))
    if not len(known):
        raise TriptychError(f"{name}: no face is found in any of its {len(points)} pictures.")
    places = np.arange(len(points))
    flat = points.reshape(len(points), -1)
    filled = np.stack([np.interp(places, known, column[known]) for column in flat.T], axis=1)
    return filled.reshape(points.shape)


def place_crops(points: Float[np.ndarray, "frames 68 2"], form: Form) -> Float[np.ndarray, "frames 2 3"]:
    """Return for each frame the map from pixels of the crop to pixels of the picture.

    The similarity of a frame comes from the mean of its landmarks and of those of the frames after it; the last frames,
    which have too few after them, share one. The crop of a mouth lies round the mouth of the frame itself.

    Args:
        points: x and y of the landmarks, pixels.
        form: Of the crop.
    """
    window = min(form.smoothing, len(points))
    last = len(points) - window
    maps = np.empty((len(points), 2, 3))
    to_canvas = np.empty((2, 3))
    for frame in range(len(points)):
        if frame <= last:
            mean = points[frame : frame + window, list(STABLE)].mean(axis=0)
            to_canvas = similarity(mean, np.array(MEAN_FACE))
        linear, shift = to_canvas[:, :2], to_canvas[:, 2]
        if form.corner is None:
            half = form.size // 2
            middle = (points[frame, MOUTH] @ linear.T + shift).mean(axis=0)
            corner = np.clip(np.round(middle) - half, 0, CANVAS - form.size)
        else:
            corner = np.array(form.corner)
        back = np.linalg.inv(linear)
        maps[frame] = np.concatenate([back, (back @ (corner - shift))[:, None]], axis=1)
    return maps


def similarity(
    source: Float[np.ndarray, "points 2"], target: Float[np.ndarray, "points 2"]
) -> Float[np.ndarray, "2 3"]:
    """Return rotation, scale and shift that bring points nearest to others, in least squares (Umeyama 1991)."""
    x, y = source - source.mean(axis=0), target - target.mean(axis=0)
    norm = (x**2).sum()
    a = (x * y).sum() / norm
    b = (x[:, 0] * y[:, 1] - x[:, 1] * y[:, 0]).sum() / norm
    linear = np.array([[a, -b], [b, a]])
    return np.concatenate([linear, (target.mean(axis=0) - linear @ source.mean(axis=0))[:, None]], axis=1)


def warp(
    picture: UInt8[Tensor, "height width 3"], matrix: Float[np.ndarray, "2 3"], size: int
) -> UInt8[Tensor, "{size} {size} 3"]:
    """Return the square whose pixel (x, y) is the picture's at ``matrix`` (x, y, 1): bilinear, black outside."""
    place = torch.arange(size, dtype=torch.float64)
    y, x = torch.meshgrid(place, place, indexing="ij")
    at = torch.stack([x, y, torch.ones_like(x)], dim=-1) @ torch.from_numpy(matrix).T
    sides = at.new_tensor([picture.shape[1] - 1, picture.shape[0] - 1])
    grid = (2 * at / sides - 1).float()[None]
    channels = picture.permute(2, 0, 1)[None].float()
    found = functional.grid_sample(channels, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
    return found[0].round().clamp(0, 255).byte().permute(1, 2, 0)


def cut_box(
    picture: UInt8[Tensor, "height width 3"], box: tuple[float, float, float, float], size: int
) -> UInt8[Tensor, "{size} {size} 3"]:
    """Return the square round a box (shares of the sides), as large as its longer side, scaled."""
    height, width = picture.shape[:2]
    left, right, top, bottom = box[0] * width, box[2] * width, box[1] * height, box[3] * height
    side = max(1, min(round(max(right - left, bottom - top)), width, height))
    x = min(max(round((left + right - side) / 2), 0), width - side)
    y = min(max(round((top + bottom - side) / 2), 0), height - side)
    part = picture[y : y + side, x : x + side].permute(2, 0, 1)[None]
    scaled = functional.interpolate(part, (size, size), mode="bilinear", antialias=True)
    return scaled[0].permute(1, 2, 0).contiguous()
