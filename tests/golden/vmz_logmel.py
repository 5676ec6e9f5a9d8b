"""VMZ's log mel energies (slug vmz-logmel)."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from triptych.layers.spectrogram import vmz_bank, vmz_mel


def check(case: Path) -> None:
    inputs, outputs = load_file(case / "inputs.safetensors"), load_file(case / "outputs.safetensors")
    mels, bins = outputs["filters"].shape
    torch.testing.assert_close(vmz_bank(mels, 2 * (bins - 1), 16_000.0).T, outputs["filters"], atol=1e-6, rtol=0)
    found = vmz_mel(inputs["waveform_16k"].reshape(1, -1), mels=mels)[0]
    torch.testing.assert_close(found, outputs["logmel"], atol=1e-3, rtol=0)
