"""A manifest of a million rows: how long it takes to open, what it holds in memory, and what each worker adds.

Two manifests are written: a plain one (path, caption, split, kind), and one as ``prepare`` writes it, with all that was
measured of each file. Memory is what the process alone holds (anonymous and shared pages; pages of the mapped file
belong to the system's cache and are printed apart). Workers read every row in random order; what is private to a worker
is measured when it has read a hundredth of its rows and when it has read them all. At last the loader decodes rows of
the prepared manifest, which all show one small clip.

    python benchmarks/manifest.py [--rows 1000000] [--workers 2] [--decode 4000]
"""

import argparse
import csv
import platform
import re
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from triptych.data.loader import Loader
from triptych.media.collection import Rows
from triptych.media.measured import probe_columns
from triptych.media.recording import Recording
from triptych.media.write import write_video
from triptych.recipe import Aligned, StreamSpec, VideoTransform, Viewing

KINDS = ("dog", "cat", "bird", "car")


def memory(file: str = "/proc/self/status") -> dict[str, float]:
    """Return MiB by kind: anonymous, shared and file pages of this process."""
    found = re.findall(r"^Rss(Anon|Shmem|File):\s+(\d+) kB", Path(file).read_text(), re.MULTILINE)
    return {kind: int(size) / 1024 for kind, size in found}


def private() -> float:
    """Return the MiB that this process alone holds and that cannot be read again from a file."""
    text = Path("/proc/self/smaps_rollup").read_text()
    return sum(int(size) for size in re.findall(r"^Private_Dirty:\s+(\d+) kB", text, re.MULTILINE)) / 1024


def write(path: Path, count: int, measured: dict[str, str]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "caption", "split", "kind", *measured])
        for number in range(count):
            kind = KINDS[number % len(KINDS)]
            split = "test" if number % 10 == 0 else "train"
            place = "clip.mp4" if measured else f"clips/{number:07d}.mp4"
            writer.writerow([place, f'a {kind}, the "{number}th"', split, kind, *measured.values()])


class Reading(Dataset[tuple[int, float]]):
    """What a worker does but decode; answers with what is private to it."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.read = 0

    def __getitem__(self, places: list[int]) -> tuple[int, float]:
        for place in places:
            row = self.rows.row(place)
            assert row["kind"] == KINDS[place % len(KINDS)]
        self.read += len(places)
        return torch.utils.data.get_worker_info().id, private()


def sweep(rows: Rows, workers: int) -> None:
    """Let workers read all rows; print what is private to them early and late."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).split(max(len(rows) // 200, 1))
    loader = DataLoader(
        Reading(rows),
        batch_size=None,
        sampler=[part.tolist() for part in order],
        num_workers=workers,
        multiprocessing_context="forkserver",
        collate_fn=_unchanged,
    )
    began = time.monotonic()
    held: dict[int, list[float]] = {}
    for worker, size in loader:
        held.setdefault(worker, []).append(size)
    took = time.monotonic() - began
    for worker, sizes in sorted(held.items()):
        print(f"  worker {worker}: private {sizes[0]:.0f} MiB at first, {sizes[-1]:.0f} MiB after its last row")
    print(f"  all rows read in random order by {workers} workers in {took:.1f} s")


def _unchanged(x: object) -> object:
    return x


def decode(rows: Rows, workers: int, count: int) -> None:
    """Let the loader decode rows from all over the manifest; print the workers' private memory early and late."""
    spec = StreamSpec(transform=VideoTransform(size=32), rate=4.0)
    viewing = Viewing(windows=Aligned(seconds=0.5), views=({"video": spec},))
    places = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:count].tolist()
    with Loader(rows, viewing, workers=workers) as loader:
        sizes = []
        for number, _ in enumerate(loader.sweep(places, batch_rows=20)):
            if number in (count // 200, count // 20 - 1):
                sizes.append(max(_children()))
    print(f"  {count} rows decoded by {workers} workers: the largest holds {sizes[0]:.0f}, then {sizes[-1]:.0f} MiB")


def _children() -> Iterator[float]:
    import multiprocessing

    for process in multiprocessing.active_children():
        text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        found = re.findall(r"^Private_Dirty:\s+(\d+) kB", text, re.MULTILINE)
        yield sum(map(int, found)) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--decode", type=int, default=4000)
    options = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}"
    )
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        clip = write_video(root / "clip.mp4", torch.zeros(16, 32, 32, 3, dtype=torch.uint8), 16)
        with Recording(clip) as recording:
            measured = {name: str(value) for name, value in probe_columns(recording).items()}
        for name, columns in (("plain", {}), ("prepared", measured)):
            path = root / f"{name}.csv"
            write(path, options.rows, columns)
            before, began, cpu = memory(), time.monotonic(), time.process_time()
            rows = Rows.open(path)
            opened, cpu, after = time.monotonic() - began, time.process_time() - cpu, memory()
            held = after["Anon"] + after["Shmem"] - before["Anon"] - before["Shmem"]
            size = path.stat().st_size / 2**20
            print(f"{name}: {len(rows)} rows, {size:.0f} MiB, opened in {opened:.2f} s ({cpu:.2f} s of CPU)")
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"  holds {held:.0f} MiB; {after['File'] - before['File']:.0f} MiB of the file are in the cache")
            print(f"  the whole process holds {sum(after.values()):.0f} MiB of these, and held {peak:.0f} MiB at most")
            began = time.monotonic()
            train = rows.split("train")
            print(f"  split chosen in {time.monotonic() - began:.1f} s: {len(train)} rows")
            sweep(rows, options.workers)
        decode(rows, options.workers, options.decode)


if __name__ == "__main__":
    main()
