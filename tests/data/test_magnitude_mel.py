"""VATT's filter bank and noise (vatt, section 3 and check 10)."""

import math

import pytest
import torch

from triptych.data.audio import draw_sound, finish_sound
from triptych.data.front_ends import spectrogram
from triptych.layers.spectrogram import kaldi_bank, magnitude_mel
from triptych.recipe import AudioTransform


def test_a_step_for_each_hop_that_begins_and_zeros_stay_zeros() -> None:
    silent = magnitude_mel(torch.zeros(2, 5_000), 48_000.0)
    assert silent.shape == (2, 5, 80) and not silent.any()
    assert magnitude_mel(torch.zeros(1, 153_600), 48_000.0).shape == (1, 150, 80)
    assert magnitude_mel(torch.zeros(1, 1), 48_000.0).shape == (1, 1, 80)


def test_magnitudes_and_not_energies_under_triangles_in_mel() -> None:
    """A tone in the middle of a bin: a periodic Hann window gives half its samples there, a quarter beside it."""
    rate, size, place = 48_000.0, 2_048, 100
    tone = torch.cos(2 * math.pi * place * torch.arange(size) / size)
    magnitudes = torch.zeros(size // 2 + 1)
    magnitudes[place - 1 : place + 2] = torch.tensor([size / 8, size / 4, size / 8])
    wanted = (1 + 10_000 * magnitudes @ kaldi_bank(40, size, rate, 80.0, 7_600.0)).log()
    found = magnitude_mel(tone[None], rate, mels=40)[0, 0]
    heard = wanted > 5  # what rounding leaves elsewhere is magnified, too
    assert heard.any() and not heard.all() and (found[~heard] < 5).all()
    torch.testing.assert_close(found[heard], wanted[heard], atol=1e-4, rtol=0)


def test_each_clip_fills_the_range_from_0_to_1_and_silence_is_0() -> None:
    transform = AudioTransform(front_end="magnitude_mel", window=0.04267, hop=0.02134, low=80.0, high=7_600.0)
    torch.manual_seed(0)
    sound = torch.stack([torch.randn(5_000), torch.zeros(5_000), 0.01 * torch.randn(5_000)])
    x, steps = spectrogram(sound, torch.tensor([5_000, 0, 2_000]), 48_000.0, transform)
    assert steps.tolist() == [5, 0, 2]
    assert float(x[0].min()) == 0 and float(x[0].max()) == 1 and not x[1].any() and not x[2, 2:].any()


def test_noise_is_measured_by_the_peak_of_the_clip() -> None:
    transform = AudioTransform(front_end="waveform", peak_noise=0.01)
    drawn = draw_sound(transform, torch.Generator().manual_seed(0))
    draws = {name: torch.stack([value, value]) for name, value in drawn.items()}
    sound = torch.zeros(2, 20_000)
    sound[0, 7], sound[1, 7] = 0.5, -0.1
    noisy, _ = finish_sound(sound, torch.tensor([20_000, 20_000]), 48_000.0, draws, transform)
    noise = noisy - sound
    assert noise.std(dim=1).tolist() == pytest.approx([0.005, 0.001], rel=0.05)
    torch.testing.assert_close(noise[0], 5 * noise[1], atol=1e-6, rtol=0)
