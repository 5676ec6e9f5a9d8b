"""What AV-HuBERT reads: filter banks stacked to the steps of the model, cepstra with slopes, grey crops."""

import math

import pytest
import torch
from torch import Tensor

from triptych.data.audio import draw_sound, emphasize, finish_sound, stack_steps
from triptych.data.front_ends import spectrogram_steps
from triptych.data.video import draw_colours, finish_video
from triptych.layers.spectrogram import append_derivatives, floored_bank, logfbank, mfcc
from triptych.recipe import AudioTransform, VideoTransform

BANK = AudioTransform(front_end="logfbank", mels=26, low=0.0, emphasis=0.97, stack=4, standardize=True)
CEPSTRA = AudioTransform(front_end="mfcc", mels=23, derivatives=2)


def _finish(waveform: Tensor, length: list[int], transform: AudioTransform) -> tuple[Tensor, Tensor]:
    draws = draw_sound(transform, torch.Generator())
    rows = {name: torch.stack([draw] * len(length)) for name, draw in draws.items()}
    return finish_sound(waveform, torch.tensor(length), 16_000.0, rows, transform)


@pytest.mark.parametrize(("samples", "steps"), [(9_000, 55), (400, 1), (1, 1), (401, 2), (560, 2), (561, 3), (0, 0)])
def test_windows_cover_all_samples(samples: int, steps: int) -> None:
    transform = BANK.model_copy(update={"stack": 1})
    assert int(spectrogram_steps(torch.tensor([samples]), 16_000.0, transform)) == steps
    if samples:
        assert logfbank(torch.randn(1, samples), 16_000.0).shape == (1, steps, 26)


def test_nine_thousand_samples_are_fourteen_steps_and_54_cepstra() -> None:
    sound = torch.randn(1, 9_000)
    bank, steps = _finish(sound, [9_000], BANK)
    assert bank.shape == (1, 14, 104) and steps.tolist() == [14]
    cepstra, count = _finish(sound, [9_000], CEPSTRA)
    assert cepstra.shape == (1, 54, 39) and count.tolist() == [54]


@pytest.mark.parametrize("transform", [BANK, CEPSTRA])
def test_a_clip_is_the_same_alone_and_beside_a_longer_one(transform: AudioTransform) -> None:
    torch.manual_seed(0)
    sound = 0.1 * torch.randn(2, 9_000)
    sound[1, 6_100:] = 0
    together, steps = _finish(sound, [9_000, 6_100], transform)
    alone, count = _finish(sound[1:, :6_100], [6_100], transform)
    assert steps[1] == count[0]
    torch.testing.assert_close(together[1:, : count[0]], alone, atol=1e-5, rtol=0)
    assert not together[1, count[0] :].any()


def test_steps_have_mean_zero_and_deviation_one_but_for_those_that_are_zeros() -> None:
    bank, _ = _finish(torch.randn(1, 9_000), [9_000], BANK)
    torch.testing.assert_close(bank.mean(dim=2), torch.zeros(1, 14), atol=1e-5, rtol=0)
    torch.testing.assert_close(bank.std(dim=2, unbiased=False), torch.ones(1, 14), atol=1e-4, rtol=0)
    nothing, _ = _finish(torch.zeros(1, 9_000), [0], BANK)
    assert not nothing.any()


def test_silence_has_the_smallest_energy_of_double_precision() -> None:
    assert math.isclose(float(logfbank(torch.zeros(1, 400), 16_000.0)[0, 0, 0]), math.log(2**-52), rel_tol=1e-6)


def test_the_bank_counts_in_sixteen_bit_numbers() -> None:
    sound = torch.randn(1, 4_000)
    difference = logfbank(sound, 16_000.0) - logfbank(sound / 32_768, 16_000.0)
    torch.testing.assert_close(difference, torch.full_like(difference, 2 * math.log(32_768)), atol=1e-3, rtol=0)


def test_triangles_stand_on_whole_bins() -> None:
    bank = floored_bank(26, 512, 16_000.0, 0.0, 8_000.0)
    assert bank.shape == (257, 26)
    # Edges 0, 2, 4: floor(513 f / 16000) of 0, 64.4 and 133.4 Hz on the mel scale.
    assert bank[:6, 0].tolist() == [0.0, 0.5, 1.0, 0.5, 0.0, 0.0]


def test_emphasis_by_hand() -> None:
    sound = torch.tensor([[1.0, 2.0, 3.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    found = emphasize(sound, torch.tensor([3, 1]), 0.5)
    assert found.tolist() == [[1.0, 1.5, 2.0, 0.0], [1.0, 0.0, 0.0, 0.0]]


def test_stacked_steps_by_hand() -> None:
    steps = torch.arange(10.0).view(1, 5, 2)
    assert stack_steps(steps, 4).tolist() == [[[0, 1, 2, 3, 4, 5, 6, 7], [8, 9, 0, 0, 0, 0, 0, 0]]]


def test_slopes_of_a_line_are_its_rise_but_at_the_ends() -> None:
    line = torch.arange(7.0).view(1, 7, 1)
    found = append_derivatives(line, torch.tensor([7]), 2)
    # (1 x 1 + 2 x 2) / 10 and (1 x 2 + 2 x 3) / 10 at the ends, where the first step goes on.
    torch.testing.assert_close(found[0, :, 1], torch.tensor([0.5, 0.8, 1.0, 1.0, 1.0, 0.8, 0.5]))
    assert found.shape == (1, 7, 3)
    short = append_derivatives(line, torch.tensor([4]), 1)
    torch.testing.assert_close(short[0, :4, 1], append_derivatives(line[:, :4], torch.tensor([4]), 1)[0, :, 1])


def test_the_first_cepstrum_is_the_mean_energy() -> None:
    loud, quiet = mfcc(torch.randn(1, 2_000), 16_000.0), mfcc(1e-3 * torch.randn(1, 2_000), 16_000.0)
    assert (loud[..., 0] > quiet[..., 0] + 10).all()


def test_one_channel_is_the_luma() -> None:
    frames = torch.zeros(1, 2, 4, 4, 3, dtype=torch.uint8)
    frames[..., 0] = 255
    transform = VideoTransform(size=4, channels=1, mean=(0.421, 0, 0), std=(0.165, 1, 1))
    draws = {name: draw[None] for name, draw in draw_colours(transform, torch.Generator()).items()}
    found = finish_video(frames, draws, transform)
    torch.testing.assert_close(found, torch.full((1, 2, 4, 4, 1), (0.299 - 0.421) / 0.165))
    several = finish_video(frames[:, None].expand(1, 3, *frames.shape[1:]), draws, transform)
    assert several.shape == (1, 3, 2, 4, 4, 1)
