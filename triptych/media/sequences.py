"""Precomputed vectors of a recording: of our own encoders, or from the files of other programs."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from triptych.errors import TriptychError

TOUCH = 1e-3
"""Seconds that a vector's stretch and a window have in common at least: times of vectors are in single precision."""


@dataclass(frozen=True, slots=True)
class Sequence:
    """Precomputed vectors, and the stretch of time that each stands for: they follow each other without a gap."""

    vectors: Float[Tensor, "steps width"]
    times: Float[Tensor, " steps"]
    """Second at which each stretch begins."""
    end: float
    """Second at which the last one ends."""

    def between(self, start: float, end: float) -> "Sequence":
        """Return the vectors whose stretches meet [start, end)."""
        if not len(self.times):
            return self
        ends = torch.cat([self.times[1:], self.times.new_tensor([self.end])])
        chosen = (ends > start + TOUCH) & (self.times < end - TOUCH)
        last = float(ends[chosen][-1]) if chosen.any() else start
        return Sequence(self.vectors[chosen], self.times[chosen], last)


def read_sequence(path: Path) -> Sequence:
    """Return all vectors of a file (.npy, .npz or .safetensors).

    It holds ``vectors`` (steps, width) and ``times``: the second at which the stretch of each vector begins and, if
    there is one entry more, the second at which the last one ends (else it is as long as the one before; one second
    where there is none). A bare array has one vector a second.

    Raises:
        TriptychError: If the file cannot be read, or its arrays do not fit each other.
    """
    try:
        vectors, times = _load(path)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise TriptychError(f"{path}: the precomputed vectors cannot be read: {error}.") from error
    steps = len(vectors) if vectors.ndim else 0
    if vectors.ndim != 2 or (times is not None and tuple(times.shape) not in ((steps,), (steps + 1,))):
        shapes = f"vectors {tuple(vectors.shape)}" + ("" if times is None else f", times {tuple(times.shape)}")
        raise TriptychError(f"{path}: expected vectors (steps, width) and times (steps), found {shapes}.")
    seconds = torch.arange(steps, dtype=torch.float32) if times is None else times.float()
    if not (seconds[1:] > seconds[:-1]).all():
        raise TriptychError(f"{path}: the times of the vectors must increase.")
    if len(seconds) > steps:
        return Sequence(vectors.float(), seconds[:-1], float(seconds[-1]))
    step = float(seconds[-1] - seconds[-2]) if steps > 1 else 1.0
    return Sequence(vectors.float(), seconds, float(seconds[-1]) + step if steps else 0.0)


def _load(path: Path) -> tuple[Tensor, Tensor | None]:
    if path.suffix == ".safetensors":
        tensors = load_file(path)
        return tensors["vectors"], tensors.get("times")
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            times = torch.from_numpy(arrays["times"]) if "times" in arrays else None
            return torch.from_numpy(arrays["vectors"]), times
    return torch.from_numpy(np.load(path, allow_pickle=False)), None
