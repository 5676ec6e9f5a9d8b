"""Position tables and Kaldi's filter bank (slug vision-transformers-common, part tables)."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from triptych.layers.positions import sincos_2d, sincos_3d
from triptych.layers.spectrogram import kaldi_bank, kaldi_fbank


def check(case: Path) -> None:
    meta = json.loads((case / "meta.json").read_text())
    inputs, outputs = load_file(case / "inputs.safetensors"), load_file(case / "outputs.safetensors")
    config = meta["config"]
    width = config["D"]
    rows, columns = config["grid2d (rows=time, cols=freq)"]
    frames, side = config["grid3d (t,h=w)"]
    square = round((outputs["sincos2d_square"].shape[0] - 1) ** 0.5)
    for key, table in (
        ("sincos2d_flexible", sincos_2d(rows, columns, width, first=True)),
        ("sincos2d_square", sincos_2d(square, square, width, first=True)),
        ("sincos3d", sincos_3d(frames, side, side, width, first=True)),
    ):
        torch.testing.assert_close(table, outputs[key], atol=1e-6, rtol=0, msg=lambda m, key=key: f"{key}: {m}")
    waveform = inputs["waveform"].reshape(1, -1)
    found = kaldi_fbank(waveform, 16_000.0)[0]
    torch.testing.assert_close(found, outputs["fbank"], atol=2e-3, rtol=0)
    other = kaldi_fbank(inputs["waveform_22050"].reshape(1, -1), 22_050.0)[0]
    torch.testing.assert_close(other, outputs["fbank_22050hz"], atol=2e-3, rtol=0)
    padded = torch.zeros_like(outputs["fbank_padded_normalised"])
    padded[: len(found)] = found
    padded = (padded + 4.2677393) / (2 * 4.5689974)
    torch.testing.assert_close(padded, outputs["fbank_padded_normalised"], atol=2e-3, rtol=0)
    mels, bins = outputs["mel_banks_16k"].shape
    bank = kaldi_bank(mels, 2 * bins, 16_000.0, 20.0, 8_000.0)[:-1].T
    torch.testing.assert_close(bank, outputs["mel_banks_16k"], atol=1e-4, rtol=0)
