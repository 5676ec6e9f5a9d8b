"""What a training step costs beside the passes that it is made of.

For each method and size: the median of a whole step (forward, backward, optimizer, ``after_step``), the sum of its
passes timed one by one, examples a second, model FLOP utilization and peak memory. The passes are found, not
declared: every outermost call of a part of the model (an encoder's block, a teacher, a decoder, a head) is recorded
with what went in, and run again alone, with its backward where it has one; the optimizer counts as a pass. Utilization
is the step's floating-point operations over its time and over the rate of a large matrix product on the same device.

    python benchmarks/step.py [--methods lava,vatt] [--recipes small] [--rows 32] [--rounds 9] [--compile]
"""

import argparse
import copy
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.flop_counter import FlopCounterMode

from triptych import catalog
from triptych.api.sources import complete, named_recipe
from triptych.batch import Batch
from triptych.data.loader import Loader
from triptych.data.targets import LabelsBySecond, OneLabel
from triptych.media.collection import Rows
from triptych.method import Clock, Method
from triptych.toyworld.write import write_toyworld
from triptych.training.optimizers import build_optimizer


@dataclass
class Pass:
    """One outermost call of a part of the model."""

    module: nn.Module
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    gradient: bool


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clock(device: torch.device, work: Callable[[], Any]) -> float:
    """Return the seconds of one call."""
    synchronize(device)
    began = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - began


@contextmanager
def recorded(method: nn.Module) -> Iterator[list[Pass]]:
    """Record the outermost calls of parts of the model while the block runs."""
    found: list[Pass] = []
    depth = 0

    def enter(module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        nonlocal depth
        if depth == 0:
            found.append(Pass(module, *(tree_map(_cut, x) for x in (arguments, options)), torch.is_grad_enabled()))
        depth += 1

    def leave(*_: Any) -> None:
        nonlocal depth
        depth -= 1

    handles = []
    for module in method.modules():
        if module is not method:
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _cut(x: Any) -> Any:
    """Return a tensor as it came in, without its history."""
    return x.detach().clone().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x


def run_pass(one: Pass) -> None:
    """Run a part alone: forward, and backward where the step has one."""
    with torch.set_grad_enabled(one.gradient):
        output = one.module(*one.arguments, **one.options)
    leaves = [x for x in _tensors(output) if x.requires_grad]
    if leaves:
        torch.autograd.backward(leaves, [torch.ones_like(x) for x in leaves])


def _tensors(output: Any) -> list[Tensor]:
    values = vars(output).values() if hasattr(output, "__dataclass_fields__") else [output]
    return [x for x in tree_flatten(list(values))[0] if isinstance(x, Tensor)]


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the floating-point operations a second of a large matrix product."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    times = [clock(device, lambda: a @ b) for _ in range(7)]
    return 2 * side**3 / statistics.median(times[2:])


def measure(method: Method, batch: Batch, recipe: Any, options: argparse.Namespace, rate: float) -> dict[str, float]:
    device = options.device
    optimizer = build_optimizer(method, recipe.optimizer)
    half = torch.autocast(device.type, torch.bfloat16, enabled=options.bfloat16)
    module: nn.Module = torch.compile(method) if options.compile else method  # type: ignore[assignment]

    def gradients() -> None:
        optimizer.zero_grad(set_to_none=True)
        with half:
            total = module(batch, Clock()).total
        total.backward()

    def step() -> None:
        gradients()
        optimizer.step()
        method.after_step(Clock())

    for _ in range(3 if options.compile else 2):
        step()
    with recorded(method) as parts, half:
        method(batch, Clock())
    with FlopCounterMode(display=False) as counter:
        gradients()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    steps, sums = [], []
    for _ in range(options.rounds):  # one after the other, so that both see the same machine
        steps.append(clock(device, step))
        with half:
            together = sum(clock(device, lambda one=one: run_pass(one)) for one in parts)
        sums.append(together + clock(device, optimizer.step))
    whole = statistics.median(steps)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 2**20
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return {
        "step": 1000 * whole,
        "passes": 1000 * statistics.median(sums),
        "ratio": statistics.median(a / b for a, b in zip(steps, sums, strict=True)),
        "examples": len(batch) / whole,
        "utilization": counter.get_total_flops() / whole / rate,
        "memory": peak,
        "parameters": sum(p.numel() for p in method.parameters()) / 1e6,
    }


def one(name: str, recipe_name: str, options: argparse.Namespace) -> None:
    """Print the line of one method and size."""
    with tempfile.TemporaryDirectory() as folder:
        rows = Rows.open(write_toyworld(Path(folder), recordings=options.rows, seed=5, progress=False))
        asked = named_recipe(name, recipe_name)
        label = getattr(asked.config, "label", "kind")
        target = (LabelsBySecond if rows.column(label)[0].startswith("[") else OneLabel).find(rows, label)
        recipe, tokenizer = complete(asked, rows, target.classes)
        size = recipe.batch.model_copy(update={"rows": options.rows, "seconds": None, "accumulate": 1})
        targets = {label: target}
        loader = Loader(
            rows, recipe.train, size, tokenizer=tokenizer, targets=targets, workers=0, device=options.device
        )
        batch = next(loader.epoch(0))
    torch.manual_seed(0)
    method: Method = catalog.resolve(name)(recipe.config).train().to(options.device)
    rate = matrix_rate(options.device, torch.bfloat16 if options.bfloat16 else torch.float32)
    found = measure(copy.deepcopy(method), batch, recipe, options, rate)
    print(
        f"| {name} | {recipe_name} | {found['parameters']:.2f} M | {len(batch)} | {found['step']:.1f} | "
        f"{found['passes']:.1f} | {found['ratio']:.2f} | {found['examples']:.1f} | "
        f"{100 * found['utilization']:.0f} % | {found['memory']:.0f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(catalog.CATALOG))
    parser.add_argument("--recipes", default="small")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument(
        "--device", type=torch.device, default=torch.device("cuda" if torch.cuda.is_available() else "cpu")
    )
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    names, recipes = options.methods.split(","), options.recipes.split(",")
    if options.alone:
        one(names[0], recipes[0], options)
        return
    print("| method | recipe | parameters | rows | step, ms | passes, ms | ratio | examples / s | utilization | MiB |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    for name in names:
        for recipe in recipes:  # each in a process of its own: peak memory is a process's
            again = [sys.executable, __file__, *sys.argv[1:], "--methods", name, "--recipes", recipe, "--alone"]
            subprocess.run(again, check=True)


if __name__ == "__main__":
    main()
