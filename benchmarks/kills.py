"""Kill a run (SIGKILL) at random moments, resume it each time, and compare the final weights with an undisturbed run's.

After every kill each file of the run that does not bear the mark of a half-written one is read, and the processes that
the run had started must be gone.

python benchmarks/kills.py [--kills 20] [--seed 0]
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from triptych.api import open_source, write_toyworld

CHANGES = (
    *("config.width=32", "config.layers=1", "config.heads=2", "batch.rows=8", "batch.accumulate=2", "steps=150"),
    *("workers=1", "ema=0.9", "log_steps=1", "checkpoint_steps=3"),
)
PATIENCE = 30.0
"""Seconds in which the processes of a killed run must end."""


def start(*arguments: object) -> subprocess.Popen[str]:
    """Start the command line in a process group of its own."""
    command = [sys.executable, "-m", "triptych", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def kill(process: subprocess.Popen[str]) -> None:
    """Kill the process, and it alone; see that those that it has started end by themselves."""
    process.kill()
    process.communicate()
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise SystemExit(f"processes of a killed run are still there after {PATIENCE:.0f} s")


def read_everything(run: Path) -> int:
    """Read every file of a run that claims to be whole, and return their number; a half-written one raises."""
    whole = [path for path in run.rglob("*") if path.is_file() and ".partial" not in str(path.relative_to(run))]
    for path in whole:
        if path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())
    return len(whole)


def step_of(run: Path) -> int:
    """Return the step of the newest checkpoint, -1 where there is none."""
    return max((int(path.name.removeprefix("step-")) for path in run.glob("checkpoints/step-*")), default=-1)


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
        sets = [part for change in CHANGES for part in ("--set", change)]
        first = ("pretrain", manifest, "--method", "lava", "--recipe", "small", *sets, "--out")
        began = time.monotonic()
        undisturbed = start(*first, root / "whole")
        error = undisturbed.communicate()[1]
        assert undisturbed.returncode == 0, error
        length = time.monotonic() - began
        wanted = load_file(root / "whole" / "model" / "model.safetensors")
        kills, runs, equal, files, leftovers = 0, 0, 0, 0, 0
        steps: list[int] = []
        while kills < options.kills:
            run = root / f"run{runs}"
            runs += 1
            while not (run / "model").is_dir():
                begun = (run / "recipe.json").is_file()
                process = start("pretrain", "--resume", run) if begun else start(*first, run)
                try:
                    error = process.communicate(timeout=rng.uniform(0, length) if kills < options.kills else None)[1]
                    assert process.returncode == 0, f"a run that was killed before ended with: {error}"
                except subprocess.TimeoutExpired:
                    kill(process)
                    kills += 1
                    files += read_everything(run)
                    leftovers += any(run.rglob("*.partial*"))
                    steps.append(step_of(run))
                    print(f"kill {kills}: newest checkpoint at step {steps[-1]}", flush=True)
            found = load_file(run / "model" / "model.safetensors")
            equal += found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
            assert not any(run.rglob("*.partial*")), f"{run} has ended and holds half-written files"
        print(f"{kills} kills over {runs} runs of {length:.1f} s, checkpoints at steps {sorted(set(steps))}")
        print(
            f"{leftovers} kills left something half-written, always under a name of its own; {files} whole files read"
        )
        print(f"final weights equal bit for bit in {equal} of {runs} runs")


if __name__ == "__main__":
    main()
