"""Runs processes side by side; when one ends badly, all end."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
from typing import IO

from moec_fairseq.cli.locks import alone_with
from moec_fairseq.cli.logs import last_words

PATIENCE = 10.0  # seconds between asking a process to end and killing it
POLL = 0.2
GRACE = 1.0  # seconds in which ranks that lose a partner end after it

# what torch says in a rank whose partner has gone
LOST_PARTNER = re.compile(
    r"Connection (closed|reset) by|Broken pipe|Connection refused|Socket is not connected|DistBackendError|NCCL"
)


def ending(code: int) -> str:
    """Say how a process ended."""
    if code == -signal.SIGKILL:
        return "was killed (SIGKILL), probably because the memory ran out"
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"failed with exit code {code}"


def _copy(source: IO[bytes], sinks: list[IO[bytes]]) -> None:
    """Copy lines to all that can still be written to; a rank whose pipe nobody empties would wait for ever."""
    for line in source:
        for sink in list(sinks):
            try:
                sink.write(line)
                sink.flush()
            except OSError:  # the disk is full, the terminal has gone
                sinks.remove(sink)


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
        ValueError: another training writes the same logs.
        RuntimeError: a rank ended badly; names it and its last words. The others are ended, too.
        KeyboardInterrupt: after all have been ended.
    """
    paths = {rank: logs / f"rank-{rank}.log" for rank in commands}
    with ExitStack() as logs_of_ours:
        for path in paths.values():
            otherwise = (
                f"another training is writing {path}; wait for it, or give this one a --logs DIR and a "
                "checkpoint.save_dir of its own."
            )
            logs_of_ours.enter_context(alone_with(path, otherwise))
        _run(commands, paths, environment, patience)


def _run(
    commands: Mapping[int, Sequence[str]], paths: Mapping[int, Path], environment: Mapping[str, str], patience: float
) -> None:
    # a log goes on where that of the run before ended
    starts = {rank: path.stat().st_size if path.exists() else 0 for rank, path in paths.items()}
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
            screen = [sys.stdout.buffer] if sys.stdout and rank == min(commands) else []
            copier = Thread(target=_copy, args=(process.stdout, [paths[rank].open("ab"), *screen]))
            copier.start()
            copiers.append(copier)
        bad = _failures(processes)
    except BaseException:
        stop(list(processes.values()), patience)
        raise
    if bad:
        stop(list(processes.values()), patience)
    for copier in copiers:
        copier.join(patience)
    if bad:
        words = {rank: last_words(paths[rank], starts[rank]) for rank in bad}
        rank = culprit(bad, words)
        raise RuntimeError(
            f"Rank {rank} {ending(bad[rank])}: {words[rank]} (its log is {paths[rank]}); all were stopped. "
            "When that is mended, start again: training goes on from its last checkpoint, if there is one."
        )


def culprit(codes: Mapping[int, int], words: Mapping[int, str]) -> int:
    """Return the rank that failed first: one that a signal ended, else one that does not just miss another.

    Args:
        codes: exit codes of the ranks that failed.
        words: what each of them said last.
    """
    return min(codes, key=lambda rank: (codes[rank] > 0, bool(LOST_PARTNER.search(words[rank])), rank))


def _failures(processes: Mapping[int, "subprocess.Popen[bytes]"]) -> dict[int, int]:
    """Wait until all have ended well, or some have not; return the exit codes of these by rank."""
    while True:
        codes = [process.poll() for process in processes.values()]
        if any(codes):
            time.sleep(GRACE)  # who was seen first need not be who failed first
            return {rank: code for rank, process in processes.items() if (code := process.poll())}
        if all(code == 0 for code in codes):
            return {}
        time.sleep(POLL)
