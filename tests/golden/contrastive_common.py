"""Contrastive losses (slug contrastive-common): those that are built, which is InfoNCE in CLIP's form on one device."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn import functional

from triptych.losses.contrastive import info_nce


def check(case: Path) -> None:
    inputs, outputs = load_file(case / "inputs.safetensors"), load_file(case / "outputs.safetensors")
    image, caption = (inputs[name].clone().requires_grad_() for name in ("img", "cap"))
    scale = 1 / float(inputs["temp"])
    x, y = functional.normalize(image, dim=1), functional.normalize(caption, dim=1)
    loss = (info_nce(x, y, scale).mean() + info_nce(y, x, scale).mean()) / 2
    loss.backward()
    gradients = {key: key.rpartition("_")[2] for key in outputs if key.startswith("clip_") and "rank" not in key}
    assert json.loads((case / "meta.json").read_text())["dtype"] == "float32"
    compared = 0
    for key, name in gradients.items():
        if key.endswith("loss"):
            torch.testing.assert_close(loss.detach().reshape(outputs[key].shape), outputs[key], rtol=1e-5, atol=1e-6)
        else:
            found = {"img": image.grad, "cap": caption.grad}[name]
            assert found is not None
            torch.testing.assert_close(found, outputs[key], rtol=1e-4, atol=1e-6)
        compared += 1
    assert compared >= 3
