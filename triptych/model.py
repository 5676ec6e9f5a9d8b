"""The model folder: what ``load`` reads, a run writes at its end, and an importer makes.

``config.json`` (format, method, config, how it looks at a recording, label names), ``model.safetensors``,
``tokenizer.json`` where there is text, and a ``README.md`` for people.
"""

import hashlib
import json
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from triptych import catalog
from triptych.data.text import Tokenizer
from triptych.embedding import embed_file
from triptych.errors import TriptychError, UsageError
from triptych.files import new_folder
from triptych.method import Method, RunState
from triptych.recipe import Config, Recipe, Viewing, validate

FORMAT = 1
"""Version of the folder's layout. A reader refuses any other."""


@dataclass
class Model:
    """A method with its weights, and all that is needed to use it on a recording."""

    method: Method
    method_name: str
    """Name in the catalogue, or ``module:Class``."""
    test: Viewing
    """How it looks at a recording."""
    tokenizer: Tokenizer | None = None
    labels: tuple[str, ...] = ()
    """Names of the classes, of a fine-tuned model."""
    name: str = ""
    """What the person called it: a path, or ``random:lava``."""
    fingerprint: str = ""
    """Hash of configuration and weights."""
    made: dict[str, Any] = field(default_factory=dict)
    """What the folder says of its making: version, run, data."""

    def embed(self, path: str | Path) -> dict[str, dict[str, np.ndarray]]:
        """Return the vectors of a file's windows, in order of time: space -> stream -> (windows, dim), float32.

        Raises:
            UsageError: If there is no such file.
            TriptychError: If it cannot be read.
        """
        return embed_file(self, path)

    @property
    def num_parameters(self) -> int:
        """Number of values in the model's parameters."""
        return sum(parameter.numel() for parameter in self.method.parameters())


def model_tensors(method: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name, without those of a ``RunState``, a shared tensor once."""
    seen: set[int] = set()
    result = {}
    run_state = tuple(name + "." for name, module in method.named_modules() if isinstance(module, RunState))
    for name, tensor in method.state_dict(keep_vars=True).items():
        if not name.startswith(run_state) and id(tensor) not in seen:
            seen.add(id(tensor))
            result[name] = tensor.detach()
    return result


def run_tensors(method: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of ``RunState`` modules by name: what belongs to the run and not to its model."""
    run_state = tuple(name + "." for name, module in method.named_modules() if isinstance(module, RunState))
    found = method.state_dict(keep_vars=True).items()
    return {name: tensor.detach() for name, tensor in found if name.startswith(run_state)} if run_state else {}


def write_model(
    folder: str | Path,
    method: Method,
    recipe: Recipe,
    tokenizer: Tokenizer | None = None,
    labels: tuple[str, ...] = (),
    made: dict[str, Any] | None = None,
    tensors: dict[str, Tensor] | None = None,
) -> None:
    """Write a model folder; the folder appears whole or not at all.

    Args:
        folder: Where; must not exist.
        method: The method, whose weights are written unless ``tensors`` gives others (an average, gathered shards).
        recipe: Names the method and says how it looks at a recording.
        tokenizer: Where the method reads text.
        labels: Names of the classes of a fine-tuned model.
        made: Facts about the making, for people.
        tensors: Weights by name instead of the method's own.

    Raises:
        TriptychError: If ``folder`` exists or cannot be written.
    """
    with new_folder(folder) as place:
        fill_model(place, method, recipe, tokenizer, labels, made, tensors)


def fill_model(
    place: Path,
    method: Method,
    recipe: Recipe,
    tokenizer: Tokenizer | None,
    labels: tuple[str, ...],
    made: dict[str, Any] | None,
    tensors: dict[str, Tensor] | None,
) -> None:
    """Write the files of a model into a folder that somebody else makes appear; arguments as of ``write_model``."""
    config = {
        "format": FORMAT,
        "triptych": version("triptych"),
        "method": recipe.method,
        "config": recipe.config.model_dump(mode="json"),
        "test": recipe.test.model_dump(mode="json"),
        "labels": list(labels),
        "spaces": method.spaces,
        "made": made or {},
    }
    weights = model_tensors(method) if tensors is None else tensors
    save_file({name: tensor.cpu().contiguous() for name, tensor in weights.items()}, place / "model.safetensors")
    (place / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save(place / "tokenizer.json")
    (place / "README.md").write_text(_card(config, method), encoding="utf-8")


def read_model(folder: str | Path, device: torch.device | str = "cpu") -> Model:
    """Read a model folder, or the model of a run (its newest whole checkpoint where it has not ended).

    Raises:
        UsageError: If there is no model at ``folder``.
        TriptychError: If it is of another format, or its files are damaged or do not fit each other.
    """
    place = find_model(folder)
    config = read_config(place)
    kind = catalog.resolve(config["method"])
    method: Method = kind(validate(kind.config_class, config["config"], str(place / "config.json")))
    weights = place / "model.safetensors"
    load_tensors(method, read_tensors(weights, "copy or train the model again"), str(weights))
    path = place / "tokenizer.json"
    return Model(
        method=method.to(device).eval(),
        method_name=config["method"],
        test=validate(Viewing, config["test"], str(place / "config.json")),
        tokenizer=Tokenizer.load(path) if path.exists() else None,
        labels=tuple(config["labels"]),
        name=str(folder),
        fingerprint=_fingerprint(place),
        made=config["made"] | {"triptych": config["triptych"], "format": config["format"]},
    )


def read_tensors(path: Path, remedy: str) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, on the CPU.

    Raises:
        TriptychError: If the file is missing, cut off or garbage; it tells the ``remedy``.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise TriptychError(f"{path} is missing or damaged ({error}); {remedy}.") from error


def load_tensors(method: Method, tensors: dict[str, Tensor], source: str) -> None:
    """Put ``tensors`` into ``method``; every tensor of the model must be there, and no other.

    Raises:
        TriptychError: Names ``source`` and the first key that is missing, left over or of another shape.
    """
    check_tensors(method, tensors, source)
    state = method.state_dict()
    with torch.no_grad():
        for name, tensor in tensors.items():
            state[name].copy_(tensor)


def check_tensors(method: Method, tensors: dict[str, Tensor], source: str) -> None:
    """Check that ``tensors`` are those of the model, by name and shape.

    Raises:
        TriptychError: As ``load_tensors``.
    """
    wanted = model_tensors(method)
    for name in wanted:
        if name not in tensors:
            raise TriptychError(f"{source}: the tensor '{name}' is missing; it does not fit this configuration.")
        if tensors[name].shape != wanted[name].shape:
            there, here = tuple(tensors[name].shape), tuple(wanted[name].shape)
            raise TriptychError(f"{source}: the tensor '{name}' has the shape {there}, the configuration wants {here}.")
    for name in tensors:
        if name not in wanted:
            raise TriptychError(f"{source}: the tensor '{name}' is unknown to this configuration.")


def random_model(
    method_name: str, config: Config, test: Viewing, tokenizer: Tokenizer | None = None, seed: int = 0
) -> Model:
    """Return a model with random weights, of the shape that ``config`` says: the baseline of every table."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        method: Method = catalog.resolve(method_name)(config)
    if tokenizer is not None and tokenizer.vectors is not None:
        method.take_words(tokenizer.vectors)
    digest = hashlib.sha256(f"{method_name} {seed} {config.model_dump_json()}".encode()).hexdigest()
    return Model(
        method=method.eval(),
        method_name=method_name,
        test=test,
        tokenizer=tokenizer,
        name=f"random:{method_name}",
        fingerprint=digest,
        made={"seed": seed},
    )


def find_model(folder: str | Path) -> Path:
    """Return the model folder that ``folder`` is, or holds as a run.

    Raises:
        UsageError: If there is none.
    """
    folder = Path(folder)
    if (folder / "config.json").is_file():
        return folder
    if (folder / "model" / "config.json").is_file():
        return folder / "model"
    checkpoints = sorted(folder.glob("checkpoints/step-*/model/config.json"))
    if checkpoints:
        return checkpoints[-1].parent
    if not folder.exists():
        raise UsageError(f"{folder}: there is no such model; give a model folder, a run, or random:METHOD.")
    raise UsageError(f"{folder} is neither a model folder (no config.json) nor a run with a model or a checkpoint.")


def read_config(place: Path) -> dict[str, Any]:
    """Return the ``config.json`` of a model folder.

    Raises:
        TriptychError: If it is damaged, or of another format than this version reads.
    """
    path = place / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TriptychError(f"{path} cannot be read as JSON: {error}.") from error
    found = config.get("format") if isinstance(config, dict) else None
    if found != FORMAT:
        made_by = config.get("triptych", "unknown") if isinstance(config, dict) else "unknown"
        raise TriptychError(
            f"{place} has model format {found} (made by triptych {made_by}); this version reads format {FORMAT}: "
            "use the version that made it, or train it again."
        )
    missing = [key for key in ("method", "config", "test", "labels", "made", "triptych") if key not in config]
    if missing:
        raise TriptychError(f"{path} lacks '{missing[0]}'; the folder is damaged or no model of ours.")
    return dict(config)


def _fingerprint(place: Path) -> str:
    digest = hashlib.sha256()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        path = place / name
        if path.exists():
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _card(config: dict[str, Any], method: Method) -> str:
    entry = catalog.CATALOG.get(config["method"])
    parameters = sum(parameter.numel() for parameter in method.parameters())
    lines = [
        f"# {entry.title if entry else config['method']}",
        "",
        f"A model of the method `{config['method']}`" + (f" ({entry.paper})." if entry else "."),
        "",
        f"- parameters: {parameters:,}",
        f"- joint spaces: {', '.join(f'{name} ({metric})' for name, metric in config['spaces'].items()) or 'none'}",
        f"- written by triptych {config['triptych']}, model format {config['format']}",
        *(f"- {key}: {value}" for key, value in config["made"].items()),
        "",
        "```python",
        "import triptych",
        "",
        'model = triptych.load("THIS FOLDER")',
        'vectors = model.embed("clip.mp4")',
        "```",
        "",
    ]
    return "\n".join(lines)
