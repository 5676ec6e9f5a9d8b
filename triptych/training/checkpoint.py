"""Checkpoints: a folder that appears whole or not at all, with everything that an exact resume needs.

Tensors are kept by the names of parameters and whole, so that one process, DDP and FSDP2 read each other's.
"""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from triptych import distributed
from triptych.data.text import Tokenizer
from triptych.errors import TriptychError
from triptych.files import new_folder
from triptych.method import Method
from triptych.model import model_tensors, run_tensors, write_model
from triptych.recipe import Recipe
from triptych.training.parallel import assign, wait, whole


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
    finished: bool = False


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


def save(out: Path, training: Training, recipe: Recipe, tokenizer: Tokenizer | None, labels: tuple[str, ...]) -> Path:
    """Write ``out/checkpoints/step-NNNNNN`` and drop older ones beyond ``recipe.keep``; all ranks call it.

    Raises:
        TriptychError: If it cannot be written; the older ones stay.
    """
    folder = out / "checkpoints" / f"step-{training.position.step:08d}"
    weights = {name: whole(tensor) for name, tensor in model_tensors(training.method).items()}
    kept = {f"state.{name}": whole(tensor) for name, tensor in run_tensors(training.method).items()}
    if training.average is not None:
        kept |= {f"average.{name}": whole(tensor) for name, tensor in training.average.items()}
    if training.order is not None:
        kept["order"] = training.order
    moments = {name: whole(tensor) for name, tensor in _optimizer_tensors(training.optimizer).items()}
    if distributed.rank() == 0 and not folder.exists():
        with new_folder(folder) as place:
            write_model(place / "model", training.method, recipe, tokenizer, labels, tensors=weights)
            save_file(_plain(kept), place / "run.safetensors")
            save_file(_plain(moments), place / "optimizer.safetensors")
            (place / "state.json").write_text(json.dumps(asdict(training.position), indent=2) + "\n")
        for old in find(out)[: -recipe.keep]:
            shutil.rmtree(old, ignore_errors=True)
    wait()
    return folder


def find(out: Path) -> list[Path]:
    """Return the whole checkpoints of a run, oldest first."""
    return sorted(path.parent for path in (out / "checkpoints").glob("step-*/state.json"))


def restore(folder: Path, training: Training) -> None:
    """Put a checkpoint into a training that was built from the same recipe.

    Raises:
        TriptychError: If a file is damaged or does not fit; names it.
    """
    training.position = Position(**json.loads((folder / "state.json").read_text()))
    weights = _load(folder / "model" / "model.safetensors")
    kept, moments = _load(folder / "run.safetensors"), _load(folder / "optimizer.safetensors")
    here = model_tensors(training.method)
    if here.keys() != weights.keys():
        odd = sorted(here.keys() ^ weights.keys())[0]
        raise TriptychError(f"{folder}: the tensor '{odd}' is in the checkpoint or in the model, but not in both.")
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


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise TriptychError(
            f"{path} is missing or damaged ({error}); remove its folder to use an older one."
        ) from error


def _put_buffer(method: Method, name: str, value: Tensor) -> None:
    """Set a tensor of the run; a buffer that is sized when the run begins takes the stored size."""
    module_name, _, leaf = name.rpartition(".")
    module = method.get_submodule(module_name)
    current = getattr(module, leaf)
    if isinstance(current, torch.nn.Parameter):
        assign(current, value)
    else:
        setattr(module, leaf, value.to(current.device))


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
