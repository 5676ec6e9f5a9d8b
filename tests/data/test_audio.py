import math

import pytest
import torch

from triptych.data.audio import (
    add_noise,
    amplify,
    crop_spectrograms,
    draw_sound,
    finish_sound,
    mask_mels,
    mask_steps,
)
from triptych.data.front_ends import spectrogram_steps
from triptych.layers.spectrogram import davenet_mel, slaney_bank, slaney_mel
from triptych.recipe import AudioTransform, SpectrogramCrop

RATE = 16_000.0


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draws_of(transform: AudioTransform, *seeds: int) -> dict[str, torch.Tensor]:
    each = [draw_sound(transform, seeded(seed)) for seed in seeds]
    return {name: torch.stack([draws[name] for draws in each]) for name in each[0]}


def sound(rows: int = 2, seconds: float = 1.0) -> torch.Tensor:
    return 0.1 * torch.randn(rows, round(seconds * RATE), generator=seeded())


def test_davenets_spectrogram_is_in_decibels_below_the_loudest() -> None:
    """A second has frames 0 to 97; a tone ten times louder is 20 dB above, whatever the level (everything-at-once)."""
    transform = AudioTransform(front_end="davenet", mels=40, floor=1e-8)
    time = torch.arange(int(RATE)) / RATE
    tone = torch.sin(2 * math.pi * 1000 * time) * torch.where(time < 0.5, 0.05, 0.5)
    steps = spectrogram_steps(torch.tensor([16_000, 0, 399, 400]), RATE, transform)
    assert steps.tolist() == [98, 0, 0, 1]
    found = davenet_mel(torch.stack([tone, 0.3 * tone, 0 * tone]), RATE)
    assert found.shape == (3, 98, 40)
    assert found[0].max() == 0 and found.min() == -80
    torch.testing.assert_close(found[0], found[1], atol=0.01, rtol=0)
    assert (found[2] == -80).all()
    band = int(found[0].amax(dim=0).argmax())
    assert float(found[0, 80, band] - found[0, 10, band]) == pytest.approx(20.0, abs=0.1)
    # Two of its settings alone: the mean of the wave and its low frequencies are taken off.
    torch.testing.assert_close(davenet_mel(tone[None] + 0.2, RATE), found[:1], atol=0.05, rtol=0)
    plain = davenet_mel(tone[None] + 0.05 * torch.sin(2 * math.pi * 100 * time), RATE, emphasis=0.0)
    sharp = davenet_mel(tone[None] + 0.05 * torch.sin(2 * math.pi * 100 * time), RATE)
    assert float(plain[0, 80, 1] - sharp[0, 80, 1]) > 10


def test_levels_change_by_decibels() -> None:
    out = amplify(torch.ones(3, 2), torch.tensor([20.0, 0.0, -6.0206]))
    assert out[:, 0].tolist() == pytest.approx([10.0, 1.0, 0.5], rel=1e-5)


def test_a_mask_sets_steps_or_mels_to_the_mean_of_what_is_valid() -> None:
    x = torch.arange(12.0).view(1, 4, 3)
    length = torch.tensor([3])  # the mean of 0..8 is 4
    out = mask_steps(x, length, torch.tensor([2.0]), torch.tensor([0.9]))
    assert out[0].tolist() == [[0, 1, 2], [4, 4, 4], [4, 4, 4], [9, 10, 11]]
    out = mask_mels(x, length, torch.tensor([1.0]), torch.tensor([0.5]))
    assert out[0].tolist() == [[0, 4, 2], [3, 4, 5], [6, 4, 8], [9, 10, 11]]
    assert torch.equal(mask_steps(x, length, torch.tensor([0.0]), torch.tensor([0.5])), x)


def test_noise_is_a_function_of_the_row_alone() -> None:
    x = torch.zeros(3, 500, 8)
    out = add_noise(x, 0.5, torch.tensor([5, 6, 5]))
    assert out.std().item() == pytest.approx(0.5, rel=0.03)
    assert torch.equal(out[0], out[2]) and not torch.equal(out[0], out[1])
    assert torch.equal(add_noise(x[:1], 0.5, torch.tensor([6]))[0], out[1])


def test_draws_have_the_ranges_of_the_transform() -> None:
    transform = AudioTransform(gain=6.0, time_mask=3, mel_mask=0)
    draws = draws_of(transform, *range(500))
    assert -6 <= draws["gain"].min() < -5.9 and 5.9 < draws["gain"].max() <= 6
    assert set(draws["time_mask"].tolist()) == {0.0, 1.0, 2.0, 3.0} and not draws["mel_mask"].any()
    assert len(set(draws["noise_seed"].tolist())) == 500


@pytest.mark.parametrize("front_end", ["log_mel", "fbank"])
def test_the_steps_of_a_filter_bank_are_known_before(front_end: str) -> None:
    transform = AudioTransform(front_end=front_end, mels=40)  # type: ignore[arg-type]
    for samples in (400, 559, 560, 16_000, 15_999):
        waveform = torch.zeros(1, samples)
        out, length = finish_sound(waveform, torch.tensor([samples]), RATE, draws_of(transform, 0), transform)
        assert length.item() == out.shape[1] == spectrogram_steps(torch.tensor([samples]), RATE, transform).item()
        assert out.shape[2] == 40
    assert spectrogram_steps(torch.tensor([0]), RATE, transform).item() == 0


def test_a_second_of_kaldi_has_98_steps() -> None:
    # vision-transformers-common, section 6: 1 + (n - 400) // 160 without padding; 10 s give 998.
    transform = AudioTransform(front_end="fbank")
    assert spectrogram_steps(torch.tensor([16_000, 160_000]), RATE, transform).tolist() == [98, 998]


@pytest.mark.parametrize("front_end", ["log_mel", "fbank"])
def test_padding_is_zero_before_the_normalisation(front_end: str) -> None:
    # AudioSet's numbers: a padded step has the value 4.2677393 / 9.1379948 = 0.467032.
    transform = AudioTransform(front_end=front_end, steps=128, mean=-4.2677393, std=9.1379948)  # type: ignore[arg-type]
    out, length = finish_sound(sound(), torch.tensor([16_000, 8_000]), RATE, draws_of(transform, 0, 1), transform)
    assert out.shape == (2, 128, 80)
    assert (out[0, length[0] :] - 0.467032).abs().max() < 1e-6 and (out[1, length[1] :] - 0.467032).abs().max() < 1e-6
    assert length.tolist() == ([98, 48] if front_end == "fbank" else [101, 51])


def test_padding_may_be_zero_after_the_normalisation() -> None:
    # LAVISH: a second is 188 steps of 5.2 ms (83 samples), padded to 192.
    transform = AudioTransform(front_end="fbank", mels=192, hop=0.0052, steps=192, mean=-4.98, std=7.42, pad="output")
    out, length = finish_sound(sound(), torch.tensor([16_000, 8_000]), RATE, draws_of(transform, 1, 2), transform)
    assert out.shape == (2, 192, 192) and length.tolist() == [188, 92]
    assert not out[0, 188:].any() and not out[1, 92:].any() and out[0, 187].any() and out[1, 91].any()
    plain, _ = finish_sound(
        sound(),
        length * 0 + 16_000,
        RATE,
        draws_of(transform, 1, 2),
        transform.model_copy(update={"pad": "spectrogram"}),
    )
    assert torch.equal(plain[0, :188], out[0, :188])
    assert torch.allclose(plain[0, 188:], torch.tensor(4.98 / 7.42))


def test_silence_lies_at_the_floor_and_nothing_at_zero() -> None:
    transform = AudioTransform(mels=8, low=0.0)
    out, length = finish_sound(
        torch.zeros(2, 1600), torch.tensor([1600, 0]), RATE, draws_of(transform, 0, 1), transform
    )
    assert length.tolist() == [11, 0]
    assert out[0].unique().tolist() == pytest.approx([math.log(1e-6)], rel=1e-5) and not out[1].any()


def test_waveforms_are_padded_or_cut() -> None:
    transform = AudioTransform(front_end="waveform", steps=20_000)
    out, length = finish_sound(sound(), torch.tensor([16_000, 9]), None, draws_of(transform, 0, 1), transform)
    assert out.shape == (2, 20_000) and length.tolist() == [16_000, 9] and not out[:, 16_000:].any()
    transform = AudioTransform(front_end="waveform", steps=100)
    out, length = finish_sound(sound(), torch.tensor([16_000, 9]), None, draws_of(transform, 0, 1), transform)
    assert out.shape == (2, 100) and length.tolist() == [100, 9]


def test_a_clip_does_not_depend_on_the_others_of_its_batch() -> None:
    transform = AudioTransform(mels=16, gain=6.0, noise=0.1, time_mask=20, mel_mask=5, steps=90)
    waveform, length = sound(3), torch.tensor([16_000, 12_000, 0])
    together, steps = finish_sound(waveform, length, RATE, draws_of(transform, 0, 1, 2), transform)
    for row in range(3):
        alone, step = finish_sound(waveform[row, None], length[row, None], RATE, draws_of(transform, row), transform)
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=0)
        assert step[0] == steps[row]


def test_candidates_share_the_draws_of_their_row() -> None:
    transform = AudioTransform(mels=16, gain=6.0, noise=0.1)
    waveform = sound(1).expand(2, -1)[None].expand(2, -1, -1)
    out, length = finish_sound(waveform, torch.full((2, 2), 16_000), RATE, draws_of(transform, 0, 1), transform)
    assert out.shape == (2, 2, 101, 16) and length.tolist() == [[101, 101]] * 2
    assert torch.equal(out[0, 0], out[0, 1]) and not torch.equal(out[0, 0], out[1, 0])


def test_slaneys_bank_is_linear_to_a_kilohertz_and_logarithmic_above() -> None:
    """Mel 15 is 1000 Hz, mel 42 is 6400 Hz; triangles of unit area (xkd, section 3)."""
    bank = slaney_bank(41, 16_000, 16_000.0, 0.0, 6400.0)  # edges at whole mels, bins at whole Hz
    assert bank.argmax(dim=0)[[2, 14]].tolist() == [200, 1000]  # mels 3 and 15
    assert int(bank[:, 15].argmax()) == round(1000 * 6.4 ** (1 / 27))
    assert bank[6399, 40] > 0 and not bank[6401:].any()
    torch.testing.assert_close(bank.sum(dim=0), torch.ones(41), atol=1e-3, rtol=0)
    assert float(bank[200, 2]) == pytest.approx(2 / (4 * 200 / 3 - 2 * 200 / 3), rel=1e-5)


def test_slaneys_spectrogram_has_the_published_steps_and_floor() -> None:
    transform = AudioTransform(front_end="slaney", mels=80, window=1024 / RATE, hop=143 / RATE, low=0.0, floor=1.19e-7)
    steps = spectrogram_steps(torch.tensor([64_000, 16_000, 0]), RATE, transform)
    assert steps.tolist() == [448, 112, 0]
    silence = slaney_mel(torch.zeros(1, 16_000), RATE)
    assert silence.shape == (1, 112, 80)
    assert silence.unique().tolist() == pytest.approx([math.log(1.19e-7)], rel=1e-6)
    tone = torch.sin(2 * math.pi * 1000 * torch.arange(16_000) / RATE)[None]
    # A periodic Hann window sums to 512: power (512 / 2)^2 in the tone's bin, a quarter of it in both beside it.
    energies = slaney_mel(tone, RATE)[0, 50].exp()
    bank = slaney_bank(80, 1024, RATE, 0.0, 8000.0)
    wanted = 256.0**2 * (bank[64] + (bank[63] + bank[65]) / 4)
    torch.testing.assert_close(energies, wanted + 1.19e-7, rtol=1e-3, atol=1e-2)


def test_the_volume_is_a_factor() -> None:
    transform = AudioTransform(front_end="waveform", volume=0.2)
    draws = draws_of(transform, *range(50))
    assert 0.8 <= float(draws["volume"].min()) < 0.85 and 1.15 < float(draws["volume"].max()) <= 1.2
    out, _ = finish_sound(torch.ones(50, 3), torch.full((50,), 3), None, draws, transform)
    torch.testing.assert_close(out[:, 0], draws["volume"])


def test_a_whole_stretch_on_a_canvas_of_its_size_is_the_spectrogram() -> None:
    x, crop = torch.randn(2, 10, 6), SpectrogramCrop(canvas=(1.0, 1.0), time=(1.0, 1.0), mels=(1.0, 1.0))
    torch.testing.assert_close(crop_spectrograms(x, torch.rand(2, 4), crop), x, atol=1e-5, rtol=0)


def test_a_stretch_is_scaled_with_its_corners_in_their_places() -> None:
    x = torch.arange(60.0).view(1, 10, 6)
    half = SpectrogramCrop(canvas=(1.0, 1.0), time=(0.5, 0.5), mels=(0.5, 0.5))
    out = crop_spectrograms(x, torch.tensor([[0.0, 0.0, 0.5, 0.99]]), half)[0]  # steps 3 to 7, mels 3 to 5
    assert out.shape == (10, 6)
    corners = [out[0, 0], out[0, -1], out[-1, 0], out[-1, -1]]
    assert [round(float(corner)) for corner in corners] == [21, 23, 45, 47]
    wide = SpectrogramCrop(canvas=(1.5, 1.0), time=(1.5, 1.5), mels=(1.0, 1.0))
    out = crop_spectrograms(1 + x, torch.zeros(1, 4), wide)[0]
    assert not out[0].any() and not out[-1].any() and out[3:7].all()  # the canvas is zeros round the spectrogram


def test_random_crops_travel_with_the_clip() -> None:
    transform = AudioTransform(mels=16, random_resized=SpectrogramCrop())
    plain = transform.model_copy(update={"random_resized": None})
    waveform, length = sound(2), torch.tensor([16_000, 16_000])
    draws = draws_of(transform, 0, 1)
    cropped, steps = finish_sound(waveform, length, RATE, draws, transform)
    again, _ = finish_sound(waveform, length, RATE, draws, transform)
    whole, _ = finish_sound(waveform, length, RATE, draws, plain)
    assert torch.equal(cropped, again) and cropped.shape == whole.shape and steps.tolist() == [101, 101]
    assert not torch.allclose(cropped, whole)
