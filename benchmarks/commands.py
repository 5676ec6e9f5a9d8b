"""How long a person waits: `triptych --help`, and a search of words over an index, from command to hits.

Every command is a process of its own; medians of five, wall and processor seconds (of the process and its children).
Without an index of your own, one is made over a small toy world.

    python benchmarks/commands.py [--index INDEX]
"""

import argparse
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TIMES = 5
TRIPTYCH = [sys.executable, "-m", "triptych"]


def measure(command: list[str]) -> tuple[float, float]:
    """Return the medians of wall and processor seconds of a command."""
    walls, processors = [], []
    for _ in range(TIMES):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        walls.append(time.perf_counter() - began)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        processors.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(walls), statistics.median(processors)


def make_index(folder: Path) -> Path:
    """Index a small toy world with LAVA `small` as one step leaves it: the size of the model is what counts."""
    from triptych import api

    world = api.write_toyworld(folder / "world", recordings=48)
    api.pretrain(world, "lava", folder / "run", "small", ["steps=1", "batch.rows=8", "workers=0"])
    api.index(folder / "run", world, folder / "index", workers=0)
    return folder / "index"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        index = options.index or make_index(Path(folder))
        print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, medians of {TIMES}")
        for name, arguments in (("--help", ["--help"]), ("search", ["search", str(index), "a large red disc"])):
            wall, processor = measure([*TRIPTYCH, *arguments])
            print(f"triptych {name}: {wall:.2f} s, of which {processor:.2f} s of processor time")


if __name__ == "__main__":
    main()
