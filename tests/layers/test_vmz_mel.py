"""VMZ's log mel energies, by hand (convnets-common, section 8 and checks)."""

import math

import pytest
import torch

from triptych.data.front_ends import spectrogram, spectrogram_steps
from triptych.layers.spectrogram import vmz_bank, vmz_mel
from triptych.recipe import AudioTransform

VMZ = AudioTransform(front_end="vmz", mels=40, window=0.016, hop=0.01)


def test_a_second_of_silence_is_99_steps_of_zeros() -> None:
    found = vmz_mel(torch.zeros(1, 16_000))
    assert found.shape == (1, 99, 40) and not found.any()


@pytest.mark.parametrize(("samples", "steps"), [(16_000, 99), (257, 1), (256, 0), (416, 1), (417, 2), (0, 0)])
def test_a_step_wants_more_than_a_window_of_samples(samples: int, steps: int) -> None:
    assert vmz_mel(torch.ones(1, samples)).shape[1] == steps
    assert spectrogram_steps(torch.tensor([samples]), 16_000.0, VMZ).tolist() == [steps]


def test_each_filter_weighs_one_in_sum_and_the_last_bin_counts_in_it() -> None:
    bank = vmz_bank(40, 256, 16_000.0)
    torch.testing.assert_close(bank.sum(dim=0), torch.ones(40))
    assert bank.shape == (129, 40)


def test_energies_below_e_are_linear() -> None:
    tone = torch.sin(2 * math.pi * 1000 * torch.arange(16_000) / 16_000)[None]
    loud, quiet = vmz_mel(tone), vmz_mel(1e-5 * tone)
    assert loud.max() > 20  # logarithms
    band = int(loud[0, 50].argmax())
    assert float(quiet[0, 50, band]) == pytest.approx(float(loud[0, 50, band]) - 2 * math.log(1e5), abs=1e-3)
    assert float(vmz_mel(1e-7 * tone)[0, 50, band]) == pytest.approx(
        math.exp(float(loud[0, 50, band]) - 2 * math.log(1e7)) / math.e, rel=1e-3
    )


def test_the_clips_steps_are_stretched_to_those_of_the_network() -> None:
    """Eight frames at 30 fps are 26 steps of sound, which become 100; more are thinned out (perfect alignment)."""
    short = VMZ.model_copy(update={"steps": 100})
    wave = 0.1 * torch.randn(2, round(8 / 30 * 16_000), generator=torch.Generator().manual_seed(0))
    found, steps = spectrogram(wave, torch.tensor([wave.shape[1], 0]), 16_000.0, short)
    assert found.shape == (2, 100, 40) and steps.tolist() == [100, 0]
    plain = vmz_mel(wave)
    assert plain.shape[1] == 26
    torch.testing.assert_close(found[0, 0], plain[0, 0])  # linear between the centres of steps, held at the ends
    place = (50 + 0.5) * 26 / 100 - 0.5
    low = int(place)
    between = torch.lerp(plain[0, low], plain[0, low + 1], place - low)
    torch.testing.assert_close(found[0, 50], between, rtol=1e-4, atol=1e-4)
    long, _ = spectrogram(wave, torch.tensor([wave.shape[1]] * 2), 16_000.0, VMZ.model_copy(update={"steps": 13}))
    torch.testing.assert_close(long, plain[:, ::2])
