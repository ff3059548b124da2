"""Child processes that do not outlive their parent: fairseq's commands, and pools of workers.

``python -m moec_fairseq.util.processes PID MODULE ARGUMENTS`` runs a module, and kills its own session when the process
PID has gone.
"""

import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import TextIO, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Reader = Callable[[Iterable[str], TextIO], None]


def _exit() -> None:
    os._exit(1)


def _kill_session() -> None:
    os.killpg(0, signal.SIGKILL)


def end_with(parent: int, end: Callable[[], None] = _exit, poll: float = 0.2) -> None:
    """End this process soon after its parent has gone, killed in a way that left no time to end others.

    Args:
        parent: its process number.
        end: what to do then.
        poll: seconds between two looks.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(poll)
        end()

    threading.Thread(target=watch, daemon=True).start()


def last_words(log: Path, start: int = 0) -> str:
    """Return the line of a log, read from byte ``start``, that says best why its process failed."""
    text = log.read_bytes()[start:].decode("utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.split(":")[0].split(".")[-1].endswith(("Error", "Exception"))]
    return (errors or lines or ["no output"])[-1]


def _copy(lines: Iterable[str], log: TextIO) -> None:
    log.writelines(lines)


def start_module(
    module: str, *arguments: object, output: int | TextIO, environment: Mapping[str, str] | None = None
) -> "subprocess.Popen[str]":
    """Start a module with the Python of this process, in a session of its own, which ends when this process does.

    Args:
        module: its name.
        arguments: of the module.
        output: takes what it prints.
        environment: variables set for it beside those of this process.
    """
    own = {"PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore", "PYTHONUTF8": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", __spec__.name, str(os.getpid()), module, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env={**os.environ, **own, **(environment or {})},
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )


def run_fairseq(name: str, *arguments: object, log: Path, read: Reader = _copy) -> None:
    """Run ``fairseq-NAME`` with the Python of this process.

    Args:
        name: of the command.
        arguments: of the command.
        log: its output goes there.
        read: takes the lines as they come, and the open log, to which it copies them.

    Raises:
        ValueError: it failed; says why.
    """
    with (
        log.open("w", encoding="utf-8") as file,
        start_module(f"fairseq_cli.{name}", *arguments, output=subprocess.PIPE) as process,
    ):
        assert process.stdout is not None
        try:
            read(process.stdout, file)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # with the workers of its own
            raise
    if process.returncode != 0:
        raise ValueError(f"fairseq-{name} failed: {last_words(log)} (its log is {log})")


def chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of ``size`` items, the last one shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def in_order(pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int) -> Iterator[Result]:
    """Yield ``function(item)`` for each item in order; at most ``ahead`` items are in progress at any time.

    Raises:
        ValueError: a process of the pool was killed.
    """
    running: deque[Future[Result]] = deque()
    try:
        for item in items:
            running.append(pool.submit(function, item))
            if len(running) >= ahead:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    except BrokenExecutor as error:
        raise ValueError("a worker was killed, probably because the memory ran out; give fewer --workers") from error


def begin_worker(parent: int) -> None:
    """Leave Ctrl-C to the parent, and end when it has gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with(parent)


def start_workers(number: int) -> ProcessPoolExecutor:
    """Return a pool that has started: forked while this process has one thread, workers need not import torch."""
    context = get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(number, context, begin_worker, (os.getpid(),))
    pool.submit(int)
    return pool


if __name__ == "__main__":
    end_with(int(sys.argv[1]), _kill_session)
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
