"""What a run will take, before it starts."""

import copy
import os
import resource
import time
from dataclasses import dataclass
from itertools import chain

import torch

from triptych import distributed
from triptych.batch import Batch
from triptych.data.loader import Loader
from triptych.data.targets import Targets
from triptych.data.text import Tokenizer
from triptych.media.collection import Rows
from triptych.method import Clock, Method
from triptych.recipe import Recipe


@dataclass(frozen=True)
class Estimate:
    """What a run will take, from two trial steps."""

    step_seconds: float
    steps: int
    parameters: int
    memory_gib: float

    def for_steps(self, steps: int) -> "Estimate":
        """Return the estimate for another number of steps."""
        return Estimate(self.step_seconds, steps, self.parameters, self.memory_gib)

    def describe(self, rows: int) -> str:
        """Return one line for people."""
        minutes = self.step_seconds * self.steps / 60
        return (
            f"{self.parameters / 1e6:.2f} M parameters, {rows} recordings, {self.steps} steps of about "
            f"{self.step_seconds:.2f} s: about {minutes:.1f} minutes and {self.memory_gib:.1f} GiB"
        )


def estimate_run(
    method: Method,
    recipe: Recipe,
    rows: Rows,
    tokenizer: Tokenizer | None,
    targets: Targets | None,
    device: torch.device,
) -> Estimate:
    """Return what the run will take, from two steps' forward and backward passes; the method is left as it was."""
    parts = recipe.batch.accumulate
    with Loader(
        rows,
        recipe.train,
        recipe.batch,
        epoch_rows=recipe.epoch_rows,
        mixing=recipe.mixing,
        seed=recipe.seed,
        tokenizer=tokenizer,
        targets=targets,
        workers=0,
        device=device,
        rank=distributed.rank(),
        world=distributed.world_size(),
    ) as loader:
        steps = recipe.rounds * (recipe.steps or max(round((recipe.epochs or 0) * loader.steps()), 1))
        trial = copy.deepcopy(method).to(device).train()
        batches = chain(loader.epoch(0), loader.epoch(1))  # an epoch may be a single step
        computing = []
        decoding = []
        for _ in range(2):
            began = time.perf_counter()
            batch: Batch = next(batches)
            decoding.append(time.perf_counter() - began)
            began = time.perf_counter()
            with torch.random.fork_rng():
                trial(batch, Clock()).total.backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            computing.append(time.perf_counter() - began)
        workers = Loader(rows, recipe.train, workers=recipe.workers, tokenizer=tokenizer).workers
    # Decoding runs beside computing; on a machine whose cores they share, both wait for each other.
    cores = os.cpu_count() or 1
    shared = device.type == "cpu"
    step = max(min(computing), min(decoding) / max(workers, 1))
    if shared:
        busy = min(computing) * min(torch.get_num_threads(), cores) + min(decoding)
        step = max(step, 1.2 * busy / cores)  # 1.2: what sharing caches and memory costs besides, measured on two cores
    parameters = sum(parameter.numel() for parameter in method.parameters())
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    else:
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Estimate(step * parts, steps, parameters, (peak + 12 * parameters) / 2**30)
