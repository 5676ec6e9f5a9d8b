import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from triptych.data.loader import Loader
from triptych.data.mixing import Mix, draw_background, draw_mix, lay_babble, mix_noise, read_noise
from triptych.errors import TriptychError, UsageError
from triptych.media.collection import Rows
from triptych.media.write import write_video
from triptych.recipe import AudioTransform, Background, BatchSpec, Mixing, StreamSpec, Viewing, Whole, validate


def _loudness(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def test_noise_lies_under_the_sound_at_its_ratio() -> None:
    generator = torch.Generator().manual_seed(0)
    sound = 0.05 * torch.randn(2, 4000, generator=generator)
    noise = 0.3 * torch.randn(2, 900, generator=generator)
    mixed = mix_noise(sound, torch.tensor([4000, 4000]), noise, torch.tensor([0.0, 10.0]))
    for row, decibels in enumerate((0, 10)):
        under = mixed[row] - sound[row]
        assert 20 * math.log10(_loudness(sound[row]) / _loudness(under)) == pytest.approx(decibels, abs=1e-3)
        torch.testing.assert_close(under[:900] / under[:900].std(), noise[row] / noise[row].std(), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(under[:900], under[900:1800])  # short noise is repeated


def test_what_would_be_too_loud_is_made_quieter_as_a_whole() -> None:
    sound = torch.tensor([[0.9, -0.9, 0.9, -0.9]])
    mixed = mix_noise(sound, torch.tensor([4]), torch.tensor([[1.0, 0.5, 1.0, 0.5]]), torch.tensor([0.0]))
    assert mixed.max() == pytest.approx(32_767 / 32_768)
    loudness = 0.9 / math.sqrt((1 + 0.25) / 2)
    wanted = sound + loudness * torch.tensor([[1.0, 0.5, 1.0, 0.5]])
    torch.testing.assert_close(mixed, wanted * mixed.max() / wanted.max())


def test_padding_and_silence_stay_what_they_are() -> None:
    sound = torch.zeros(3, 100)
    sound[0, :40], sound[2] = 0.1, 0.1
    noise = torch.ones(3, 100)
    noise[2] = 0
    mixed = mix_noise(sound, torch.tensor([40, 100, 100]), noise, torch.zeros(3))
    assert (mixed[0, 40:] == 0).all() and mixed[0, :40].tolist() == pytest.approx([0.2] * 40)
    assert (mixed[1] == 0).all() and torch.equal(mixed[2], sound[2]) and mixed.isfinite().all()


def test_babble_is_what_the_others_say() -> None:
    time = torch.arange(1600) / 1600
    voices = torch.stack([0.1 * torch.sin(2 * math.pi * pitch * time) for pitch in (40, 90, 150)])
    decibels = torch.tensor([0.0, math.nan, 0.0])
    mixed = lay_babble(voices, torch.tensor([1600, 1600, 1600]), decibels, torch.tensor([0.1, 0.5, 0.7]))
    assert torch.equal(mixed[1], voices[1])
    pitches = torch.fft.rfft(mixed[0]).abs().topk(3).indices.sort().values
    assert pitches.tolist() == [40, 90, 150]
    assert _loudness(mixed[0] - voices[0]) == pytest.approx(_loudness(voices[0]), rel=1e-3)
    alone = lay_babble(voices[:1], torch.tensor([1600]), torch.tensor([0.0]), torch.tensor([0.3]))
    assert not torch.equal(alone, voices[:1]) and alone.isfinite().all()


def test_a_short_voice_goes_on_to_the_end() -> None:
    sound = torch.zeros(2, 100)
    sound[0], sound[1, :30] = 0.1, 0.2
    mixed = lay_babble(sound, torch.tensor([100, 30]), torch.zeros(2), torch.zeros(2))
    assert mixed[0].tolist() == pytest.approx([0.2] * 100)


def test_noise_is_laid_as_often_and_as_loud_as_asked() -> None:
    background = Background(probability=0.25, decibels=(-5, 5))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([draw_background(background, generator)["decibels"] for _ in range(4000)])
    laid = drawn[~drawn.isnan()]
    assert len(laid) / 4000 == pytest.approx(0.25, abs=0.02)
    values, counts = laid.unique(return_counts=True)
    assert values.tolist() == list(range(-5, 6)) and counts.min() > 0.6 * len(laid) / 11


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four recordings of half a second with tones, and in another folder one of noise and one without sound."""
    time = torch.arange(8000) / 16_000
    frames = torch.zeros(5, 32, 32, 3, dtype=torch.uint8)
    for number in range(4):
        tone = 0.1 * torch.sin(2 * math.pi * 200 * (number + 1) * time)[None]
        write_video(tmp_path / "clips" / f"{number}.mp4", frames, 10.0, tone)
    buzz = 0.3 * torch.sign(torch.sin(2 * math.pi * 1500 * time))[None]
    write_video(tmp_path / "noise" / "buzz.mp4", frames, 10.0, buzz)
    write_video(tmp_path / "mute" / "mute.mp4", frames, 10.0)
    return tmp_path


def _viewing(background: Background | None) -> Viewing:
    sound = AudioTransform(front_end="waveform", background=background)
    return Viewing(windows=Whole(), views=({"audio": StreamSpec(transform=sound, rate=16_000.0, short="zero")},))


def _sounds(folder: Path, background: Background | None, workers: int = 0) -> Tensor:
    rows = Rows.open(folder / "clips")
    with Loader(rows, _viewing(background), BatchSpec(rows=4), seed=3, workers=workers) as loader:
        batch = next(loader.epoch(0))
    return batch.views[0]["audio"].data[batch.rows.argsort()]


def test_noise_from_files_reaches_the_batch(folder: Path) -> None:
    clean = _sounds(folder, None)
    noisy = _sounds(folder, Background(source=str(folder / "noise"), probability=1.0, decibels=(0, 0)))
    for row in range(4):
        under = noisy[row] - clean[row]
        assert 20 * np.log10(_loudness(clean[row]) / _loudness(under)) == pytest.approx(0, abs=0.01)
        assert torch.fft.rfft(under[:7680]).abs().argmax() == pytest.approx(1500 * 7680 / 16_000, abs=2)
    never = _sounds(folder, Background(source=str(folder / "noise"), probability=0.0))
    assert torch.equal(never, clean)


def test_babble_of_the_batch_reaches_the_batch(folder: Path) -> None:
    clean, noisy = _sounds(folder, None), _sounds(folder, Background(probability=1.0))
    spectrum = torch.fft.rfft(noisy[0, :8000]).abs()
    assert all(spectrum[hertz // 2] > 50 for hertz in (200, 400, 600, 800)), spectrum[[100, 200, 300, 400]]
    assert _loudness(noisy[0] - clean[0]) == pytest.approx(_loudness(clean[0]), rel=1e-2)


def test_noise_without_sound_is_told(folder: Path) -> None:
    with pytest.raises(TriptychError, match=r"mute\.mp4 has no sound, and is to be noise"):
        read_noise(str(folder / "mute"), 1.0, 16_000.0, torch.Generator())


def _mix(partners: list[int], shares: list[float], *boxes: list[float]) -> Mix:
    return Mix(torch.tensor(partners), torch.tensor(shares), torch.tensor(boxes or [[0.0] * 4] * len(partners)))


def test_rows_are_blended_by_their_shares() -> None:
    mix = _mix([2, 1, 0], [0.25, 0.5, 1.0])
    x = torch.tensor([[0.0, 4.0], [2.0, 2.0], [8.0, 0.0]])
    assert mix.blend(x).tolist() == [[6.0, 1.0], [2.0, 2.0], [8.0, 0.0]]
    pictures = x[:, None, None, :, None].expand(3, 5, 2, 2, 1)
    assert torch.equal(mix.blend_pictures(pictures), mix.blend(pictures))
    assert mix.longer(torch.tensor([1, 2, 3])).tolist() == [3, 2, 3]
    assert mix.longer(torch.tensor([[1, 5], [2, 2], [3, 4]])).tolist() == [[3, 5], [2, 2], [3, 5]]


def test_a_box_is_cut_from_the_other_row_in_every_frame() -> None:
    mix = _mix([1, 0], [0.75, 0.75], [0.0, 0.5, 0.5, 1.0], [0.0, 0.5, 0.5, 1.0])
    x = torch.stack([torch.zeros(3, 4, 4, 2), torch.ones(3, 4, 4, 2)])
    found = mix.blend_pictures(x)
    assert found[0, :, :2, 2:].eq(1).all() and float(found[0].sum()) == 3 * 4 * 2
    assert found[1, :, :2, 2:].eq(0).all() and float(found[1].mean()) == 0.75


def test_draws_of_mixup_and_cutmix() -> None:
    draw = {"each": "row", "mixup": 1.0}
    mix = draw_mix(Mixing(**draw), 4000, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    assert float(mix.shares.mean()) == pytest.approx(0.5, abs=0.02) and not mix.boxes.any()
    half = draw_mix(Mixing(**draw, probability=0.5), 4000, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    assert float((half.shares == 1).float().mean()) == pytest.approx(0.5, abs=0.03)
    cut = draw_mix(Mixing(cutmix=1.0, each="row"), 500, torch.Generator().manual_seed(0))
    area = (cut.boxes[:, 2] - cut.boxes[:, 0]) * (cut.boxes[:, 3] - cut.boxes[:, 1])
    torch.testing.assert_close(cut.shares, 1 - area)
    assert cut.boxes.min() >= 0 and cut.boxes.max() <= 1 and float(cut.shares.std()) > 0.15
    both = draw_mix(Mixing(mixup=1.0, cutmix=1.0, switch=0.25, each="row"), 4000, torch.Generator().manual_seed(0))
    assert float((both.boxes[:, 2] > 0).float().mean()) == pytest.approx(0.25, abs=0.03)
    batch = draw_mix(Mixing(mixup=0.8), 5, torch.Generator().manual_seed(3))
    assert batch.partners.tolist() == [4, 3, 2, 1, 0] and len(batch.shares.unique()) == 1
    again = draw_mix(Mixing(mixup=0.8), 5, torch.Generator().manual_seed(3))
    assert torch.equal(batch.shares, again.shares)
    with pytest.raises(UsageError, match="`mixup` or `cutmix` must be above 0"):
        validate(Mixing, {}, "mixing")
