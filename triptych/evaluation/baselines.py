"""What a linear map sees: statistics of pixels and spectrograms in the place of a model, through the same protocols."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from triptych.batch import Clip
from triptych.data.loader import Loader
from triptych.embedding import EmbeddingTable, join
from triptych.media.collection import Rows
from triptych.recipe import AudioTransform, Grid, StreamSpec, VideoTransform, Viewing

SIDE = 8
"""Cells along each side of the grid of mean colours."""
WORDS = 300
"""Commonest words of the captions that the linear map predicts."""
PENALTY = 1.0
"""Ridge penalty, over features with unit variance, a row."""

VIEWING = Viewing(
    windows=Grid(count=1),
    views=(
        {
            "video": StreamSpec(transform=VideoTransform(size=64, pixels="unit"), rate=4.0, required=False),
            "audio": StreamSpec(transform=AudioTransform(mels=64), rate=16_000.0, short="zero", required=False),
        },
    ),
)
"""The whole recording at 4 frames a second."""


@dataclass
class PixelsAndSpectrogram:
    """A sweeper without learning, but for a ridge regression from its statistics to the words of training captions."""

    train: Rows
    workers: int | None = None
    name: str = "pixels and spectrogram"
    _made: dict[str, dict[str, EmbeddingTable]] = field(default_factory=dict)
    _maps: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=dict)
    _words: list[str] = field(default_factory=list)

    def tables(self, rows: Rows) -> Mapping[str, EmbeddingTable]:
        """Return ``features:video``, ``features:audio``, and the space of predicted words, where there are captions."""
        key = rows.fingerprint
        if key not in self._made:
            self._made[key] = self._describe(rows)
            if "caption" in rows.columns and any(text.strip() for text in rows.column("caption")):
                self._made[key]["words"] = self._predict(rows, self._made[key])
        return self._made[key]

    def _describe(self, rows: Rows) -> dict[str, EmbeddingTable]:
        pieces: dict[str, list[dict[str, Any]]] = {}
        with Loader(rows, VIEWING, workers=self.workers) as loader:
            for batch in loader.sweep(batch_rows=16):
                for stream, clip in batch.views[0].items():
                    clip = Clip(clip.data[:, 0], clip.length[:, 0], clip.span[:, 0])
                    there = clip.present
                    if there.any():
                        found = describe_pixels(clip) if stream == "video" else describe_sound(clip)
                        piece = {
                            "stream": stream,
                            "vectors": found[there].numpy(),
                            "numbers": batch.rows[there].numpy(),
                            "spans": clip.span[there].numpy(),
                            "crops": np.zeros(int(there.sum()), dtype=np.int64),
                        }
                        pieces.setdefault(f"features:{stream}", []).append(piece)
        paths = [row["path"] for row in rows]
        return {space: join(space, parts, paths) for space, parts in pieces.items()}

    def _predict(self, rows: Rows, described: dict[str, EmbeddingTable]) -> EmbeddingTable:
        """Return bags of words: of the captions themselves, and predicted from each stream."""
        if not self._words:
            self._learn()
        captions = [" ".join(text.lower().split()) for text in rows.column("caption")]
        bags = self._bags(captions)
        told = np.array([number for number, text in enumerate(captions) if text])
        pieces = [_piece("text", bags[told], told)]
        for space, table in described.items():
            stream = space.removeprefix("features:")
            if stream in self._maps:
                weights, mean, std = self._maps[stream]
                pieces.append(_piece(stream, ((table.vectors - mean) / std) @ weights, table.numbers))
        return join("words", pieces, [row["path"] for row in rows])

    def _learn(self) -> None:
        captions = [" ".join(text.lower().split()) for text in self.train.column("caption")]
        counts = Counter(word for text in captions for word in set(text.split()))
        self._words = [word for word, _ in counts.most_common(WORDS)]
        bags = self._bags(captions)
        key = self.train.fingerprint
        if key not in self._made:
            self._made[key] = self._describe(self.train)
        for space, table in self._made[key].items():
            if not space.startswith("features:"):
                continue
            told = np.array([bool(captions[number]) for number in table.numbers])
            x, y = np.asarray(table.vectors)[told], bags[table.numbers[told]]
            mean, std = x.mean(axis=0), x.std(axis=0) + 1e-6
            x = (x - mean) / std
            gram = x.T @ x + PENALTY * len(x) * np.eye(x.shape[1])
            self._maps[space.removeprefix("features:")] = (np.linalg.solve(gram, x.T @ y), mean, std)

    def _bags(self, captions: list[str]) -> Float[np.ndarray, "rows words"]:
        place = {word: number for number, word in enumerate(self._words)}
        bags = np.zeros((len(captions), len(place)), dtype=np.float32)
        for number, text in enumerate(captions):
            for word in text.split():
                if word in place:
                    bags[number, place[word]] = 1.0
        rarity = np.log(len(captions) / np.maximum((bags > 0).sum(axis=0), 1))
        return bags * rarity


def describe_pixels(clip: Clip) -> Float[Tensor, "batch dim"]:
    """Return mean and deviation over time of a grid of mean colours, and of their change from frame to frame."""
    video = clip.data.permute(0, 1, 4, 2, 3).flatten(0, 1)
    cells = functional.adaptive_avg_pool2d(video, SIDE).unflatten(0, clip.data.shape[:2]).flatten(2)
    valid = torch.arange(cells.shape[1]) < clip.length[:, None]
    moved = (cells[:, 1:] - cells[:, :-1]).abs()
    return torch.cat([*_moments(cells, valid), _moments(moved, valid[:, 1:])[0]], dim=1)


def describe_sound(clip: Clip) -> Float[Tensor, "batch dim"]:
    """Return mean and deviation over time of each mel band, and of its change."""
    valid = torch.arange(clip.data.shape[1]) < clip.length[:, None]
    moved = (clip.data[:, 1:] - clip.data[:, :-1]).abs()
    return torch.cat([*_moments(clip.data, valid), _moments(moved, valid[:, 1:])[0]], dim=1)


def _moments(x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    weight = valid[:, :, None].float()
    count = weight.sum(dim=1).clamp(min=1)
    mean = (x * weight).sum(dim=1) / count
    return mean, (((x - mean[:, None]) * weight).square().sum(dim=1) / count).sqrt()


def _piece(stream: str, vectors: np.ndarray, numbers: np.ndarray) -> dict[str, Any]:
    return {
        "stream": stream,
        "vectors": vectors.astype(np.float32),
        "numbers": np.asarray(numbers, dtype=np.int64),
        "spans": np.zeros((len(numbers), 2)),
        "crops": np.zeros(len(numbers), dtype=np.int64),
    }
