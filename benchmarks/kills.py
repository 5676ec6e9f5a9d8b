"""Kill a run (SIGKILL) at random moments, resume it each time, and compare the final weights with an undisturbed run's.

python benchmarks/kills.py [--kills 20] [--seed 0]
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from triptych.api import open_source, write_toyworld

CHANGES = ("config.width=32", "config.layers=1", "config.heads=2", "batch.rows=8", "steps=40", "workers=1", "ema=0.9")


def start(*arguments: object) -> subprocess.Popen[bytes]:
    """Start the command line in a process of its own."""
    command = [sys.executable, "-m", "triptych", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        world = write_toyworld(root / "world", recordings=48)
        manifest = open_source(world).save(world.with_name("probed.csv"))
        sets = [part for change in (*CHANGES, "checkpoint_steps=2") for part in ("--set", change)]
        first = ("pretrain", manifest, "--method", "lava", "--recipe", "small", *sets, "--out")
        began = time.monotonic()
        assert start(*first, root / "whole").wait() == 0
        length = time.monotonic() - began
        wanted = load_file(root / "whole" / "model" / "model.safetensors")
        kills, runs, equal, leftovers = 0, 0, 0, 0
        while kills < options.kills:
            run = root / f"run{runs}"
            runs += 1
            while not (run / "model").is_dir():
                resumable = (run / "recipe.json").is_file()
                process = start("pretrain", "--resume", run) if resumable else start(*first, run)
                moment = rng.uniform(0, length) if kills < options.kills else 10 * length
                try:
                    code = process.wait(moment)
                    assert code == 0, f"a resumed run ended with {code}"
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    kills += 1
            found = load_file(run / "model" / "model.safetensors")
            equal += found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
            leftovers += len(list(run.rglob("*.partial*")))
        print(f"{kills} kills over {runs} runs of {length:.1f} s; {leftovers} half-written files left")
        print(f"final weights equal bit for bit in {equal} of {runs} runs")


if __name__ == "__main__":
    main()
