"""Runs fairseq's commands with the Python of this process."""

import subprocess
import sys
from pathlib import Path

from moec_fairseq.launch.watch import last_words


def fairseq_command(name: str, *arguments: object) -> list[str]:
    """Return the command line of ``fairseq-NAME``."""
    return [str(Path(sys.executable).with_name(f"fairseq-{name}")), *map(str, arguments)]


def run_fairseq(name: str, *arguments: object, log: Path) -> None:
    """Run ``fairseq-NAME``, all that it says in ``log``.

    Raises:
        ValueError: it failed; says why.
    """
    with log.open("w") as file:
        done = subprocess.run(fairseq_command(name, *arguments), stdout=file, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        raise ValueError(f"fairseq-{name} failed: {last_words(log)} (its log is {log})")
