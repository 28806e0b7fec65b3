"""Processes that do the same thing at the same time, as those of a distributed job do."""

import os
import queue
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

TIMEOUT_S = 150  # for those that wait for one that has failed


def _serve(rank: int, count: int, store: str, orders: Any, reports: Any, imported: Any) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    # Where processors are few and busy, the last may be minutes behind the first.
    imported.wait()
    timeout = timedelta(seconds=TIMEOUT_S)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=count, timeout=timeout
    )
    while (order := orders.get()) is not None:
        number, function, arguments = order
        try:
            function(*arguments)
            reports.put((number, None))
        except BaseException:  # pytest's own are no Exceptions
            reports.put((number, f"process {rank}: {traceback.format_exc()}"))
    dist.destroy_process_group()


class Processes:
    def __init__(self, count: int, folder: Path) -> None:
        context = mp.get_context("spawn")
        self.imported = context.Barrier(count)  # kept: they open it by its name
        self.orders = [context.SimpleQueue() for _ in range(count)]
        self.reports = context.Queue()
        self.number = 0
        self.processes = [
            context.Process(
                target=_serve,
                args=(rank, count, str(folder / "store"), orders, self.reports, self.imported),
                daemon=True,
            )
            for rank, orders in enumerate(self.orders)
        ]
        for process in self.processes:
            process.start()

    def run(self, function: Callable[..., None], *arguments: Any) -> None:
        """Calls it in each process, and fails where it does in one of them."""
        self.number += 1
        for orders in self.orders:
            orders.put((self.number, function, arguments))
        reports = [self._report() for _ in self.processes]
        failed = [report for report in reports if report is not None]
        assert not failed, f"{len(failed)} of {len(reports)} failed; {min(failed)}"

    def _report(self) -> str | None:
        """The next one of this run: of one before, which was not waited for, some may be left."""
        deadline = time.monotonic() + 4 * TIMEOUT_S
        number = -1
        while number != self.number:
            try:
                number, report = self.reports.get(timeout=1)
            except queue.Empty:
                codes = [process.exitcode for process in self.processes]
                if any(code is not None for code in codes) or time.monotonic() > deadline:
                    self.kill()  # the runs after this one need not wait as long
                    pytest.fail(f"no report; exit statuses of the processes: {codes}")
        return report

    def end(self) -> None:
        for orders in self.orders:
            orders.put(None)
        for process in self.processes:
            process.join(TIMEOUT_S)
        self.kill()

    def kill(self) -> None:
        for process in self.processes:
            process.kill()


@contextmanager
def processes(count: int, folder: Path) -> Iterator[Processes]:
    found = Processes(count, folder)
    try:
        yield found
    finally:
        found.end()
