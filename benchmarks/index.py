"""Query time and recall of the index at 100,000 and 1,000,000 vectors of 256 dimensions.

Vectors lie around those of the toy world through LAVA `small` with random weights (or around a table of your own,
--table): each is one of them, mixed with another and with Gaussian noise of the seed vectors' covariance, carried to
256 dimensions by a fixed rotation. Queries come from the same generator and are not in the index. Independent vectors
stand beside.

    python benchmarks/index.py [--table FOLDER] [--sizes 100000 1000000]
"""

import argparse
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from triptych.embedding import EmbeddingTable
from triptych.search.index import Index

DIM, QUERIES, K = 256, 50, 10


def seeds(table: Path | None) -> np.ndarray:
    """Return the vectors to enlarge."""
    if table is not None:
        return np.asarray(EmbeddingTable.load(table).vectors)
    from triptych import api
    from triptych.embedding import sweep

    with tempfile.TemporaryDirectory() as folder:
        rows = api.open_source(api.write_toyworld(Path(folder) / "world", recordings=240))
        return sweep(api.open_model("random:lava", rows), rows)["joint"].vectors


def enlarge(base: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return ``count`` unit vectors around ``base``."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((DIM, base.shape[1])))[0].T
    spread = np.linalg.cholesky(np.cov(base.T) + 1e-6 * np.eye(base.shape[1])).astype(np.float32)
    parts = []
    for first in range(0, count, 100_000):
        size = min(100_000, count - first)
        weight = rng.random((size, 1), dtype=np.float32) * 0.5
        mixed = (1 - weight) * base[rng.integers(len(base), size=size)] + weight * base[
            rng.integers(len(base), size=size)
        ]
        mixed = mixed + 0.5 * rng.standard_normal(mixed.shape, dtype=np.float32) @ spread.T
        parts.append((mixed @ turn).astype(np.float32))
        parts[-1] /= np.linalg.norm(parts[-1], axis=1, keepdims=True)
    return np.concatenate(parts)


def independent(count: int, seed: int) -> np.ndarray:
    """Return ``count`` unit vectors without structure."""
    x = np.random.default_rng(seed).standard_normal((count, DIM), dtype=np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x


def measure(name: str, vectors: np.ndarray, queries: np.ndarray) -> None:
    count = len(vectors)
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        index = Index.create(Path(folder) / "index", {"spaces": {"joint": "cosine"}, "model": "", "fingerprint": ""})
        for first in range(0, count, 100_000):
            part = vectors[first : first + 100_000]
            numbers = range(first, first + len(part))
            columns = {
                "path": [f"{number}.mp4" for number in numbers],
                "start": np.zeros(len(part)),
                "end": np.ones(len(part)),
                "stream": ["video"] * len(part),
            }
            index.append("joint", part, columns)
        index.finish()
        built = time.monotonic() - began
        index.search({"joint": queries[0]}, K)
        times, right = [], 0
        for query in queries:
            began = time.monotonic()
            hits = index.search({"joint": query}, K)
            times.append(time.monotonic() - began)
            similarity = vectors @ query
            best = np.argpartition(-similarity, K)[:K]
            right += len({f"{number}.mp4" for number in best} & {hit.path for hit in hits})
        size = index.info()["bytes"] / 2**20
    print(
        f"{name}, {count:,}: query {1000 * statistics.median(times):.1f} ms (median of {len(queries)}), recall@{K} "
        f"{right / K / len(queries):.3f}, built in {built:.1f} s, {size:.0f} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000])
    options = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}")
    base = seeds(options.table)
    for size in options.sizes:
        both = enlarge(base, size + QUERIES, seed=1)
        measure("around the toy world", both[:size], both[size:])
        both = independent(size + QUERIES, seed=2)
        measure("independent", both[:size], both[size:])


if __name__ == "__main__":
    main()
