"""Real recordings through the workers' side and the device's."""

import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from triptych.data.clips import Item, Look, collate, decode, seeded
from triptych.data.loader import Loader
from triptych.data.spans import Piece, Span
from triptych.data.text import Tokenizer
from triptych.data.windows import draw_windows
from triptych.media.collection import Rows
from triptych.media.recording import Recording
from triptych.recipe import (
    Aligned,
    AudioTransform,
    BatchSpec,
    GlobalAndLocal,
    Grid,
    SequenceTransform,
    StreamSpec,
    TextTransform,
    TokenizerSpec,
    TwoWindows,
    VideoTransform,
    Viewing,
)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def rows(data_dir: Path) -> Rows:
    return Rows.open(data_dir / "grid_s1" / "manifest.csv").select(range(8))


@pytest.fixture
def recording(rows: Rows) -> Iterator[Recording]:
    with rows.recording(0) as opened:
        yield opened


def video(size: int, **kwargs: Any) -> StreamSpec:
    return StreamSpec(transform=VideoTransform(size=size, **kwargs), rate=8.0)


def look_at(recording: Recording, viewing: Viewing, seed: int = 0) -> tuple[list[Look], list[dict[str, Any]]]:
    drawn = draw_windows(recording.timeline, viewing, seeded(seed))
    assert drawn is not None
    pairs = enumerate(zip(drawn.views, viewing.views, strict=True))
    looks = [Look(spans, view, (seed, number)) for number, (spans, view) in pairs]
    return looks, decode(recording, looks, viewing, None)


def test_frames_are_those_of_the_recording_at_their_times(recording: Recording) -> None:
    looks, clips = look_at(recording, Viewing(windows=Aligned(seconds=1.0), views=({"video": video(192)},)))
    (span,) = looks[0].spans["video"]
    assert span.times is not None and span.times.tolist() == pytest.approx([span.start + k / 8 for k in range(8)])
    whole = recording.frames(span.times, short_side=192)
    assert torch.equal(clips[0]["video"].data, whole[:, :, 24:216])  # 240 x 192: the middle square


def test_a_recording_is_decoded_once_for_all_views(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    read = Recording.frames

    def counted(self: Recording, times: Tensor, short_side: int | None = None) -> Tensor:
        asked.append(len(times))
        return read(self, times, short_side)

    monkeypatch.setattr(Recording, "frames", counted)
    views = ({"video": video(64)}, {"video": video(96)}, {"video": video(32, crop="random_resized")})
    _, clips = look_at(recording, Viewing(windows=Aligned(seconds=1.0), views=views))
    assert asked == [8] and [clip["video"].data.shape[1] for clip in clips] == [64, 96, 32]
    _, far = look_at(recording, Viewing(windows=TwoWindows(seconds=1.0), views=views[:2]))
    assert len(asked) == 2 and len(far) == 2 and asked[1] <= 16


def test_small_crops_are_decoded_small(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    sides: list[int | None] = []
    read = Recording.frames

    def noted(self: Recording, times: Tensor, short_side: int | None = None) -> Tensor:
        sides.append(short_side)
        return read(self, times, short_side)

    monkeypatch.setattr(Recording, "frames", noted)
    look_at(recording, Viewing(windows=Aligned(seconds=1.0), views=({"video": video(56, resize=64, crop="random")},)))
    look_at(recording, Viewing(windows=Aligned(seconds=1.0), views=({"video": video(224, resize=256)},)))
    assert sides == [64, 192]  # never larger than the file


def test_scaling_in_two_steps_stays_near_scaling_in_one(recording: Recording) -> None:
    window = Aligned(seconds=1.0)
    _, small = look_at(recording, Viewing(windows=window, views=({"video": video(48)},)))
    _, both = look_at(recording, Viewing(windows=window, views=({"video": video(48)}, {"video": video(192)})))
    difference = small[0]["video"].data.float() - both[0]["video"].data.float()
    assert difference.abs().mean() < 4


def test_sound_is_that_of_the_recording_and_mono(recording: Recording) -> None:
    spec = StreamSpec(transform=AudioTransform(front_end="waveform"), rate=16_000.0)
    short = spec.model_copy(update={"seconds": 0.5})
    viewing = Viewing(windows=GlobalAndLocal(seconds=2.0), views=({"audio": spec}, {"audio": short}))
    looks, clips = look_at(recording, viewing)
    for look, clip in zip(looks, clips, strict=True):
        (span,) = look.spans["audio"]
        direct = recording.waveform(span.start, span.end, 16_000.0).mean(dim=0)
        assert clip["audio"].data.shape == direct.shape and direct.abs().max() > 0.01
        # Decoded in one go, they may lie apart by less than a sample.
        assert (clip["audio"].data - direct).abs().mean() < 0.05 * direct.abs().mean()


def test_precomputed_vectors_come_with_their_times(tmp_path: Path, data_dir: Path) -> None:
    np.savez(tmp_path / "f.npz", vectors=np.arange(12.0).reshape(6, 2), times=np.arange(6) / 2)
    path = data_dir / "grid_s1" / "clips" / "bbaf2n.mp4"
    with Recording(path, sequences={"s3d": tmp_path / "f.npz"}) as opened:
        view = {"s3d": StreamSpec(transform=SequenceTransform(steps=4))}
        _, clips = look_at(opened, Viewing(windows=Aligned(seconds=1.0, place="start"), views=(view,)))
        clip = clips[0]["s3d"]
        assert clip.length == 2 and clip.data[:2].tolist() == [[0, 1], [2, 3]] and not clip.data[2:].any()
        assert clip.times is not None and clip.times.tolist() == [0.0, 0.5, 0.0, 0.0]


def _vectors(tmp_path: Path, view: dict[str, StreamSpec], start: float, end: float) -> dict[str, list[float]]:
    """Return the first value of the vectors that a window reads: 0, 1, ... at 1 (slow) and at 1.5 a second (fast)."""
    np.savez(tmp_path / "slow.npz", vectors=np.arange(20.0)[:, None] * [1, 0])
    np.savez(tmp_path / "fast.npz", vectors=np.arange(30.0)[:, None] * [1, 0], times=np.arange(30) / 1.5)
    files = {name: tmp_path / f"{name}.npz" for name in ("slow", "fast")}
    with Recording(tmp_path / "none.mp4", sequences=files) as opened:
        window = (Span(start, end, pieces=(Piece(0, start, end),)),)
        looks = [Look(dict.fromkeys(view, window), view, (0,))]
        (found,) = decode(opened, looks, Viewing(windows=Aligned(), views=(view,)), None)
    return {name: clip.data[: int(clip.length), 0].tolist() for name, clip in found.items()}


def test_vectors_of_two_rates_stand_side_by_side(tmp_path: Path) -> None:
    """The nearest of n vectors in the place i of m is the one at floor(i n / m) (everything-at-once, section 3)."""
    view = {
        "slow": StreamSpec(transform=SequenceTransform(steps=12, like="fast")),
        "fast": StreamSpec(transform=SequenceTransform(steps=12)),
    }
    found = _vectors(tmp_path, view, 2.0, 12.0)
    assert found["fast"] == list(range(3, 15))
    assert found["slow"] == [2 + i * 10 // 15 for i in range(12)]
    whole = {
        name: StreamSpec(transform=spec.transform.model_copy(update={"steps": None})) for name, spec in view.items()
    }
    assert [len(x) for x in _vectors(tmp_path, whole, 2.0, 12.0).values()] == [15, 15]
    absent = {"slow": StreamSpec(transform=SequenceTransform(like="other"))}
    assert _vectors(tmp_path, absent, 2.0, 12.0) == {"slow": []}


@pytest.mark.parametrize(("fit", "wanted"), [("cut", [0, 1, 2, 3]), ("nearest", [0, 2, 5, 7]), ("max", [2, 4, 7, 9])])
def test_more_vectors_than_steps(tmp_path: Path, fit: Any, wanted: list[float]) -> None:
    view = {"slow": StreamSpec(transform=SequenceTransform(steps=4, fit=fit))}
    assert _vectors(tmp_path, view, 0.0, 10.0) == {"slow": wanted}
    unit = {"slow": StreamSpec(transform=SequenceTransform(steps=4, fit=fit, normalize=True))}
    assert _vectors(tmp_path, unit, 10.0, 12.0) == {"slow": [1.0, 1.0]}


@pytest.mark.parametrize("short", ["hold", "loop", "zero", "skip"])
def test_a_still_is_shown_whatever_the_time(tmp_path: Path, short: Any) -> None:
    Image.new("RGB", (40, 30), (200, 0, 0)).save(tmp_path / "red.png")
    with Recording(tmp_path / "red.png") as opened:
        spec = video(16).model_copy(update={"short": short})
        _, clips = look_at(opened, Viewing(windows=Aligned(seconds=1.0), views=({"video": spec},)))
        assert clips[0]["video"].length == 8 and (clips[0]["video"].data[..., 0] > 190).all()
        native = spec.model_copy(update={"rate": None})
        _, clips = look_at(opened, Viewing(windows=Aligned(), views=({"video": native},)))
        assert clips[0]["video"].data.shape == (1, 16, 16, 3)


def test_sound_files_have_no_picture(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes((np.sin(np.arange(8000)) * 9000).astype("<i2").tobytes())
    view = {
        "video": video(16).model_copy(update={"required": False}),
        "audio": StreamSpec(transform=AudioTransform(mels=8), rate=8000.0),
    }
    loader = Loader(Rows.open(tmp_path), Viewing(windows=Aligned(seconds=0.5), views=(view,)), workers=0)
    (batch,) = loader.sweep()
    assert batch.views[0]["video"].length.tolist() == [0] and batch.views[0]["video"].data.shape == (1, 4, 16, 16, 3)
    assert batch.views[0]["audio"].length.tolist() == [51]


def test_sound_at_its_own_rate_may_be_missing(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), (200, 0, 0)).save(tmp_path / "red.png")
    view = {
        "video": video(16),
        "audio": StreamSpec(transform=AudioTransform(front_end="waveform"), required=False),
    }
    (batch,) = Loader(Rows.open(tmp_path), Viewing(windows=Aligned(seconds=0.5), views=(view,)), workers=0).sweep()
    assert batch.views[0]["audio"].length.tolist() == [0] and batch.views[0]["video"].length.tolist() == [4]


def test_the_published_recipe_of_lava_is_expressible(rows: Rows) -> None:
    specs = {
        "video": StreamSpec(
            transform=VideoTransform(size=224, resize=256, crop="random", flip=0.5),
            seconds=1.6,
            rate=10.0,
            at="inside",
            short="zero",
        ),
        "audio": StreamSpec(
            transform=AudioTransform(hop=0.02, steps=512, noise=0.01),
            seconds=10.24,
            rate=16_000.0,
            at="beginning",
            short="zero",
        ),
        "text": StreamSpec(transform=TextTransform(steps=128, prompt="A video of {}")),
    }
    tokenizer = Tokenizer.train(rows.captions(), TokenizerSpec(kind="unigram"))
    train = Viewing(windows=Aligned(seconds=2.0, place="centre"), views=(specs,))
    loader = Loader(rows, train, BatchSpec(rows=2), tokenizer=tokenizer, workers=0)
    view = next(iter(loader.epoch(0))).views[0]
    assert view["video"].data.shape == (2, 16, 224, 224, 3) and view["video"].length.tolist() == [16, 16]
    assert bool((view["video"].span[:, 0] >= 0.48).all()) and bool((view["video"].span[:, 0] <= 0.9).all())
    assert view["audio"].data.shape == (2, 512, 80) and view["audio"].span[:, 0].tolist() == [0.0, 0.0]
    assert view["audio"].length.tolist() == pytest.approx([150, 150], abs=2)  # 3 s at 20 ms
    assert view["text"].data.shape == (2, 128) and view["text"].length.min() > 5
    test = Viewing(windows=Grid(seconds=2.0, count=1), views=(specs,))
    (batch,) = Loader(rows, test, tokenizer=tokenizer, workers=0).sweep(rows=[0, 1])
    assert batch.views[0]["video"].data.shape == (2, 1, 16, 224, 224, 3)


def test_workers_and_this_process_decode_alike(rows: Rows) -> None:
    view = {
        "video": video(32, crop="random_resized", flip=0.5, brightness=0.4, hue=0.1),
        "audio": StreamSpec(transform=AudioTransform(mels=16, gain=3.0, noise=0.1, time_mask=10), rate=16_000.0),
    }
    viewing = Viewing(windows=Aligned(seconds=1.0), views=(view, view))
    with (
        Loader(rows, viewing, BatchSpec(rows=4), workers=0) as alone,
        Loader(rows, viewing, BatchSpec(rows=4), workers=2) as several,
    ):
        for one, other in zip(alone.epoch(0), several.epoch(0), strict=True):
            for a, b in zip(one.views, other.views, strict=True):
                assert torch.equal(a["video"].data, b["video"].data) and torch.equal(a["audio"].data, b["audio"].data)


def test_windows_that_a_row_does_not_have_are_zeros() -> None:
    told = [{"windows": torch.ones(count, 2), "start": torch.tensor(0.5)} for count in (1, 3)]
    batch = collate([Item(row, (), labels) for row, labels in enumerate(told)])
    assert batch.drawn["windows"].sum(dim=2).tolist() == [[2, 0, 0], [2, 2, 2]]
    assert batch.drawn["start"].tolist() == [0.5, 0.5]
