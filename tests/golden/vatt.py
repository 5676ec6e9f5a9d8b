"""VATT against tensors of retyped official code: backbones, heads, losses, spline and filter bank."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from triptych.batch import Batch, Clip, View
from triptych.encoders.raw_signal import RawSignalEncoder, TransformerSize
from triptych.encoders.text import T5Size
from triptych.layers.position_tables import resample
from triptych.layers.spectrogram import kaldi_bank, magnitude_mel
from triptych.method import Clock
from triptych.methods.vatt import VATT, VATTConfig
from triptych.model import load_tensors
from triptych.weights.vatt import rename

STREAMS = ("video", "audio", "text")
PARTS = {
    "specific": ("vid", "aud", "txt", "fac"),
    "joint": ("vid", "aud", "txt", "joint"),
    "unified": ("uni", "uni_fac"),
}
"""Prefixes of the weights of each model."""


def _tolerances(text: str) -> dict[str, dict[str, float]]:
    """Return the tolerances of ``eval``, ``train``, ``gradients``, ``tables`` and ``pooled``."""
    found = {
        name: {"rtol": float(rtol), "atol": float(atol)}
        for name, rtol, atol in re.findall(r"(eval|train|gradients)[^;]*? rtol (\S+) atol ([\d.e-]+)", text)
    }
    found |= {
        name: {"rtol": 0.0, "atol": float(atol)} for name, atol in re.findall(r"(tables|pooled) atol ([\d.e-]+)", text)
    }
    assert set(found) == {"eval", "train", "gradients", "tables", "pooled"}, text
    return found


def _size(sizes: dict[str, int]) -> dict[str, int]:
    names = {"num_layers": "layers", "d_model": "width", "num_heads": "heads", "d_kv": "head_width", "d_ff": "hidden"}
    return {ours: sizes[theirs] for theirs, ours in names.items()}


def _build(case: Path, model: str, symmetric: bool = False) -> VATT:
    sizes = json.loads((case / "meta.json").read_text())["config"]
    assert sizes["pre_norm"] and sizes["use_bias_video_audio_unified"] and not sizes["dropout"]
    hidden, fine, coarse = sizes["fac"]
    config = VATTConfig(
        video=TransformerSize(**_size(sizes["tx_video"])),
        audio=TransformerSize(**_size(sizes["tx_audio"])),
        text=T5Size(**_size(sizes["t5"]), buckets=sizes["nb"], distance=sizes["md"]),
        shared=TransformerSize(**_size(sizes["tx_uni"])) if model == "unified" else None,
        projected=sizes["dpost"],
        frames=sizes["T"],
        size=tuple(sizes["S"]),
        tubelet=(sizes["vp"], sizes["sp"]),
        audio_steps=sizes["A"],
        audio_patch=(sizes["ap"], 1),
        text_steps=sizes["words"],
        vocabulary=sizes["vocab"],
        word_width=sizes["demb"],
        dropout=sizes["dropout"],
        kept=sizes["rate"],
        head="joint" if model == "joint" else "fine_and_coarse",
        hidden=hidden,
        fine=fine,
        coarse=coarse,
        temperature=sizes["temperature"],
        symmetric=symmetric,
    )
    method = VATT(config)
    weights = {}
    for key, tensor in load_file(case / "weights.safetensors").items():
        prefix, _, name = key.partition("|")
        if prefix in PARTS[model]:
            weights[name] = tensor
    load_tensors(method, rename(weights), str(case))
    return method


def _view(inputs: dict[str, Tensor], candidates: int) -> View:
    rows = len(inputs["video"])

    def clip(data: Tensor, length: Tensor) -> Clip:
        return Clip(data=data, length=length, span=torch.zeros(*length.shape, 2))

    audio = inputs["audio"][..., 0]
    words = inputs["word_ids"].long().unflatten(0, (rows, candidates))
    told = inputs["text_mask"].long()[:, None].expand(rows, candidates)
    return {
        "video": clip(inputs["video"], torch.full((rows,), inputs["video"].shape[1])),
        "audio": clip(audio, inputs["audio_mask"].long() * audio.shape[1]),
        "text": clip(words, told * words.shape[2]),
    }


def _double(view: View) -> View:
    return {
        stream: Clip(clip.data.double() if clip.data.is_floating_point() else clip.data, clip.length, clip.span)
        for stream, clip in view.items()
    }


def check(case: Path) -> None:
    """Compare every output of a case (slug vatt, part model)."""
    meta = json.loads((case / "meta.json").read_text())
    inputs, outputs = load_file(case / "inputs.safetensors"), load_file(case / "outputs.safetensors")
    close = _tolerances(meta["tolerance"])
    compared = set()

    def compare(key: str, value: Tensor, how: str) -> None:
        found = value.detach().float().reshape(outputs[key].shape)
        torch.testing.assert_close(found, outputs[key], **close[how], msg=lambda m: f"{key}: {m}")
        compared.add(key)

    view = _view(inputs, meta["config"]["cands"])
    for model in ("specific", "unified"):
        _compare_model(case, model, view, inputs, compare)
    joint = _build(case, "joint").eval()
    (vectors,) = _project(joint, view).values()
    for key, stream in (
        ("video_toaud", "video"),
        ("video_totxt", "video"),
        ("audio_tovid", "audio"),
        ("text_tovid", "text"),
    ):
        compare(f"specific_eval|joint|{key}", vectors[stream], "eval")
    _compare_gradients(case, view, inputs, outputs, compare)
    _compare_splines(case, inputs, outputs, compare)
    bins, mels = outputs["mel|weight_matrix_40"].shape
    compare("mel|weight_matrix_40", kaldi_bank(mels, 2 * (bins - 1), 48_000.0, 80.0, 7_600.0), "eval")
    compare("mel|log_mel", magnitude_mel(inputs["mel_waveform"][None], 48_000.0, mels)[0], "eval")
    assert compared == set(outputs), set(outputs) - compared


Compare = Callable[[str, Tensor, str], None]


def _permutations(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: inputs[name].long() for name in ("video_permutation", "audio_permutation")}


def _encode(method: VATT, view: View, stream: str) -> Any:
    data = view[stream].data.flatten(0, 1) if stream == "text" else view[stream].data
    return method.encoder(stream)(data, None, method._kept(stream, data))


def _project(method: VATT, view: View) -> dict[str, dict[str, Tensor]]:
    projected: dict[str, dict[str, Tensor]] = method.head({s: _encode(method, view, s).pooled for s in STREAMS})
    return projected


def _compare_model(case: Path, model: str, view: View, inputs: dict[str, Tensor], compare: Compare) -> None:
    """Compare tokens, vectors, projections and losses: in evaluation, and in training in float64.

    Behind batch norm over few rows float32 scatters in training, by as much as the tolerance.
    """
    for mode in ("eval", "train"):

        def build(symmetric: bool = False, training: bool = mode == "train") -> VATT:
            method = _build(case, model, symmetric)
            return method.double().train() if training else method.eval()

        method, seen = build(), _double(view) if mode == "train" else view
        with method.given(_permutations(inputs)):
            for stream in STREAMS:
                found = _encode(method, seen, stream)
                compare(f"{model}_{mode}|{stream}_tokens", found.tokens, mode)
                compare(f"{model}_{mode}|{stream}_pooled", found.pooled, mode)
            spaces = _project(method, seen)
        compare(f"{model}_{mode}|fac|video_toaud", spaces["va"]["video"], mode)
        compare(f"{model}_{mode}|fac|audio_tovid", spaces["va"]["audio"], mode)
        compare(f"{model}_{mode}|fac|video_totxt", spaces["vat"]["video"], mode)
        compare(f"{model}_{mode}|fac|text_tovid", spaces["vat"]["text"], mode)
        batch = Batch(views=(seen,), rows=torch.arange(len(inputs["video"])))
        for loss in ("asym", "sym"):
            method = build(symmetric=loss == "sym")
            with method.given(_permutations(inputs)):
                losses = method.objective(batch, Clock())
            compare(f"{model}_{mode}|{loss}_vidaud", losses.terms["va"], "train")
            compare(f"{model}_{mode}|{loss}_vidtxt", losses.terms["vt"], "train")
            compare(f"{model}_{mode}|{loss}_total", losses.total, "train")


def _compare_gradients(
    case: Path, view: View, inputs: dict[str, Tensor], outputs: dict[str, Tensor], compare: Compare
) -> None:
    """Compare gradients, in float64 for the same reason."""
    method = _build(case, "specific").double().train()
    with method.given(_permutations(inputs)):
        method.objective(
            Batch(views=(_double(view),), rows=torch.arange(len(inputs["video"]))), Clock()
        ).total.backward()
    start = "specific_train|grad_asym_total|"
    for key in outputs:
        if key.startswith(start):
            path = key.removeprefix(start).partition("|")[2]
            # Our layer of queries, keys and values needs all three to be named; the first is the queries'.
            ((name, value),) = rename({path.replace("/q/", f"/{x}/"): outputs[key] for x in "qkv"}).items()
            gradient = method.get_parameter(name).grad
            assert gradient is not None, key
            queries = gradient[: len(value) // 3] if "/q/" in path else gradient
            compare(key, queries.T if path.endswith("kernel:0") else queries, "gradients")


def _compare_splines(case: Path, inputs: dict[str, Tensor], outputs: dict[str, Tensor], compare: Compare) -> None:
    """Compare resampled tables; and what the encoder makes of them, given the tables of the case."""
    patch = json.loads((case / "meta.json").read_text())["config"]["ap"]
    audio = inputs["audio"][..., 0]
    for key in outputs:
        if not key.startswith("interp|") or not key.endswith("_table"):
            continue
        count = len(outputs[key])
        encoder = _build(case, "specific").eval().encoder("audio")
        assert isinstance(encoder, RawSignalEncoder)
        compare(key, resample(encoder.positions.tables["time"], count), "tables")
        sound = audio.repeat(1, -(-count * patch // audio.shape[1]))[:, : count * patch]
        pooled = key.replace("_table", "_patches_pooled")
        compare(pooled, encoder(sound).pooled, "pooled")
        encoder.positions.tables["time"] = torch.nn.Parameter(outputs[key])
        torch.testing.assert_close(encoder(sound).pooled, outputs[pooled], rtol=1e-4, atol=1e-5)
