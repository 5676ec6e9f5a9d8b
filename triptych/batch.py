"""What flows from the data to a method: batches of views, views of clips.

Seconds are seconds of the recording. A *stream* is a name: ``video``, ``audio``, ``text``, or that of a precomputed
feature.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

Stream = str
"""Name of a signal of a recording."""

Modality = Literal["video", "audio", "text", "sequence"]
"""What kind of signal a stream is; ``sequence`` is precomputed vectors."""


@dataclass(frozen=True)
class Clip:
    """One stream of one view, for the whole batch.

    Shapes of ``data``, with ``candidates`` after ``batch`` where a row has several captions or grid windows:
    video ``batch frames height width channels`` (uint8 from the loader, float after the transforms), waveform
    ``batch samples``, spectrogram ``batch steps mels``, text ``batch steps`` (token ids), sequence
    ``batch steps width``.
    """

    data: Shaped[Tensor, "batch ..."]
    length: Int[Tensor, " batch *candidates"]
    """Valid steps along time (frames, samples, mel steps, tokens); 0 where the row truly has none (silent, untold)."""
    span: Float[Tensor, " batch *candidates 2"]
    """Start and end of each window."""
    times: Float[Tensor, " batch *candidates steps"] | None = None
    """Second of each step, where they are not evenly spaced."""

    @property
    def present(self) -> Bool[Tensor, " batch"]:
        """Rows that have this stream at all (in at least one candidate)."""
        return self.length.reshape(len(self.length), -1).gt(0).any(dim=1)

    def first(self) -> "Clip":
        """Return the first candidate of each row (of a grid, its first window); the clip itself where it has none."""
        if self.length.ndim == 1:
            return self
        times = None if self.times is None else self.times[:, 0]
        return Clip(self.data[:, 0], self.length[:, 0], self.span[:, 0], times)

    def to(self, device: torch.device | str) -> "Clip":
        """Return the clip on ``device``."""
        return Clip(
            data=self.data.to(device, non_blocking=True),
            length=self.length.to(device, non_blocking=True),
            span=self.span.to(device, non_blocking=True),
            times=None if self.times is None else self.times.to(device, non_blocking=True),
        )


View = dict[Stream, Clip]
"""One window under one augmentation. An absent key means that the stream was not wanted."""


@dataclass(frozen=True)
class Batch:
    """Some rows of the data, seen as the recipe says."""

    views: tuple[View, ...]
    """Shapes may differ from view to view (global and local crops)."""
    rows: Int[Tensor, " batch"]
    """Row of the data set of each item: cluster targets and memory banks are kept by it."""
    drawn: dict[str, Tensor] = field(default_factory=dict)
    """What the windows drew and a method may have to guess: pace, reversed, order; of a grid its windows, zeros beyond
    those that a row has. First axis ``batch``."""
    targets: dict[str, Tensor] = field(default_factory=dict)
    """By column of the manifest; empty in pretraining. First axis ``batch``."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on ``device``."""
        return Batch(
            views=tuple({stream: clip.to(device) for stream, clip in view.items()} for view in self.views),
            rows=self.rows.to(device, non_blocking=True),
            drawn={name: value.to(device, non_blocking=True) for name, value in self.drawn.items()},
            targets={name: value.to(device, non_blocking=True) for name, value in self.targets.items()},
        )
