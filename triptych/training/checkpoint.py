"""A run's folder and its checkpoints: each appears whole or not at all, with everything that an exact resume needs.

Tensors are kept by the names of parameters and whole, so that one process, DDP and FSDP2 read each other's.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from triptych import distributed
from triptych.data.text import Tokenizer
from triptych.errors import TriptychError, UsageError
from triptych.files import leftovers, new_folder, remove_folder, replacing
from triptych.media.collection import Rows
from triptych.method import Method
from triptych.model import check_tensors, fill_model, model_tensors, read_config, read_tensors, run_tensors
from triptych.recipe import Recipe, validate
from triptych.training.parallel import assign, first_rank, whole


@dataclass
class Position:
    """Where a run stands."""

    step: int = 0
    """Optimizer steps done."""
    epoch: int = 0
    """Epochs begun before the current one."""
    epoch_step: int = 0
    """Steps done of the current epoch."""
    round: int = 0
    round_step: int = 0
    """Steps done of the current round."""
    seconds: float = 0.0
    """Time spent in training."""
    rows: int = 0
    """Rows seen."""
    planned: bool = False
    """Whether the current epoch's plan was made."""
    best: float | None = None
    """Best value so far of the score that ``recipe.selection`` names."""
    best_step: int | None = None
    """Step that it was measured at: the checkpoint is kept."""
    stale: int = 0
    """Measurements in a row without a better value."""


@dataclass
class Training:
    """All that changes during a run."""

    method: Method
    optimizer: Optimizer
    average: dict[str, Tensor] | None = None
    """Moving average of the model's tensors, by name."""
    order: Tensor | None = None
    """Rows of the current epoch, if its plan named them."""
    position: Position = field(default_factory=Position)


def claim(out: Path, recipe: Recipe, rows: Rows, facts: Mapping[str, Any]) -> None:
    """Write ``out/recipe.json``, or make sure that it tells of this very run; clear away what a killed process left.

    Raises:
        UsageError: If ``out`` holds a run of another recipe, whose first key that differs is named, or of other data.
        TriptychError: If ``recipe.json`` is damaged or cannot be written.
    """
    place = out / "recipe.json"
    if place.exists():
        try:
            there = json.loads(place.read_text(encoding="utf-8"))
            before, fingerprint = there["recipe"], there["data"]["fingerprint"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TriptychError(f"{place} is damaged: {error}.") from error
        before = validate(Recipe, before, str(place)).model_dump(mode="json")
        key = _difference(before, recipe.model_dump(mode="json"))
        if key is not None:
            raise UsageError(f"{out} holds a run of another recipe: '{key}' differs; choose another place.")
        if fingerprint != rows.fingerprint:
            raise UsageError(f"{rows.source} has changed since {out} began; an exact continuation is not possible.")
    with first_rank() as here:
        if here and not place.exists():
            data = {"source": rows.source, "rows": len(rows), "fingerprint": rows.fingerprint}
            content = {"recipe": recipe.model_dump(mode="json"), "data": data, **facts}
            with replacing(place) as neighbour:
                neighbour.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        for left in (*leftovers(out), *leftovers(out / "checkpoints")) if here else ():
            shutil.rmtree(left) if left.is_dir() else left.unlink()


def _difference(one: Any, other: Any) -> str | None:
    """Return the first key that differs, with dots: empty where the two are no mappings, None where they are equal."""
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        one, other = dict(enumerate(one)), dict(enumerate(other))
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return None if one == other else ""
    for key in [*other, *(key for key in one if key not in other)]:
        inner = _difference(one.get(key), other.get(key))
        if inner is not None:
            return f"{key}.{inner}".rstrip(".")
    return None


def save(out: Path, training: Training, recipe: Recipe, tokenizer: Tokenizer | None, labels: tuple[str, ...]) -> Path:
    """Write ``out/checkpoints/step-NNNNNN`` and drop older ones beyond ``recipe.keep``; all ranks call it.

    Raises:
        TriptychError: On all ranks, if it cannot be written; the older ones stay.
    """
    folder = at_step(out, training.position.step)
    if distributed.agree(folder.exists()):  # the run has not moved since
        return folder
    weights = gathered(model_tensors(training.method))
    kept = gathered({f"state.{name}": tensor for name, tensor in run_tensors(training.method).items()})
    if training.average is not None:
        kept |= gathered({f"average.{name}": tensor for name, tensor in training.average.items()})
    if training.order is not None:
        kept["order"] = training.order
    moments = gathered(_optimizer_tensors(training.optimizer))
    with first_rank() as here:
        if here:
            with new_folder(folder) as place:
                (place / "model").mkdir()
                fill_model(place / "model", training.method, recipe, tokenizer, labels, None, weights)
                save_file(kept, place / "run.safetensors")
                save_file(moments, place / "optimizer.safetensors")
                (place / "state.json").write_text(json.dumps(asdict(training.position), indent=2) + "\n")
            best = training.position.best_step
            for old in find(out)[: -recipe.keep]:
                if best is None or old != at_step(out, best):
                    remove_folder(old)
    return folder


def at_step(out: Path, step: int) -> Path:
    """Return where the checkpoint of a step lies."""
    return out / "checkpoints" / f"step-{step:08d}"


def weights_at(folder: Path) -> dict[str, Tensor]:
    """Return the weights that a checkpoint's model has: the moving average where there is one.

    Raises:
        TriptychError: If a file is damaged or missing.
    """
    remedy = "the run cannot end with its best weights"
    kept = read_tensors(folder / "run.safetensors", remedy)
    average = {name.removeprefix("average."): x for name, x in kept.items() if name.startswith("average.")}
    return average or read_tensors(folder / "model" / "model.safetensors", remedy)


def find(out: Path) -> list[Path]:
    """Return the whole checkpoints of a run, oldest first."""
    return sorted(path.parent for path in (out / "checkpoints").glob("step-*/state.json"))


def restore(folder: Path, training: Training) -> None:
    """Put a checkpoint into a training that was built from the same recipe.

    Raises:
        TriptychError: If a file is damaged, of another format, or does not fit; names it.
    """
    read_config(folder / "model")
    remedy = "remove its folder to go on from an older one"
    training.position = _read_position(folder / "state.json", remedy)
    weights = read_tensors(folder / "model" / "model.safetensors", remedy)
    kept = read_tensors(folder / "run.safetensors", remedy)
    moments = read_tensors(folder / "optimizer.safetensors", remedy)
    check_tensors(training.method, weights, str(folder))
    live = training.method.state_dict(keep_vars=True)
    for name, value in weights.items():
        assign(live[name], value)
    for name, value in kept.items():
        kind, _, rest = name.partition(".")
        if kind == "state":
            _put_buffer(training.method, rest, value)
        elif kind == "average" and training.average is not None:
            assign(training.average[rest], value)
        elif kind == "order":
            training.order = value
    _put_moments(training.optimizer, moments)


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the whole of tensors that may be sharded, on the CPU of rank 0 (elsewhere nothing); all ranks call it."""
    found = {}
    for name, tensor in tensors.items():  # one by one: together they may not fit a device
        complete = whole(tensor)
        if distributed.rank() == 0:
            found[name] = complete.detach().cpu().contiguous()
    return found


def _read_position(path: Path, remedy: str) -> Position:
    try:
        return Position(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise TriptychError(f"{path} is missing or damaged ({error}); {remedy}.") from error


def _put_buffer(method: Method, name: str, value: Tensor) -> None:
    """Set a tensor of the run; a buffer that is sized when the run begins takes the stored size."""
    module_name, _, leaf = name.rpartition(".")
    module = method.get_submodule(module_name)
    current = getattr(module, leaf)
    if isinstance(current, torch.nn.Parameter):
        assign(current, value)
    else:
        setattr(module, leaf, value.to(next(method.parameters()).device))


def _optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    found = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                if value is not None:
                    found[f"{name}|{key}"] = torch.as_tensor(value)
    return found


def _put_moments(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    by_name: dict[str, dict[str, Any]] = {}
    for name, value in tensors.items():
        parameter, _, key = name.partition("|")
        by_name.setdefault(parameter, {})[key] = value
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            state: dict[str, Any] = {}
            for key, value in by_name.get(name, {}).items():
                if key != "step" and value.shape == parameter.shape:
                    state[key] = torch.zeros_like(parameter)
                    assign(state[key], value)
                else:
                    state[key] = value.clone()  # the count of steps, which torch keeps on the CPU
            if state:
                optimizer.state[parameter] = state
