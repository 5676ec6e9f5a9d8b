import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from triptych.api import manifests
from triptych.errors import TriptychError, UsageError
from triptych.media import faces
from triptych.media.collection import Rows
from triptych.media.faces import (
    FORMS,
    MEAN_FACE,
    MOUTH,
    POINTS,
    STABLE,
    Cropping,
    cut_box,
    fill_gaps,
    place_crops,
    read_landmarks,
    similarity,
    warp,
)
from triptych.media.recording import Recording
from triptych.media.write import write_video


def _face(middle: tuple[float, float] = (129.31, 157.82)) -> np.ndarray:
    """Return landmarks that lie where the mean face has them, lips all in one point."""
    points = np.zeros((POINTS, 2))
    points[list(STABLE)] = MEAN_FACE
    points[MOUTH] = middle
    return points


def test_a_similarity_is_found_again() -> None:
    turned = math.radians(20)
    linear = 1.7 * np.array([[math.cos(turned), -math.sin(turned)], [math.sin(turned), math.cos(turned)]])
    source = np.array([[0.0, 0.0], [3.0, 1.0], [1.0, 4.0], [5.0, 2.0]])
    found = similarity(source, source @ linear.T + np.array([7.0, -2.0]))
    np.testing.assert_allclose(found, np.concatenate([linear, [[7.0], [-2.0]]], axis=1), atol=1e-12)


def test_points_that_are_no_similarity_are_fitted_in_least_squares() -> None:
    source = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    target = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 1.0]])

    def error(matrix: np.ndarray) -> float:
        return float(((source @ matrix[:, :2].T + matrix[:, 2] - target) ** 2).sum())

    best = similarity(source, target)
    for change in np.eye(4):
        for step in (-0.01, 0.01):
            a, b, x, y = np.array([best[0, 0], best[1, 0], *best[:, 2]]) + step * change
            assert error(np.array([[a, -b, x], [b, a, y]])) > error(best)


def test_the_crop_of_the_mean_face_lies_where_the_specification_has_it() -> None:
    (matrix,) = place_crops(_face()[None], FORMS["mouth"])
    # Columns 81 to 176 and rows 110 to 205 of the canvas.
    np.testing.assert_allclose(matrix @ [0, 0, 1], [81, 110], atol=1e-9)
    np.testing.assert_allclose(matrix @ [95, 95, 1], [176, 205], atol=1e-9)
    (matrix,) = place_crops(_face()[None], FORMS["face"])
    # FakeOut's targets: the base of the nose lies at (111.82, 142.30) of the crop.
    np.testing.assert_allclose(matrix @ [111.82, 142.30, 1], MEAN_FACE[0], atol=1e-9)


def test_a_larger_turned_and_moved_face_gives_the_same_crop() -> None:
    picture = torch.randint(0, 255, (256, 256, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.avg_pool2d(picture.permute(2, 0, 1)[None].float(), 9, 1, 4)[0].permute(1, 2, 0)
    smooth = ((smooth - smooth.min()) / (smooth.max() - smooth.min()) * 255).byte()
    (matrix,) = place_crops(_face()[None], FORMS["mouth"])
    wanted = warp(smooth, matrix, 96)
    assert torch.equal(wanted, smooth[110:206, 81:177])
    turned = math.radians(10)
    linear = 1.5 * np.array([[math.cos(turned), -math.sin(turned)], [math.sin(turned), math.cos(turned)]])
    shift = np.array([90.0, 5.0])
    back = np.linalg.inv(linear)
    larger = warp(smooth, np.concatenate([back, (-back @ shift)[:, None]], axis=1), 500)
    (matrix,) = place_crops((_face() @ linear.T + shift)[None], FORMS["mouth"])
    assert (warp(larger, matrix, 96).float() - wanted.float()).abs().mean() < 2


def test_what_lies_outside_the_picture_is_black() -> None:
    picture = torch.full((100, 100, 3), 200, dtype=torch.uint8)
    found = warp(picture, np.array([[1.0, 0, -48], [0, 1, 0]]), 96)
    assert (found[:, :47] == 0).all() and (found[:, 48:] == 200).all()


def test_frames_are_smoothed_forwards_and_the_last_ones_share_a_similarity() -> None:
    count, window = 30, FORMS["mouth"].smoothing
    sizes = 1 + np.arange(count) ** 2 / 100
    growing = np.stack([_face() * size for size in sizes])
    maps = place_crops(growing, FORMS["mouth"])
    for frame in range(count):
        first = min(frame, count - window)
        mean = sizes[first : first + window].mean()
        np.testing.assert_allclose(maps[frame, :, :2], mean * np.eye(2), atol=1e-9)
        mouth = np.array([129.31, 157.82]) * sizes[frame]  # that of the frame itself
        corner = np.clip(np.round(mouth / mean) - 48, 0, 160)
        np.testing.assert_allclose(maps[frame] @ [0, 0, 1], corner * mean, atol=1e-6)


def test_the_crop_stays_in_the_canvas() -> None:
    (matrix,) = place_crops(_face((300.0, 10.0))[None], FORMS["mouth"])
    np.testing.assert_allclose(matrix @ [0, 0, 1], [160, 0], atol=1e-9)


def test_frames_without_a_face_are_filled_in() -> None:
    points = np.full((6, POINTS, 2), np.nan)
    points[1], points[4] = 10.0, 40.0
    filled = fill_gaps(points, "clip")
    assert filled[:, 33, 0].tolist() == [10, 10, 20, 30, 40, 40]
    with pytest.raises(TriptychError, match=r"clip: no face is found in any of its 6 pictures\."):
        fill_gaps(np.full((6, POINTS, 2), np.nan), "clip")


def test_a_box_becomes_a_square_inside_the_picture() -> None:
    picture = torch.zeros(60, 100, 3, dtype=torch.uint8)
    picture[20:40, 70:100] = 255
    assert (cut_box(picture, (0.7, 1 / 3, 1.0, 2 / 3), 15)[3:12] == 255).all()
    assert cut_box(picture, (0, 0, 1, 1), 30).shape == (30, 30, 3)


# ------------------------------------------------------------ as a command


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two clips of ten pictures a second, in which a white square stands in the lower right."""
    folder = tmp_path / "source"
    frames = torch.zeros(20, 64, 96, 3, dtype=torch.uint8)
    frames[:, 32:64, 64:96] = 255
    for name in ("one", "two"):
        write_video(folder / f"{name}.mp4", frames, 10.0, torch.zeros(1, 32_000), 16_000)
    lines = ["path,mouth", 'one.mp4,"[0.6667, 0.5, 1.0, 1.0]"', 'two.mp4,"[0.0, 0.0, 0.3333, 0.5]"']
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder


def _pictures(manifest: Path | None) -> list[torch.Tensor]:
    assert manifest is not None
    found = []
    for row in Rows.open(manifest):
        with row.whole_file() as recording:
            assert recording.probe.fps == 25 and (recording.probe.width, recording.probe.height) == (96, 96)
            assert recording.timeline.streams["audio"].end == pytest.approx(2.0, abs=0.1)
            found.append(recording.frames([0.0, 1.9]).float().mean(dim=(1, 2, 3)))
    return found


def test_boxes_of_a_column_are_cut_out_of_every_recording(source: Path, tmp_path: Path) -> None:
    manifest = manifests.prepare(source / "manifest.csv", tmp_path / "out", crop="mouth", landmarks="mouth", workers=1)
    white, black = _pictures(manifest)
    assert white.min() > 235 and black.max() < 20


def test_landmarks_of_a_folder_are_used(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "landmarks"
    folder.mkdir()
    # A face of an eighth of the mean face's size, whose mouth lies in the middle of the white square.
    points = np.tile((_face() - np.array([129.31, 157.82])) / 8 + np.array([80, 48]), (50, 1, 1))
    np.save(folder / "one.npy", points)
    np.save(folder / "two.npy", points[:20])
    out = tmp_path / "out"
    manifest = manifests.prepare(source, out, crop="mouth", landmarks=str(folder), workers=1)
    (white,) = _pictures(manifest)
    assert white.min() > 235
    told = (out / "quarantine.csv").read_text()
    assert "two.npy has the shape (20, 68, 2); 50 frames at 25 a second want (50, 68, 2)." in told


def test_a_recording_without_a_face_is_set_aside(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Blind:
        def find(self, picture: np.ndarray) -> np.ndarray | None:
            return None

    monkeypatch.setitem(faces.DETECTORS, "dlib", Blind)
    faces.open_detector.cache_clear()
    with pytest.raises(TriptychError, match="no face is found"):
        manifests.prepare(source, tmp_path / "out", crop="mouth", workers=1)
    faces.open_detector.cache_clear()


def test_wrong_requests_are_told(source: Path, tmp_path: Path) -> None:
    table, out = source / "manifest.csv", tmp_path / "out"
    for options, message in (
        ({"crop": "mouth", "landmarks": "nose"}, "it is none of dlib, mediapipe, no folder, no column"),
        ({"crop": "mouth", "landmarks": "0,0,1,1", "short_side": 64}, "has its own size and frame rate"),
        ({"landmarks": "mouth"}, "give --crop mouth or --crop face"),
    ):
        with pytest.raises(UsageError, match=message):
            manifests.prepare(table, out, **options)  # type: ignore[arg-type]
    with pytest.raises(TriptychError, match="cannot be read as an array of landmarks"):
        read_landmarks(table, 3, 25.0)


def test_a_detector_that_is_not_installed_is_told_how_to_get(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dlib", None)
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    faces.open_detector.cache_clear()
    for look in (lambda: faces.open_detector("dlib"), faces.default_detector):
        with pytest.raises(UsageError, match=r"pip install 'triptych\[faces\]'"):
            look()
    faces.open_detector.cache_clear()


def test_the_module_imports_no_detector() -> None:
    script = (
        "import triptych.media.faces, sys; assert not {'dlib', 'mediapipe', 'face_recognition_models'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env=os.environ | {"TRIPTYCH_NO_SHAPE_CHECKS": "1"})


@pytest.mark.parametrize("name", faces.DETECTORS)
def test_detectors_find_a_talking_face(name: str, data_dir: Path) -> None:
    """A man whose mouth lies about (0.44, 0.75) of the picture in this clip."""
    pytest.importorskip(name)
    with Recording(data_dir / "grid_s1" / "clips" / "bbaf2n.mp4") as recording:
        picture = recording.frames([1.0])[0].numpy()
        found = faces.open_detector(name).find(picture)
        assert found is not None
        middle = found[MOUTH].mean(axis=0) / [picture.shape[1], picture.shape[0]]
        np.testing.assert_allclose(middle, [0.44, 0.755], atol=0.02)
        assert faces.open_detector(name).find(np.zeros_like(picture)) is None
        crop = next(Cropping("mouth", name).crops(recording, {}, end=0.1))
        red = crop[44:56, 36:60].float().mean(dim=(0, 1))
        assert red[0] > red[1] + 30  # lips are redder than skin
