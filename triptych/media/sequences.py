"""Precomputed vectors of a recording, from the files of other programs."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from triptych.errors import TriptychError


@dataclass(frozen=True, slots=True)
class Sequence:
    """Precomputed vectors and the second of each."""

    vectors: Float[Tensor, "steps width"]
    times: Float[Tensor, " steps"]

    def between(self, start: float, end: float) -> "Sequence":
        """Return the vectors whose seconds lie in [start, end)."""
        chosen = (self.times >= start) & (self.times < end)
        return Sequence(self.vectors[chosen], self.times[chosen])


def read_sequence(path: Path) -> Sequence:
    """Return all vectors of a file (.npy, .npz or .safetensors).

    It holds ``vectors`` (steps, width) and ``times`` (steps, seconds); a bare array has one vector a second.

    Raises:
        TriptychError: If the file cannot be read, or its arrays do not fit each other.
    """
    try:
        vectors, times = _load(path)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise TriptychError(f"{path}: the precomputed vectors cannot be read: {error}.") from error
    if vectors.ndim != 2 or (times is not None and times.shape != vectors.shape[:1]):
        shapes = f"vectors {tuple(vectors.shape)}" + ("" if times is None else f", times {tuple(times.shape)}")
        raise TriptychError(f"{path}: expected vectors (steps, width) and times (steps), found {shapes}.")
    seconds = torch.arange(len(vectors), dtype=torch.float32) if times is None else times.float()
    return Sequence(vectors.float(), seconds)


def _load(path: Path) -> tuple[Tensor, Tensor | None]:
    if path.suffix == ".safetensors":
        tensors = load_file(path)
        return tensors["vectors"], tensors.get("times")
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            times = torch.from_numpy(arrays["times"]) if "times" in arrays else None
            return torch.from_numpy(arrays["vectors"]), times
    return torch.from_numpy(np.load(path, allow_pickle=False)), None
