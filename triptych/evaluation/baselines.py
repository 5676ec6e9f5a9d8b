"""What a linear map sees: statistics of pixels and spectrograms in the place of a model, through the same protocols."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from triptych.batch import Clip
from triptych.data.loader import Loader
from triptych.embedding import EmbeddingTable, join
from triptych.evaluation.evaluator import places_among
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

    rows: Rows
    """All rows that will be asked for; each is decoded once."""
    train: Rows | None
    """Those of them whose captions the regression learns from; without any there is no space of words."""
    workers: int | None = None
    name: str = "pixels and spectrogram"
    _described: dict[str, EmbeddingTable] = field(default_factory=dict)

    def tables(self, rows: Rows) -> Mapping[str, EmbeddingTable]:
        """Return ``features:video``, ``features:audio``, and the space of predicted words, where there are captions."""
        found = self._cut(rows)
        if self.train is not None and "caption" in rows.columns:
            words = WordMap.learn(self.train.column("caption"), self._cut(self.train))
            table = None if words is None else words.predict(rows, found)
            if table is not None:
                found["words"] = table
        return found

    def _cut(self, rows: Rows) -> dict[str, EmbeddingTable]:
        if not self._described:  # shared by the copies of other folds
            self._described.update(describe(self.rows, self.workers))
        chosen = places_among(rows, self.rows)
        return {space: table.of_rows(chosen) for space, table in self._described.items()}


def describe(rows: Rows, workers: int | None = None) -> dict[str, EmbeddingTable]:
    """Return the statistics of all rows: ``features:video`` and ``features:audio``."""
    pieces: dict[str, list[dict[str, Any]]] = {}
    with (
        Loader(rows, VIEWING, workers=workers) as loader,
        tqdm(total=len(rows), desc="pixels and spectrogram", unit="file", delay=2, disable=None) as bar,
    ):
        for batch in loader.sweep(batch_rows=16):
            for stream, clip in batch.views[0].items():
                clip = Clip(clip.data[:, 0], clip.length[:, 0], clip.span[:, 0])
                there = clip.present
                if there.any():
                    found = describe_pixels(clip) if stream == "video" else describe_sound(clip)
                    piece = _piece(stream, found[there].numpy(), batch.rows[there].numpy())
                    pieces.setdefault(f"features:{stream}", []).append(piece)
            bar.update(len(batch))
    paths = [row["path"] for row in rows]
    return {space: join(space, parts, paths) for space, parts in pieces.items()}


@dataclass(frozen=True)
class WordMap:
    """A linear map from the statistics of each stream to the words of captions."""

    words: dict[str, int]
    rarity: Float[np.ndarray, " words"]
    maps: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]
    """By stream: weights, and mean and deviation of the statistics."""

    @classmethod
    def learn(cls, captions: Sequence[str], described: Mapping[str, EmbeddingTable]) -> "WordMap | None":
        """Return the map, or None where no caption has a word."""
        folded = [text.lower().split() for text in captions]
        counts = Counter(word for text in folded for word in set(text))
        if not counts:
            return None
        words = {word: number for number, (word, _) in enumerate(counts.most_common(WORDS))}
        told = sum(map(bool, folded))
        made = cls(words, np.log(told / np.array([counts[word] for word in words])), {})
        bags = made.bags(folded)
        for space, table in described.items():
            labelled = np.array([bool(folded[number]) for number in table.numbers])
            x, y = np.asarray(table.vectors)[labelled], bags[table.numbers[labelled]]
            if len(x):
                mean, std = x.mean(axis=0), x.std(axis=0) + 1e-6
                x = (x - mean) / std
                gram = x.T @ x + PENALTY * len(x) * np.eye(x.shape[1])
                made.maps[space.removeprefix("features:")] = (np.linalg.solve(gram, x.T @ y), mean, std)
        return made

    def bags(self, captions: Sequence[Sequence[str]]) -> Float[np.ndarray, "rows words"]:
        """Return which words each caption has, rare ones counting more."""
        found = np.zeros((len(captions), len(self.words)), dtype=np.float32)
        for line, text in zip(found, captions, strict=True):
            line[[self.words[word] for word in text if word in self.words]] = 1.0
        return found * self.rarity

    def predict(self, rows: Rows, described: Mapping[str, EmbeddingTable]) -> EmbeddingTable | None:
        """Return bags of words: of the captions themselves, and predicted from each stream; None without captions."""
        folded = [text.lower().split() for text in rows.column("caption")]
        told = np.array([number for number, text in enumerate(folded) if text], dtype=np.int64)
        if not len(told):
            return None
        pieces = [_piece("text", self.bags(folded)[told], told)]
        for space, table in described.items():
            stream = space.removeprefix("features:")
            if stream in self.maps:
                weights, mean, std = self.maps[stream]
                pieces.append(_piece(stream, ((table.vectors - mean) / std) @ weights, table.numbers))
        return join("words", pieces, [row["path"] for row in rows])


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
