"""RAVEn (slug raven): what is built of it, which is the decoder, its losses, and joint decoding.

The encoders' outputs are taken from the case.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from triptych.decoding import joint_beam
from triptych.layers.decoder import TokenDecoder
from triptych.losses.sequence import ctc, smoothed_cross_entropy

NAMES = {
    "embed.0": "embedding",
    "proj_decoder": "project",
    "after_norm": "norm",
    "output_layer": "output",
    "feed_forward.w_": "linear",
    "linear_q": "query",
    "linear_out": "output",
    "decoders.": "blocks.",
    "self_attn": "self_attention",
    "src_attn": "memory_attention",
}


def _rename(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for key, tensor in tensors.items():
        if ".linear_v." in key:
            continue
        if ".linear_k." in key:
            tensor = torch.cat([tensor, tensors[key.replace("linear_k", "linear_v")]])
            key = key.replace("linear_k", "key_value")
        for theirs, ours in NAMES.items():
            key = key.replace(theirs, ours)
        renamed[key] = tensor
    return renamed


def check(case: Path) -> None:
    sizes = json.loads((case / "meta.json").read_text())["config"]
    inputs, outputs, weights = (load_file(case / f"{name}.safetensors") for name in ("inputs", "outputs", "weights"))
    end = sizes["odim"] - 1
    labels, length = inputs["label"], inputs["lengths"]
    said = (labels >= 0).sum(dim=1)
    compared = 0
    for stream in ("video", "audio"):
        own = f"model_{stream}.backbone.decoder."
        decoder = TokenDecoder(
            sizes["odim"],
            sizes["ddim"],
            sizes["dlayers"],
            sizes["dheads"],
            sizes["dffn"],
            memory_width=sizes["adim"],
            sinusoids="pairs",
            scaled=True,
            tied=False,
            eps=1e-12,
        ).eval()
        decoder.load_state_dict(_rename({k.removeprefix(own): v for k, v in weights.items() if k.startswith(own)}))
        memory, scores = outputs[f"{stream}.eval.encoder"], outputs[f"{stream}.eval.ctc_logits"]
        with torch.inference_mode():
            rows = torch.arange(len(labels))
            spoken = labels.where(labels >= 0, end)
            before = torch.cat([torch.full_like(spoken[:, :1], end), spoken], dim=1)
            after = torch.cat([spoken, torch.full_like(spoken[:, :1], end)], dim=1)
            after[rows, said] = end
            logits = decoder(before, memory, length)
            each = smoothed_cross_entropy(logits, after, said + 1, 0.1, relative=True)
            heard = ctc(scores, length, spoken, said)
            attended, listened = each.sum() / len(labels), heard.sum() / len(labels)
            losses = {"loss_att": attended, "loss_ctc": listened, "loss": 0.1 * listened + 0.9 * attended}
            for name, value in losses.items():
                torch.testing.assert_close(value, outputs[f"{stream}.eval.{name}"], rtol=1e-4, atol=0)
            one = slice(0, 1)
            for key in sorted(
                {key.split(".hyp")[0] for key in outputs if key.startswith(f"{stream}.beam") and ".hyp" in key}
            ):
                beam, weight = key.removeprefix(f"{stream}.beam").split("_ctc")
                log_probs = scores[one, : length[0]].log_softmax(dim=-1)
                (found,) = joint_beam(
                    decoder,
                    memory[one, : length[0]],
                    length[one],
                    log_probs,
                    beam=int(beam),
                    weight=float(weight),
                    start=end,
                    end=end,
                    never=(),
                    best=3,
                )
                for place in range(3):
                    # After the last step the authors' search puts an end behind everything, ends too.
                    wanted = [token for token in outputs[f"{key}.hyp{place}"].tolist() if token != end]
                    assert list(found[place].tokens) == wanted, (key, place, found)
                    assert abs(found[place].score - float(outputs[f"{key}.score{place}"])) < 1e-3, (key, place)
                    compared += 1
    assert compared >= 6
