"""Logits whose classes several processes share out, one thread each: ours against PyTorch's.

    python benchmarks/bench_sharded.py [--quick] [--processes N] [--rounds N] [--out DIR]

Writes sharded.csv and a table in sharded.md. The peers take turns in the same processes, which
begin and end each call together; loss and gradient of each are held against float64 before that.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import arguments
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from measure import assert_right, in_turns, summary
from report import OURS, write_table
from surroundings import heading, surroundings
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.parallel import loss_parallel

import softreg_ext


class Size(NamedTuple):
    rows: int
    classes: int
    dtype: torch.dtype = torch.float32


SIZES = (Size(1024, 32000), Size(1024, 32000, torch.bfloat16), Size(512, 128256))
QUICK_SIZES = (Size(64, 1000),)


def with_loss_parallel(logits: Tensor, target: Tensor) -> Tensor:
    with loss_parallel():
        loss = F.cross_entropy(logits, target)
        loss.backward()
    return loss


def with_logits_gathered(logits: Tensor, target: Tensor) -> Tensor:
    assert isinstance(logits, DTensor)
    everywhere = distribute_tensor(target, logits.device_mesh)
    loss = F.cross_entropy(logits, everywhere)
    loss.backward()
    return loss


def ours(logits: Tensor, target: Tensor) -> Tensor:
    loss = softreg_ext.cross_entropy(logits, target)
    loss.backward()
    return loss


PEERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    OURS: ours,
    "loss_parallel": with_loss_parallel,
    "F.cross_entropy": with_logits_gathered,
}


def errors(loss: Tensor, shards: DTensor, logits: Tensor, target: Tensor) -> list[float]:
    """The largest of the loss and of its gradient, as parts of the largest exact value."""
    exact_logits = logits.double().requires_grad_()
    exact = F.cross_entropy(exact_logits, target)
    (exact_grad,) = torch.autograd.grad(exact, exact_logits)
    assert isinstance(loss, DTensor)
    assert isinstance(shards.grad, DTensor)
    pairs = ((loss, exact.detach()), (shards.grad, exact_grad))
    return [
        float((found.full_tensor().double() - right).abs().max() / right.abs().max())
        for found, right in pairs
    ]


def measure(size: Size, rounds: int) -> list[dict[str, Any]]:
    """Forward + backward, a row for each peer.

    Raises:
        AssertionError: A peer's loss or gradient is wrong: none is timed then.
    """
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(size.rows, size.classes, generator=generator)).to(size.dtype)
    target = torch.randint(size.classes, (size.rows,), generator=generator)
    shards = distribute_tensor(logits, mesh, [Shard(1)]).requires_grad_()
    wrong: dict[str, list[float]] = {}
    for name, peer in PEERS.items():
        shards.grad = None
        wrong[name] = errors(peer(shards, target).detach(), shards, logits, target)
        allowed = 3e-5 if size.dtype == torch.float32 else 8 * torch.finfo(size.dtype).eps
        assert_right(size, name, wrong[name], allowed)

    def seconds_of(name: str) -> float:
        shards.grad = None
        dist.barrier()
        begin = time.perf_counter()
        PEERS[name](shards, target)
        dist.barrier()
        return time.perf_counter() - begin

    times = in_turns(list(PEERS), seconds_of, rounds)  # in one order on all processes
    return [
        {
            "size": f"{size.rows}x{size.classes}",
            "dtype": str(size.dtype).removeprefix("torch."),
            "processes": dist.get_world_size(),
            "peer": name,
            **summary(times[name]),
            "largest_error": max(wrong[name]),
        }
        for name in PEERS
    ]


def report(rows: list[dict[str, Any]], where: dict[str, Any]) -> str:
    lines = [
        *heading("Logits whose classes processes share out", where),
        "Forward + backward, medians of peers in turns, a thread to a process, over gloo. Error:",
        "the largest of loss and gradient, as a part of the largest exact value.",
        "",
        "| rows x classes | dtype | processes | peer | ms | times ours | error |",
        "|---|---|---|---|---|---|---|",
    ]
    ours = {(row["size"], row["dtype"]): row["median_s"] for row in rows if row["peer"] == OURS}
    for row in rows:
        times = row["median_s"] / ours[row["size"], row["dtype"]]
        lines.append(
            f"| {row['size']} | {row['dtype']} | {row['processes']} | {row['peer']} "
            f"| {row['median_s'] * 1e3:.1f} | {times:.2f} | {row['largest_error']:.0e} |"
        )
    return "\n".join(lines) + "\n"


def run(rank: int, given: argparse.Namespace, store: str) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=given.processes
    )
    where = surroundings()
    rows: list[dict[str, Any]] = []
    for size in QUICK_SIZES if given.quick else SIZES:
        rows += measure(size, given.rounds)
        if rank == 0:
            print(f"{size.rows}x{size.classes} {size.dtype} measured", flush=True)
            write_table(given.out / "sharded.csv", [{**row, **where} for row in rows])
            text = report(rows, where)
            (given.out / "sharded.md").write_text(text)
    if rank == 0:
        print(text)
    dist.destroy_process_group()


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one small size")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=21)
    given = arguments.parse(parser, words, "processes", "rounds")
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(run, (given, str(Path(folder) / "store")), nprocs=given.processes)


if __name__ == "__main__":
    main()
