"""Runs processes side by side; when one ends badly, all end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Thread
from typing import IO

PATIENCE = 10.0  # seconds between asking a process to end and killing it
POLL = 0.2


def last_words(log: Path) -> str:
    """Return the line of a log that says best why its process failed."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.split(":")[0].split(".")[-1].endswith(("Error", "Exception"))]
    return (errors or lines or ["no output"])[-1]


def ending(code: int) -> str:
    """Say how a process ended."""
    if code == -signal.SIGKILL:
        return "was killed (SIGKILL), probably because the memory ran out"
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"failed with exit code {code}"


def _copy(source: IO[bytes], log: IO[bytes], to_screen: bool) -> None:
    for line in source:
        log.write(line)
        log.flush()
        if to_screen:
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()


def _signal(process: "subprocess.Popen[bytes]", number: int) -> None:
    try:
        os.killpg(process.pid, number)  # with its data-loading workers
    except ProcessLookupError:
        pass


def stop(processes: Sequence["subprocess.Popen[bytes]"], patience: float = PATIENCE) -> None:
    """End all processes and their children: ask, wait, kill."""
    for process in processes:
        _signal(process, signal.SIGTERM)
    deadline = time.monotonic() + patience
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            pass
        _signal(process, signal.SIGKILL)
        process.wait()


def run(
    commands: Mapping[int, Sequence[str]], logs: Path, environment: Mapping[str, str], patience: float = PATIENCE
) -> None:
    """Run one command for each rank until all have ended; the lowest rank speaks on the screen, all write to ``logs``.

    Raises:
        RuntimeError: a rank ended badly; names it and its last words. The others are ended, too.
        KeyboardInterrupt: after all have been ended.
    """
    logs.mkdir(parents=True, exist_ok=True)
    paths = {rank: logs / f"rank-{rank}.log" for rank in commands}
    processes: dict[int, subprocess.Popen[bytes]] = {}
    copiers = []
    try:
        for rank, command in commands.items():
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
            )
            processes[rank] = process
            assert process.stdout is not None
            copier = Thread(target=_copy, args=(process.stdout, paths[rank].open("wb"), rank == min(commands)))
            copier.start()
            copiers.append(copier)
        failed = _first_failure(processes)
    except BaseException:
        stop(list(processes.values()), patience)
        raise
    if failed is not None:
        stop(list(processes.values()), patience)
    for copier in copiers:
        copier.join(patience)
    if failed is not None:
        rank, code = failed
        raise RuntimeError(
            f"Rank {rank} {ending(code)}: {last_words(paths[rank])} (its log is {paths[rank]}); all were stopped. "
            "The last checkpoint is whole; start again to go on from it."
        )


def _first_failure(processes: Mapping[int, "subprocess.Popen[bytes]"]) -> tuple[int, int] | None:
    """Wait until all have ended well (None), or one has not: (rank, exit code)."""
    while True:
        codes = {rank: process.poll() for rank, process in processes.items()}
        bad = {rank: code for rank, code in codes.items() if code}
        if bad:
            # a rank that dies takes its partners along; a signal is the cause, an error may be the consequence
            return min(bad.items(), key=lambda item: (item[1] > 0, item[0]))
        if all(code == 0 for code in codes.values()):
            return None
        time.sleep(POLL)
