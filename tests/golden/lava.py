"""LAVA against tensors of the authors' (retyped) code: encoders, heads, six terms, gradients, both text masks."""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from triptych.batch import Batch, Clip
from triptych.method import Clock
from triptych.methods.lava import LAVA, LAVAConfig
from triptych.model import load_tensors
from triptych.weights.lava import rename


def _tolerance(text: str) -> tuple[dict[str, float], dict[str, float]]:
    values = re.search(r"atol (\S+) rtol (\S+); grads rtol (\S+) atol (\S+)", text)
    assert values, text
    atol, rtol, grad_rtol, grad_atol = map(float, values.groups())
    return {"atol": atol, "rtol": rtol}, {"atol": grad_atol, "rtol": grad_rtol}


def _build(case: Path, **options: object) -> LAVA:
    sizes = json.loads((case / "meta.json").read_text())["config"]
    config = LAVAConfig(
        width=sizes["dim"],
        layers=sizes["layers"],
        heads=sizes["heads"],
        frames=sizes["T"],
        size=sizes["size"],
        tubelet=(sizes["tp"], sizes["sp"]),
        mels=sizes["mel"],
        audio_steps=sizes["at"],
        audio_patch=sizes["ap"],
        vocabulary=sizes["vocab"],
        text_steps=sizes["text_len"],
        **options,  # type: ignore[arg-type]
    )
    method = LAVA(config).eval()
    weights = rename(load_file(case / "weights.safetensors"))
    if config.projection == "none":
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith("heads.")}
    load_tensors(method, weights, str(case))
    return method


def _view(inputs: dict[str, Tensor], masked: bool) -> dict[str, Clip]:
    batch = len(inputs["text_ids"])
    span = torch.zeros(batch, 2)

    def clip(data: Tensor, steps: int) -> Clip:
        return Clip(data=data, length=torch.full((batch,), steps), span=span)

    audio = inputs["audio_logmel"].transpose(1, 2)
    text = clip(inputs["text_ids"], inputs["text_ids"].shape[1])
    if masked:
        text = Clip(data=text.data, length=text.length * inputs["text_mask"].long(), span=span)
    return {
        "audio": clip(audio, audio.shape[1]),
        "video": clip(inputs["video"], inputs["video"].shape[1]),
        "text": text,
    }


def check(case: Path) -> None:
    """Compare every output of a case (slug lava, part model)."""
    inputs, outputs = load_file(case / "inputs.safetensors"), load_file(case / "outputs.safetensors")
    close, close_gradient = _tolerance(json.loads((case / "meta.json").read_text())["tolerance"])
    compared = set()

    def compare(key: str, value: Tensor, how: dict[str, float] = close) -> None:
        torch.testing.assert_close(
            value.detach().reshape(outputs[key].shape), outputs[key], **how, msg=lambda m: f"{key}: {m}"
        )
        compared.add(key)

    batch = len(inputs["text_ids"])
    for prefix, options in (
        ("full", {}),
        ("masked_noproj", {"projection": "none"}),
        ("masked_proj", {}),
    ):
        method = _build(case, mask_text="zero_embed", **options)
        view = _view(inputs, masked=prefix != "full")
        losses = method.objective(Batch(views=(view,), rows=torch.arange(batch)), Clock())
        for term in ("av", "at", "vt", "ac", "vc", "tc"):
            compare(f"{prefix}.{term}", losses.terms[term])
        compare(f"{prefix}.total", losses.total)
        compare(f"{prefix}.centroid", method.centroid(*method.vectors(view)))
        if prefix == "full":
            for stream, found in method.features(view).items():
                compare(f"{stream}.feature", found.pooled)
                compare(f"{stream}.embedding", method.embed(view)["joint"][stream])
            losses.total.backward()
            for key in outputs:
                if key.startswith("full.grad."):
                    (name,) = rename({key.removeprefix("full.grad."): outputs[key]})
                    gradient = method.get_parameter(name).grad
                    assert gradient is not None, key
                    compare(key, gradient, close_gradient)
    assert compared == set(outputs), set(outputs) - compared
