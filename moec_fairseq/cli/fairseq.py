"""Runs fairseq's commands with the Python of this process."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TextIO

from moec_fairseq.cli.logs import last_words

Reader = Callable[[Iterable[str], TextIO], None]


def _copy(lines: Iterable[str], log: TextIO) -> None:
    log.writelines(lines)


def run_fairseq(name: str, *arguments: object, log: Path, read: Reader = _copy) -> None:
    """Run ``fairseq-NAME``.

    Args:
        name: of the command.
        arguments: of the command.
        log: what the command says goes there.
        read: takes the lines as they come, and the open log, to which it copies them.

    Raises:
        ValueError: it failed; says why.
    """
    module = f"fairseq_cli.{name}"
    command = [sys.executable, "-m", "moec_fairseq.cli.child", str(os.getpid()), module, *map(str, arguments)]
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore", "PYTHONUTF8": "1"}
    with (
        log.open("w", encoding="utf-8") as file,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            read(process.stdout, file)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # with the workers of its own
            raise
    if process.returncode != 0:
        raise ValueError(f"fairseq-{name} failed: {last_words(log)} (its log is {log})")
