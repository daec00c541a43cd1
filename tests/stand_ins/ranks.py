"""Start the ranks of a gloo process group as forkserver processes, with torch imported once for all of them."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

from torch.distributed import TCPStore


def start_ranks(function: Callable[..., Any], *arguments: Any, num_ranks: int = 2) -> list[ForkServerProcess]:
    """Run `function(*arguments)` on each rank under torchrun's environment; it must be importable by module name.

    As under torchrun, the ranks meet at a store of the parent: a port that is free now might be taken when rank 0 binds it.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {"WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    shared |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    context: ForkServerContext = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.stand_ins.block_task", "tests.stand_ins.packed_task"])
    processes = []
    for rank in range(num_ranks):
        environment = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        processes.append(context.Process(target=_rank, args=(environment, function, arguments), daemon=True))
        processes[-1].start()
    processes[0].store = store  # it serves as long as the processes are held
    return processes


def exit_codes(processes: list[ForkServerProcess], timeout: float = 280.0) -> list[int | None]:
    """Exit codes of all ranks; ranks still running after `timeout` seconds are killed."""
    for process in processes:
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
    return [process.exitcode for process in processes]


def _rank(environment: dict[str, str], function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    import torch

    os.environ.update(environment)
    torch.set_num_threads(1)
    function(*arguments)
