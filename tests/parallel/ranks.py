"""Run a function in several processes that form a job (gloo on this machine)."""

import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _run(
    rank: int, world_size: int, folder: Path, function: Callable[..., Any], arguments: tuple[Any, ...], meet: bool
) -> None:
    torch.set_num_threads(1)
    if world_size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    try:
        torch.save(function(rank, world_size, *arguments), folder / f"{rank}.pt")
    except BaseException:
        (folder / f"{rank}.error").write_text(traceback.format_exc())
        os._exit(1)  # the others wait for this process: no clean end
    if world_size > 1 and meet:
        dist.barrier()


def on_ranks(
    folder: Path, world_size: int, function: Callable[..., Any], *arguments: Any, meet_at_end: bool = True
) -> list[Any]:
    """Return what ``function(rank, world_size, *arguments)`` returns on each rank; raises the error of a rank."""
    folder.mkdir(parents=True)
    context = mp.get_context("spawn")
    processes = [
        context.Process(target=_run, args=(rank, world_size, folder, function, arguments, meet_at_end), daemon=True)
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
        if process.is_alive() or process.exitcode != 0:
            for other in processes:
                other.kill()
            errors = [path.read_text() for path in sorted(folder.glob("*.error"))]
            raise AssertionError("\n".join(errors) or f"a process ended with {process.exitcode}")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world_size)]
