"""Two processes see together what one would: loss and gradient are the same, for methods and for our batch norm."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor, nn

from tests.methods.test_lava import _view
from tests.tiny import tiny_lava
from triptych import distributed
from triptych.batch import Batch, Clip
from triptych.layers.batch_norm import BatchNorm
from triptych.method import Clock
from triptych.methods.lava import LAVA
from triptych.model import model_tensors
from triptych.training import parallel

ROWS = 6


def _batch() -> Batch:
    _, view = _view(ROWS)
    text = view["text"]
    view = {**view, "text": Clip(text.data, text.length * torch.tensor([1, 0, 1, 1, 1, 0]), text.span)}
    return Batch(views=(view,), rows=torch.arange(ROWS))


def _part(batch: Batch, rank: int, world: int) -> Batch:
    mine = slice(rank * ROWS // world, (rank + 1) * ROWS // world)
    view = {name: Clip(c.data[mine], c.length[mine], c.span[mine]) for name, c in batch.views[0].items()}
    return Batch(views=(view,), rows=batch.rows[mine])


def _lava(rank: int, world: int, kind: str, *changes: str) -> dict[str, Tensor]:
    recipe, _ = tiny_lava("config.gather=grad", *changes)
    torch.manual_seed(0)
    method = LAVA(recipe.config)  # type: ignore[arg-type]
    module = parallel.wrap(method, kind, torch.device("cpu"))
    losses = module(_part(_batch(), rank, world), Clock())
    losses.total.backward()
    found = {n: parallel.whole(p.grad) for n, p in method.named_parameters() if p.grad is not None}
    found |= {f"kept.{name}": parallel.whole(tensor) for name, tensor in model_tensors(method).items()}
    return {**found, "loss": distributed.average(losses.total)}


def _norm(rank: int, world: int, kind: str) -> dict[str, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4), BatchNorm(4), nn.GELU(), nn.Linear(4, 1))
    x = torch.randn(ROWS, 5)[rank * ROWS // world : (rank + 1) * ROWS // world]
    module = nn.parallel.DistributedDataParallel(net) if world > 1 else net
    loss = module(x).square().mean()
    loss.backward()
    found = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return {**found, "loss": distributed.average(loss), "var": net[1].running_var}


CASES: dict[str, tuple[Callable[..., dict[str, Tensor]], tuple[str, ...]]] = {
    "lava ddp": (_lava, ("ddp",)),
    "lava fsdp": (_lava, ("fsdp",)),
    "lava ddp with batch norm": (_lava, ("ddp", "config.projection=mlp_bn")),
    "lava ddp, zeroed text": (_lava, ("ddp", "config.mask_text=zero_embed")),
    "batch norm": (_norm, ("ddp",)),
}


def _work(rank: int, port: int, out: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found: dict[str, Any] = {}
    for name, (function, arguments) in CASES.items():
        found[name] = function(rank, 2, *arguments)
    if rank == 0:
        torch.save(found, out)
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out = tmp_path_factory.mktemp("two") / "found.pt"
    multiprocessing.spawn(_work, (port, str(out)), nprocs=2)
    found: dict[str, dict[str, Tensor]] = torch.load(out, weights_only=True)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_are_one(two: dict[str, dict[str, Tensor]], name: str) -> None:
    function, arguments = CASES[name]
    alone = function(0, 1, *arguments)
    assert alone.keys() == two[name].keys()
    scale = max(float(value.abs().max()) for key, value in alone.items() if key != "loss")
    for key, value in alone.items():
        if key == "loss":
            torch.testing.assert_close(two[name][key], value, rtol=1e-5, atol=0)
        else:
            assert float((two[name][key] - value).abs().max()) <= 1e-5 * scale, key


def test_one_process_gathers_nothing(tmp_path: Path) -> None:
    x = torch.randn(3, 2, requires_grad=True)
    assert distributed.gather(x) is x and distributed.offset(x) == 0
    assert distributed.mean(torch.tensor(6.0), torch.tensor(3.0)) == 2
    assert distributed.mean(torch.tensor(0.0), torch.tensor(0.0)) == 0
