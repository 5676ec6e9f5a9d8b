"""What the toy world yields to a reader who learns no representation: the check of the measuring instrument.

Writes a toy world (or takes one that is there) and prints, for its test split: chance and the ceiling of retrieval from
ground truth; retrieval and attributes by linear maps from statistics of pixels and of the spectrogram; and, with
``--network SECONDS``, the attributes that a small supervised convolutional network reads from the same windows.

    python benchmarks/toyworld_baselines.py --out /tmp/toyworld [--network 150]
"""

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from triptych.media.recording import Recording
from triptych.toyworld.truth import ceiling
from triptych.toyworld.write import RECORDINGS, write_toyworld

LABELS = ("kind", "colour", "size", "motion")
FRAMES, SIDE, RATE, SECONDS = 16, 48, 16000, 2.0


def read_windows(folder: Path, rows: list[dict[str, str]]) -> tuple[Tensor, Tensor]:
    """The middle two seconds of each recording: 16 frames of 48 pixels (0 to 1), and 40 log-mels at 50 a second."""
    frames, mels = [], []
    bank = _mel_bank(40, 512)
    window = torch.hann_window(512)
    for row in tqdm(rows, desc="reading", delay=2, disable=None):
        start = max(0.0, float(row["duration"]) / 2 - SECONDS / 2)
        recording = Recording(folder / row["path"])
        picture = recording.frames([start + (k + 0.5) * SECONDS / FRAMES for k in range(FRAMES)])
        picture = functional.adaptive_avg_pool2d(picture.permute(0, 3, 1, 2).float() / 255, SIDE)
        sound = recording.waveform(start, start + SECONDS, RATE).mean(0)
        power = torch.stft(sound, 512, 320, window=window, center=False, return_complex=True).abs() ** 2
        frames.append(picture)
        mels.append(torch.log(power.T @ bank + 1e-5))
    return torch.stack(frames), torch.stack(mels)


def describe_pixels(frames: Tensor) -> np.ndarray:
    """Mean, deviation and change over time of 12 x 12 pixels; means, deviations and a histogram of 64 colours."""
    small = functional.adaptive_avg_pool2d(frames.flatten(0, 1), 12).unflatten(0, frames.shape[:2])
    level = (frames * 4).long().clamp(0, 3)
    code = (level[:, :, 0] * 16 + level[:, :, 1] * 4 + level[:, :, 2]).flatten(1)
    histogram = torch.zeros(len(frames), 64).scatter_add_(1, code, torch.ones(code.shape)) / code.shape[1]
    pieces = [small.mean(1), small.std(1), small.diff(dim=1).abs().mean(1)]
    pieces += [frames.mean((1, 3, 4)), frames.std((1, 3, 4))]
    return torch.cat([*(part.flatten(1) for part in pieces), histogram.sqrt()], 1).numpy()


def describe_sound(mels: Tensor) -> np.ndarray:
    """Mean, deviation and change over time of each log-mel."""
    return torch.cat([mels.mean(1), mels.std(1), mels.diff(dim=1).abs().mean(1)], 1).numpy()


def map_ridge(x: np.ndarray, y: np.ndarray, train: np.ndarray, strength: float) -> np.ndarray:
    """Predict ``y`` from ``x`` for all rows, by a ridge regression over the ``train`` rows."""
    weights = np.linalg.solve(x[train].T @ x[train] + strength * np.eye(x.shape[1]), x[train].T @ y[train])
    return x @ weights


def map_cca(
    x: np.ndarray, y: np.ndarray, train: np.ndarray, strength: float, width: int = 20
) -> tuple[np.ndarray, np.ndarray]:
    """Both sides in the space of their regularized canonical correlations, weighted by these."""

    def whiten(part: np.ndarray) -> np.ndarray:
        values, vectors = np.linalg.eigh(part[train].T @ part[train] / train.sum() + strength * np.eye(part.shape[1]))
        return vectors / np.sqrt(values) @ vectors.T

    left, right = whiten(x), whiten(y)
    u, s, vt = np.linalg.svd(left @ (x[train].T @ y[train] / train.sum()) @ right, full_matrices=False)
    return x @ left @ u[:, :width] * s[:width], y @ right @ vt[:width].T * s[:width]


def recall(queries: np.ndarray, candidates: np.ndarray, right: np.ndarray) -> float:
    """R@1 by the cosine; ``right`` says which candidates answer which query."""
    scores = _unit(queries) @ _unit(candidates).T
    return float(right[np.arange(len(scores)), scores.argmax(1)].mean())


def probe(x: np.ndarray, labels: list[str], split: np.ndarray) -> float:
    """Test accuracy of a linear map to the classes; its regularization chosen on the validation rows."""
    names = sorted(set(labels))
    truth = np.array([names.index(label) for label in labels])
    target = np.eye(len(names))[truth] - 1 / len(names)
    guesses = [map_ridge(x, target, split == "train", strength).argmax(1) for strength in np.logspace(1, 5, 9)]
    best = max(guesses, key=lambda guess: (guess == truth)[split == "val"].mean())
    return float((best == truth)[split == "test"].mean())


def best_recall(scored: Callable[[float, str], float]) -> float:
    """The test R@1 of the regularization that is best on the validation rows."""
    strengths = np.logspace(-1, 4, 6).tolist()
    return scored(max(strengths, key=lambda strength: scored(strength, "val")), "test")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recordings", type=int, default=RECORDINGS)
    parser.add_argument("--difficulty", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--network", type=float, default=0.0, help="seconds to train each supervised network")
    options = parser.parse_args()
    begun = time.time()
    manifest = write_toyworld(options.out, options.recordings, options.seed, options.difficulty)
    print(f"{options.recordings} recordings, difficulty {options.difficulty:g}, seed {options.seed}; ", end="")
    print(f"written in {time.time() - begun:.0f} s")
    with manifest.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    split = np.array([row["split"] for row in rows])
    told = (split == "train") & np.array([row["captioned"] == "yes" for row in rows])
    frames, mels = read_windows(options.out, rows)
    pixels, sounds = (_standard(x, split == "train") for x in (describe_pixels(frames), describe_sound(mels)))
    words = _bags([row["caption"] for row in rows], told)
    captions = np.array([row["caption"] for row in rows])
    test = split == "test"
    same = captions[:, None] == captions[None]
    itself = np.eye(len(rows), dtype=bool)

    def by_ridge(x: np.ndarray) -> Callable[[float, str], float]:
        def scored(strength: float, name: str) -> float:
            rows = split == name
            predicted = map_ridge(x, words, told, 10 * strength)
            return recall(words[rows], predicted[rows], same[np.ix_(rows, rows)])

        return scored

    def by_words(strength: float, name: str) -> float:
        rows = split == name
        heard, seen = (map_ridge(x, words, told, 10 * strength) for x in (sounds, pixels))
        return recall(heard[rows], seen[rows], itself[np.ix_(rows, rows)])

    def by_cca(x: np.ndarray, fit: np.ndarray, right: np.ndarray) -> Callable[[float, str], float]:
        def scored(strength: float, name: str) -> float:
            rows = split == name
            left, seen = map_cca(x, pixels, fit, strength)
            return recall(left[rows], seen[rows], right[np.ix_(rows, rows)])

        return scored

    best = ceiling([row for row in rows if row["split"] == "test"])
    chance = float(same[np.ix_(test, test)].mean())
    print(f"\nretrieval among {test.sum()} test recordings, R@1 in %")
    print(f"  {'':28}{'chance':>8}{'ridge':>8}{'CCA':>8}{'ceiling':>8}")
    lines = (
        ("text -> video", chance, by_ridge(pixels), by_cca(words, told, same), best["text_to_video"]),
        ("audio -> video", 1 / test.sum(), by_words, by_cca(sounds, split == "train", itself), best["audio_to_video"]),
    )
    for name, low, ridge, cca, high in lines:
        print(
            f"  {name:28}{100 * low:8.1f}{100 * best_recall(ridge):8.1f}{100 * best_recall(cca):8.1f}{100 * high:9.1f}"
        )
    print(f"  audio -> video without the timing of events: ceiling {100 * best['audio_to_video_untimed']:.1f}")
    print("\nattributes, test accuracy in %")
    print("  " + " ".join(f"{name:>8}" for name in ("", *LABELS)))
    columns = {label: [row[label] for row in rows] for label in LABELS}
    counts = {label: len(set(values)) for label, values in columns.items()}
    print("  " + " ".join(["  chance", *(f"{100 / counts[label]:8.1f}" for label in LABELS)]))
    for name, x in (("pixels", pixels), ("sound", sounds)):
        scores = [100 * probe(x, columns[label], split) for label in LABELS]
        print("  " + " ".join([f"{name:>8}", *(f"{score:8.1f}" for score in scores)]))
    if options.network:
        for name, x, network in (("video", frames - 0.5, SeesThings()), ("audio", (mels + 5) / 4, HearsThings())):
            scores = supervise(network, x, columns, split, options.network)
            print("  " + " ".join([f"{name:>8}", *(f"{100 * score:8.1f}" for score in scores)]), end="")
            print(f"   (supervised network, {options.network:g} s, {torch.get_num_threads()} threads)")


class SeesThings(nn.Module):
    """Convolutions over each frame, keeping what is there and where it is; convolutions over time."""

    def __init__(self) -> None:
        super().__init__()
        self.frame = nn.Sequential(_block(3, 24, 2), _block(24, 48, 2), _block(48, 64, 1), _block(64, 96, 2))
        self.where = nn.Conv2d(96, 48, 1)
        self.time = nn.Sequential(
            *(nn.Conv1d(192, 128, 3, padding=1), nn.BatchNorm1d(128), nn.ReLU()),
            *(nn.Conv1d(128, 128, 3, padding=1), nn.BatchNorm1d(128), nn.ReLU()),
        )
        self.head = nn.LazyLinear(25)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of all values of all attributes, side by side."""
        shift = torch.randint(-5, 6, (2,)).tolist() if self.training else [0, 0]
        maps = self.frame(torch.roll(x, shift, (3, 4)).flatten(0, 1))
        weights = functional.softmax(4 * self.where(maps).flatten(2), -1)
        steps = torch.linspace(-1, 1, maps.shape[-1])
        places = torch.cat([weights @ steps.repeat_interleave(len(steps)), weights @ steps.repeat(len(steps))], 1)
        there = maps.amax((2, 3))
        sequence = torch.cat([there, places], 1).unflatten(0, x.shape[:2])
        moves = self.time(sequence.transpose(1, 2))
        return self.head(torch.cat([moves.amax(2), moves.mean(2), sequence[:, :, :96].mean(1)], 1))


class HearsThings(nn.Module):
    """Convolutions over the spectrogram."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Sequential(_block(1, 24, 1), _block(24, 32, 2), _block(32, 64, 2), _block(64, 96, 2))
        self.head = nn.Linear(192, 25)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of all values of all attributes, side by side."""
        if self.training:
            x = torch.roll(x, int(torch.randint(x.shape[1], ())), 1) + 0.2 * torch.randn(len(x), 1, 1)
        maps = self.maps(x[:, None])
        return self.head(torch.cat([maps.amax((2, 3)), maps.mean((2, 3))], 1))


def supervise(
    network: nn.Module, x: Tensor, columns: dict[str, list[str]], split: np.ndarray, seconds: float
) -> list[float]:
    """Train on the labels themselves for ``seconds``; the test accuracy of each."""
    torch.manual_seed(0)
    names = {label: sorted(set(values)) for label, values in columns.items()}
    truth = torch.tensor([[names[label].index(value) for value in values] for label, values in columns.items()]).T
    sizes = [len(values) for values in names.values()]
    train, test = (torch.from_numpy(np.flatnonzero(split == name)) for name in ("train", "test"))
    network(x[:2])
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=0.05)
    begun = time.time()
    while (progress := (time.time() - begun) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - progress) + 1e-5
        rows = train[torch.randperm(len(train))[:32]]
        scores = network(x[rows]).split(sizes, 1)
        loss = torch.stack([functional.cross_entropy(part, truth[rows, k]) for k, part in enumerate(scores)]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    with torch.no_grad():
        scores = torch.cat([network(x[rows]) for rows in test.split(64)]).split(sizes, 1)
    return [float((part.argmax(1) == truth[test, k]).float().mean()) for k, part in enumerate(scores)]


def _block(before: int, after: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())


def _bags(captions: list[str], train: np.ndarray) -> np.ndarray:
    """Which words a caption has, standardized; only words of five captions or more."""
    said = [set(caption.split()) for caption in captions]
    words = sorted(set().union(*said))
    bags = np.array([[word in caption for word in words] for caption in said], np.float64)
    return _standard(bags[:, bags[train].sum(0) >= 5], train)


def _standard(x: np.ndarray, train: np.ndarray) -> np.ndarray:
    return (x - x[train].mean(0)) / (x[train].std(0) + 1e-6)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)


def _mel_bank(mels: int, size: int) -> Tensor:
    frequency = torch.linspace(0, RATE / 2, size // 2 + 1)
    points = torch.linspace(*(2595 * np.log10(1 + hertz / 700) for hertz in (60, 7600)), mels + 2)
    hertz = 700 * (10 ** (points / 2595) - 1)
    rise = (frequency[:, None] - hertz[:-2]) / (hertz[1:-1] - hertz[:-2])
    fall = (hertz[2:] - frequency[:, None]) / (hertz[2:] - hertz[1:-1])
    return torch.minimum(rise, fall).clamp(min=0)


if __name__ == "__main__":
    main()
