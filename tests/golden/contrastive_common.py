"""Contrastive losses (slug contrastive-common): those that are built, on one device and as two devices see them."""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from triptych.losses.contrastive import info_nce, mil_nce

NOT_BUILT = ("maxmargin_", "simclr_", "cvrl_")
Found = dict[str, Tensor]


def check(case: Path) -> None:
    """Compare every output of a case whose function is built."""
    inputs, outputs = load_file(case / "inputs.safetensors"), load_file(case / "outputs.safetensors")
    meta = json.loads((case / "meta.json").read_text())
    values = re.search(r"rtol (\S+) / atol (\S+) for losses, rtol (\S+) / atol (\S+) for gradients", meta["tolerance"])
    assert values, meta["tolerance"]
    rtol, atol, gradient_rtol, gradient_atol = map(float, values.groups())
    candidates = meta["config"]["candidates_per_clip"]
    found = _mil_nce(inputs, candidates) | _vatt(inputs, candidates) | _clip(inputs)
    assert set(found) == {key for key in outputs if not key.startswith(NOT_BUILT)}
    for key, value in found.items():
        close = {"rtol": gradient_rtol, "atol": gradient_atol} if "grad_" in key else {"rtol": rtol, "atol": atol}
        torch.testing.assert_close(
            value.detach().reshape(outputs[key].shape), outputs[key], **close, msg=lambda m, key=key: f"{key}: {m}"
        )


def _halves(rows: int) -> list[slice]:
    """Return the rows of each of two devices."""
    return [slice(0, rows // 2), slice(rows // 2, rows)]


def _gradients(loss: Tensor, **of: Tensor) -> Found:
    return dict(zip(of, torch.autograd.grad(loss, list(of.values())), strict=True))


def _mil_nce(inputs: Found, candidates: int) -> Found:
    """Every device computes the whole loss, and gets the gradient of its own rows."""
    video, text = (inputs[name].clone().requires_grad_() for name in ("vid", "txt"))
    loss = mil_nce(video, text.unflatten(0, (-1, candidates))).mean()
    gradients = _gradients(loss, vid=video, txt=text)
    found = {"milnce_loss": loss, "milnce_2rank_loss": loss}
    for name, gradient in gradients.items():
        found[f"milnce_grad_{name}"] = gradient
        for rank, mine in enumerate(_halves(len(gradient))):
            found[f"milnce_2rank_rank{rank}_grad_{name}"] = gradient[mine]
    return found


def _vatt(inputs: Found, candidates: int) -> Found:
    """Means over the valid rows of each device, against the keys of all."""
    video, text = (inputs[name].clone().requires_grad_() for name in ("vid", "txt"))
    x = functional.normalize(video, dim=-1)
    y = functional.normalize(text, dim=-1).unflatten(0, (-1, candidates))
    found: Found = {}
    for form in ("asym", "sym"):
        for which in ("nomask", "mask"):
            mask = inputs["txt_mask"] if which == "mask" else torch.ones(len(x))
            valid = mask.bool()[:, None].expand(-1, candidates)

            def loss(
                rows: slice, mask: Tensor = mask, valid: Tensor = valid, symmetric: bool = form == "sym"
            ) -> Tensor:
                scale = 1 / float(inputs["temp"])
                each = mil_nce(x, y, scale, key_valid=valid, anchors=rows, symmetric=symmetric)
                return (each * mask[rows]).sum() / mask[rows].sum().clamp(min=1)

            whole = loss(slice(0, len(x)))
            found[f"vatt_{form}_{which}_loss"] = whole
            for name, gradient in zip(
                ("vid", "txt"), torch.autograd.grad(whole, (video, text), retain_graph=True), strict=True
            ):
                found[f"vatt_{form}_{which}_grad_{name}"] = gradient
            for rank, rows in enumerate(_halves(len(x))):
                found[f"vatt_{form}_{which}_2replica_rank{rank}_loss"] = loss(rows)
    return found


def _clip(inputs: Found) -> Found:
    """One device, and two in the four forms that open_clip has, before gradients are averaged."""
    leaves = {name: inputs[name].clone().requires_grad_() for name in ("img", "cap")}
    scale = 1 / float(inputs["temp"])

    def local(mine: slice, detached: bool) -> Tensor:
        """Return the loss of a device's own rows; keys may be constants, the own ones among them."""
        x, y = (functional.normalize(leaf, dim=1) for leaf in leaves.values())
        keys = [z.detach() if detached else z for z in (x, y)]
        each = info_nce(x[mine], keys[1], scale, mine.start) + info_nce(y[mine], keys[0], scale, mine.start)
        return each.mean() / 2

    everything = slice(0, len(inputs["img"]))
    whole = local(everything, detached=False)
    exact = _gradients(whole, **leaves)
    found = {"clip_loss": whole} | {f"clip_grad_{name}": gradient for name, gradient in exact.items()}
    halves = _halves(everything.stop)
    summed = _gradients(sum(local(mine, detached=False) for mine in halves), **leaves)  # type: ignore[arg-type]
    for rank, mine in enumerate(halves):
        own = local(mine, detached=True)
        forms = {
            (0, 0): (whole, exact),
            (0, 1): (whole, {name: len(halves) * gradient for name, gradient in exact.items()}),
            (1, 0): (own, _gradients(own, **leaves)),
            (1, 1): (own, summed),
        }
        for (of_own, gathered), (loss, gradients) in forms.items():
            key = f"clip_2rank_local{of_own}_gradgather{gathered}_rank{rank}"
            found |= {f"{key}_loss": loss} | {f"{key}_grad_{name}": g[mine] for name, g in gradients.items()}
    return found
