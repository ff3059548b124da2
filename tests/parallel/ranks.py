"""Run functions in processes that form a job (gloo on this machine)."""

import gc
import io
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

from tests.python import forkserver

PATIENCE = 240  # seconds for one function


def _serve(rank: int, world_size: int, folder: str, connection: Connection) -> None:
    gc.freeze()  # or it would copy, in order to look through it, all that the fork server has imported
    torch.set_num_threads(1)
    if world_size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    while (task := connection.recv()) is not None:
        function, arguments = task
        result, error = None, ""
        try:
            result = function(rank, world_size, *arguments)
        except Exception:
            error = traceback.format_exc()
        # torch sends tensors through shared files, which end with their process; bytes do not
        buffer = io.BytesIO()
        torch.save((result, error), buffer)
        connection.send_bytes(buffer.getvalue())


class Job:
    """Processes that wait for functions to run together; starting them costs more than most functions."""

    def __init__(self, world_size: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.connections = []
        self.processes = []
        for rank in range(world_size):
            here, there = forkserver.Pipe()
            process = forkserver.Process(target=_serve, args=(rank, world_size, self.folder.name, there), daemon=True)
            process.start()
            there.close()
            self.connections.append(here)
            self.processes.append(process)

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Return what ``function(rank, world_size, *arguments)`` returns on each rank.

        Raises:
            AssertionError: a rank raised an error, ended or took too long; all are killed.
        """
        for connection in self.connections:
            connection.send((function, arguments))
        results = []
        for rank, connection in enumerate(self.connections):
            try:
                assert connection.poll(PATIENCE), f"rank {rank} gave no answer"
                result, error = torch.load(io.BytesIO(connection.recv_bytes()), weights_only=False)
            except EOFError:
                self.processes[rank].join()
                result, error = None, f"rank {rank} ended with {self.processes[rank].exitcode}"
            if error:
                self.kill()
                raise AssertionError(error)
            results.append(result)
        return results

    def end(self) -> list[int | None]:
        """Let the processes end by themselves; return their exit codes."""
        for connection in self.connections:
            connection.send(None)
        for process in self.processes:
            process.join(PATIENCE)
        return [process.exitcode for process in self.processes]

    def kill(self) -> None:
        """End the processes now."""
        for process in self.processes:
            process.kill()
            process.join()


_jobs: dict[int, Job] = {}


def on_ranks(world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Return what ``function(rank, world_size, *arguments)`` returns on each rank; raises the error of a rank.

    The processes stay for the next call; functions must leave nothing behind in them.
    """
    if world_size not in _jobs:
        _jobs[world_size] = Job(world_size)
    try:
        return _jobs[world_size].run(function, *arguments)
    except AssertionError:
        del _jobs[world_size]
        raise
