"""Everything at Once against its authors' code: tokens, nine vectors, six terms, gradients, and functions alone."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from triptych.batch import Batch, Clip
from triptych.evaluation import metrics
from triptych.losses.contrastive import info_nce
from triptych.method import Clock
from triptych.methods.everything_at_once import EverythingAtOnce, EverythingAtOnceConfig
from triptych.model import load_tensors
from triptych.weights.everything_at_once import DROPPED, rename

CLOSE = {"atol": 1e-5, "rtol": 1e-4}
CLOSE_GRADIENT = {"atol": 1e-4, "rtol": 1e-4}


def _build(case: Path) -> EverythingAtOnce:
    meta = json.loads((case / "meta.json").read_text())
    sizes, fusion = meta["config"], meta["config"]["fusion"]
    assert not fusion["use_cls_token"]
    inputs = load_file(case / "inputs.safetensors")
    config = EverythingAtOnceConfig(
        video=("features",),
        video_widths=(sizes["video_dim"],),
        word_width=sizes["text_dim"],
        mels=inputs["audio"].shape[1],
        audio_widths=tuple(sizes["davenet_widths"]),
        audio_blocks=tuple(sizes["davenet_layers"]),
        width=fusion["embed_dim"],
        depth=fusion["depth"],
        heads=fusion["num_heads"],
        ratio=fusion["mlp_ratio"],
        dim=sizes["projection_dim"],
        weights={name.removesuffix("_weight"): value for name, value in sizes["weights"].items()},
        temperature=sizes["temperature"],
        late=True,
    )
    method = EverythingAtOnce(config).eval()
    load_tensors(method, rename(load_file(case / "weights.safetensors")), str(case))
    return method


def _view(inputs: dict[str, Tensor]) -> dict[str, Clip]:
    def clip(data: Tensor, mask: Tensor) -> Clip:
        assert (mask.cumprod(dim=1) == mask).all(), "what is valid comes first"
        return Clip(data, mask.sum(dim=1).long(), torch.zeros(len(data), 2))

    return {
        "text": clip(inputs["text"], inputs["text_mask"]),
        "features": clip(inputs["video"], inputs["video_mask"]),
        "audio": clip(inputs["audio"].transpose(1, 2), inputs["audio_mask"]),
    }


def check(case: Path) -> None:
    """Compare every output of a case (slug everything-at-once, part model)."""
    inputs, outputs = load_file(case / "inputs.safetensors"), load_file(case / "outputs.safetensors")
    method, view = _build(case), _view(inputs)
    compared = set()

    def compare(key: str, value: Tensor, how: dict[str, float] = CLOSE) -> None:
        found = value.detach().to(outputs[key].dtype).reshape(outputs[key].shape)
        torch.testing.assert_close(found, outputs[key], **how, msg=lambda m: f"{key}: {m}")
        compared.add(key)

    sets = method.token_sets(view)
    for name, found in sets.items():
        compare(f"{name}_nonempty_input_mask", found.present)
        compare(f"inter/{name}_tokens_normed", found.tokens)
    compare("inter/davenet_out", method.davenet(view["audio"].data, view["audio"].length).tokens.transpose(1, 2))
    vectors, _ = method.vectors(view)
    names = {"t": "text", "v": "video", "a": "audio"}
    for name, vector in vectors.items():
        compare(f"{names.get(name, name)}_embed", vector)
    late = method.embed(view)["late"]
    halves = {name: torch.nn.functional.normalize(vectors[name], dim=1) for name in names}
    for one, other in ("tv", "ta", "va"):
        # Ours is normalised once more.
        mean = (halves[one] + halves[other]) / 2
        compare(f"{one}+{other}_embed", mean)
        stream = "+".join(method.streams[names[name]] for name in (one, other))  # type: ignore[index]
        torch.testing.assert_close(late[stream], torch.nn.functional.normalize(mean, dim=1))

    losses = method.objective(Batch((view,), torch.arange(len(inputs["text"]))), Clock())
    for name, term in losses.terms.items():
        compare(f"loss_term/{name}", term)
    compare("loss", losses.total)
    losses.total.backward()
    for key in [key for key in outputs if key.startswith("grad/")]:
        (name,) = rename({key.removeprefix("grad/"): outputs[key]})
        if name == "fusion.masking_token":  # a constant of ours, for nothing reaches it
            compare(key, torch.zeros_like(method.fusion.masking_token), CLOSE_GRADIENT)
        else:
            gradient = method.get_parameter(name).grad
            assert gradient is not None, key
            compare(key, gradient, CLOSE_GRADIENT)
    weights = load_file(case / "weights.safetensors")
    dead = {key for key in weights if DROPPED.match(key) and key.endswith(("weight", "bias"))}
    notes = " ".join(json.loads((case / "meta.json").read_text())["notes"])
    assert all(key in notes for key in dead) and len(dead) == 4
    assert all(parameter.grad is not None for parameter in method.parameters())
    _functions(case, inputs, compare)
    assert compared == set(outputs), set(outputs) - compared


def _functions(case: Path, inputs: dict[str, Tensor], compare) -> None:  # type: ignore[no-untyped-def]
    """Compare what was computed of a matrix of similarities alone."""
    similarity = inputs["lossonly/sim"]
    one = torch.eye(len(similarity))

    def both(scale: float, margin: float) -> Tensor:
        directions = (info_nce(x, one, scale, margin=margin).mean() for x in (similarity, similarity.T))
        return torch.stack(list(directions)).sum()

    temperature = json.loads((case / "meta.json").read_text())["config"]["temperature"]
    compare("lossonly/NormSoftmax_T0.05", both(1 / temperature, 0.0))
    compare("lossonly/MMS_margin0.001", both(1.0, 0.001))
    ranks = metrics.retrieval_ranks(inputs["lossonly/sim_with_ties"].numpy())
    for key, total in (("", None), ("_complete_Nplus2", len(ranks) + 2)):
        recalls = [metrics.recall_at(ranks, k, total) for k in (1, 5, 10, 50)]
        mean = metrics.geometric_mean(recalls[:3])
        values = [*recalls, metrics.median_rank(ranks), metrics.mean_rank(ranks), mean]
        compare(f"lossonly/retrieval_metrics_ties{key}", torch.from_numpy(np.array(values)))
