import colorsys

import pytest
import torch

from triptych.data.video import (
    Box,
    blur,
    cut,
    draw_box,
    draw_colours,
    finish_video,
    flip,
    jitter,
    needed_side,
    turn_hue,
)
from triptych.recipe import VideoTransform


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(frames: int = 2, height: int = 6, width: int = 8) -> torch.Tensor:
    return torch.randint(0, 256, (frames, height, width, 3), dtype=torch.uint8, generator=seeded())


def test_the_centre_crop_of_the_scaled_frame() -> None:
    # 320 x 240 scaled to a short side of 256, of which 224 are kept: 7/8 of the height, the same pixels of the width.
    box = draw_box(VideoTransform(size=224, resize=256), 320, 240, seeded())
    assert (box.left, box.top, box.width, box.height) == pytest.approx((55 / 320, 15 / 240, 210 / 320, 210 / 240))
    assert needed_side(box, VideoTransform(size=224, resize=256), 320, 240) == 256
    squash = draw_box(VideoTransform(size=32, crop="squash"), 320, 240, seeded())
    assert squash == Box(0.0, 0.0, 1.0, 1.0)


def test_three_crops_stand_along_the_longer_side() -> None:
    transform = VideoTransform(size=240)
    assert [draw_box(transform, 320, 240, seeded(), place).left * 320 for place in (0.0, 0.5, 1.0)] == [0, 40, 80]
    assert [draw_box(transform, 240, 320, seeded(), place).top * 320 for place in (0.0, 0.5, 1.0)] == [0, 40, 80]


def test_random_crops_reach_all_places_and_stay_inside() -> None:
    boxes = [draw_box(VideoTransform(size=64, resize=128, crop="random"), 100, 200, seeded(s)) for s in range(300)]
    assert all(0 <= box.left <= 0.5 and 0 <= box.top <= 0.75 for box in boxes)
    assert max(box.top for box in boxes) > 0.74 and min(box.left for box in boxes) < 0.01


def test_resized_crops_have_the_area_and_aspect_asked_for() -> None:
    transform = VideoTransform(size=64, crop="random_resized", area=(0.3, 0.6), aspect=(0.5, 2.0))
    for seed in range(300):
        box = draw_box(transform, 320, 240, seeded(seed))
        assert 0.3 - 1e-9 <= box.width * box.height <= 0.6 + 1e-9
        assert 0.5 - 1e-9 <= box.width * 320 / (box.height * 240) <= 2.0 + 1e-9
        assert 0 <= box.left <= 1 - box.width + 1e-9 and 0 <= box.top <= 1 - box.height + 1e-9
    tall = draw_box(transform.model_copy(update={"area": (0.9, 1.0), "aspect": (2.0, 2.0)}), 100, 1000, seeded())
    assert tall.width == 1.0 and tall.height * 1000 == pytest.approx(50)


def test_cut_takes_the_pixels_of_the_box() -> None:
    frames = picture()
    assert torch.equal(cut(frames, Box(0.25, 0.0, 0.5, 4 / 6), 4), frames[:, 0:4, 2:6])
    assert torch.equal(
        cut(frames[:, :, :1].expand(-1, -1, 8, -1), Box(0.0, 0.0, 1.0, 1.0), 6)[:, :, 0], frames[:, :, 0]
    )


def test_cut_scales_down_without_aliasing() -> None:
    stripes = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    stripes[:, :, ::2] = 200
    small = cut(stripes, Box(0.0, 0.0, 1.0, 1.0), 16)
    assert small[:, :, 2:-2].float().sub(100).abs().max() <= 4


def test_all_frames_of_a_clip_are_treated_alike() -> None:
    transform = VideoTransform(size=16, flip=0.5, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.2, grayscale=0.2,
                               blur=0.5)  # fmt: skip
    still = picture(1, 16, 16).expand(3, -1, -1, -1)
    for seed in range(20):
        draws = {name: value[None] for name, value in draw_colours(transform, seeded(seed)).items()}
        out = finish_video(still[None], draws, transform)[0]
        assert torch.equal(out[0], out[1]) and torch.equal(out[0], out[2])


def test_a_clip_does_not_depend_on_the_others_of_its_batch() -> None:
    transform = VideoTransform(size=16, flip=0.5, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.2, jitter=0.8,
                               grayscale=0.2, blur=0.5)  # fmt: skip
    video = torch.randint(0, 256, (6, 2, 16, 16, 3), dtype=torch.uint8, generator=seeded())
    each = [draw_colours(transform, seeded(seed)) for seed in range(6)]
    together = finish_video(video, {name: torch.stack([d[name] for d in each]) for name in each[0]}, transform)
    for row in range(6):
        alone = finish_video(video[row : row + 1], {name: value[None] for name, value in each[row].items()}, transform)
        torch.testing.assert_close(alone[0], together[row], atol=1e-6, rtol=0)


def test_draws_have_the_probabilities_and_ranges_of_the_transform() -> None:
    transform = VideoTransform(size=8, flip=0.5, brightness=0.4, hue=0.1, jitter=0.8, grayscale=0.2, blur=0.5)
    draws = [draw_colours(transform, seeded(seed)) for seed in range(2000)]

    def share(name: str) -> float:
        return sum(bool(d[name]) for d in draws) / len(draws)

    assert share("flip") == pytest.approx(0.5, abs=0.04)
    assert share("grayscale") == pytest.approx(0.2, abs=0.03)
    assert share("blur") == pytest.approx(0.5, abs=0.04)
    assert sum(float(d["hue"]) == 0 for d in draws) / len(draws) == pytest.approx(0.2, abs=0.03)
    factors = torch.stack([d["brightness"] for d in draws])
    assert 0.6 <= factors.min() < 0.62 and 1.38 < factors.max() <= 1.4
    sigmas = torch.stack([d["blur"] for d in draws if d["blur"] > 0])
    assert 0.1 <= sigmas.min() < 0.12 and 1.98 < sigmas.max() <= 2.0


def test_the_ranges_of_pixels() -> None:
    video = torch.tensor([0, 255, 51], dtype=torch.uint8).expand(1, 1, 2, 2, 3)
    plain = VideoTransform(size=2)
    draws = {name: value[None] for name, value in draw_colours(plain, seeded()).items()}
    got = finish_video(video, draws, plain)[0, 0, 0, 0].tolist()
    assert got == pytest.approx([(0 - 0.485) / 0.229, (1 - 0.456) / 0.224, (0.2 - 0.406) / 0.225], abs=1e-5)
    unit = finish_video(video, draws, VideoTransform(size=2, pixels="unit"))[0, 0, 0, 0]
    assert unit.tolist() == pytest.approx([0, 1, 0.2])
    raw = finish_video(video, draws, VideoTransform(size=2, pixels="raw255"))[0, 0, 0, 0]
    assert raw.tolist() == [0, 255, 51]
    grey = VideoTransform(size=2, pixels="raw255", grayscale=1.0)
    draws = {name: value[None] for name, value in draw_colours(grey, seeded()).items()}
    assert finish_video(video, draws, grey)[0, 0, 0, 0].tolist() == pytest.approx([0.587 * 255 + 0.114 * 51] * 3)


def test_candidates_share_the_draws_of_their_row() -> None:
    transform = VideoTransform(size=4, flip=0.5)
    video = torch.randint(0, 256, (2, 3, 2, 4, 4, 3), dtype=torch.uint8, generator=seeded())
    draws = {name: torch.stack([value, value]) for name, value in draw_colours(transform, seeded()).items()}
    draws["flip"] = torch.tensor([True, False])
    out = finish_video(video, draws, transform.model_copy(update={"pixels": "raw255"}))
    assert torch.equal(out[0], video[0].flip(3).float()) and torch.equal(out[1], video[1].float())


def test_flip_mirrors_left_and_right() -> None:
    video = torch.arange(12.0).view(1, 1, 1, 4, 3)
    assert torch.equal(flip(video, torch.tensor([True]))[0, 0, 0, 0], video[0, 0, 0, 3])


def test_jitter_by_hand() -> None:
    one, zero = torch.ones(1), torch.zeros(1)
    video = torch.tensor([[0.2, 0.4, 0.6], [0.4, 0.4, 0.4]]).view(1, 1, 1, 2, 3)
    bright = jitter(video, 2 * one, one, one, zero)
    assert bright.flatten().tolist() == pytest.approx([0.4, 0.8, 1.0, 0.8, 0.8, 0.8])
    # luma of the first pixel 0.0598 + 0.2348 + 0.0684 = 0.363, of the second 0.4: mean 0.3815
    flat = jitter(video, one, zero, one, zero)
    assert flat.flatten().tolist() == pytest.approx([0.3815] * 6)
    pale = jitter(video, one, one, 0.5 * one, zero)
    assert pale[0, 0, 0, 0].tolist() == pytest.approx([(0.2 + 0.363) / 2, (0.4 + 0.363) / 2, (0.6 + 0.363) / 2])
    same = jitter(video, one, one, one, zero)
    torch.testing.assert_close(same, video)


def test_hue_turns_as_in_colorsys() -> None:
    video = torch.rand(3, 1, 4, 4, 3, generator=seeded())
    turns = torch.tensor([0.3, -0.2, 0.0])
    out = turn_hue(video, turns)
    for row, turn in enumerate(turns.tolist()):
        for pixel, got in zip(video[row].reshape(-1, 3).tolist(), out[row].reshape(-1, 3).tolist(), strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
            assert got == pytest.approx(colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value), abs=1e-5)
    grey = torch.full((1, 1, 2, 2, 3), 0.4)
    torch.testing.assert_close(turn_hue(grey, torch.tensor([0.4])), grey)


def test_blur_spreads_a_point_as_a_gaussian() -> None:
    video = torch.zeros(2, 1, 41, 41, 3)
    video[:, :, 20, 20] = 1
    out = blur(video, torch.tensor([1.0, 0.0]))
    weights = torch.exp(-(torch.arange(-2, 3).float() ** 2) / 2)
    weights /= weights.sum()
    torch.testing.assert_close(out[0, 0, 18:23, 18:23, 1], weights[:, None] * weights[None])
    assert torch.equal(out[1], video[1])
    flat = torch.full((1, 1, 20, 20, 3), 0.3)
    torch.testing.assert_close(blur(flat, torch.tensor([2.0])), flat)
