"""Start a training: ``scripts/train.sh`` calls this, and its header explains the command line."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from . import command, config, job, options, processes
from .command import PACKAGE, Start
from .config import Config
from .job import Job
from .network import is_in_use
from .options import Options

CONFIGS = PACKAGE.parent / "configs"


def visible_gpus() -> int:
    """Return how many GPUs torch sees; in a process of its own, because torch takes seconds and memory."""
    ask = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    return int(subprocess.run(ask, check=True, stdout=subprocess.PIPE, text=True).stdout)


def _starts(given: Options, training: Config, part: Job, gpus: int, environment: Mapping[str, str]) -> list[Start]:
    log_dir = (given.log_dir or Path(training.get("checkpoint.save_dir") or "checkpoints") / "logs").absolute()
    settings = command.settings(part, gpus, given.timeout, given.cores, environment)
    return [
        Start(rank.rank, command.command(training, part, rank, gpus, log_dir), settings, log_dir / f"rank-{rank.rank}.log")
        for rank in part.ranks
    ]  # fmt: skip


def _summary(training: Config, part: Job, starts: list[Start], gpus: int) -> str:
    """Return where what happens."""
    first, last = starts[0], starts[-1]
    ranks = f"rank {first.rank}" if len(starts) == 1 else f"ranks {first.rank} to {last.rank}"
    logs = f"{first.log}" if len(starts) == 1 else f"{first.log} to {last.log.name}"
    shown = "the output of rank 0 follows" if first.rank == 0 else "rank 0 shows its output where it runs"
    return (
        f"Training {training.path}: {ranks} of {part.world_size} on {'GPUs' if gpus else 'the CPU'}, "
        f"started for {part.starter}, threads for each: {first.settings['OMP_NUM_THREADS']}\n"
        f"  checkpoints: {Path(training.get('checkpoint.save_dir') or 'checkpoints').absolute()}\n"
        f"  logs: {logs}; {shown}"
    )


def main(arguments: list[str], environment: Mapping[str, str], count_gpus: Callable[[], int] = visible_gpus) -> int:
    """Start what the command line asks for and see it through.

    Returns:
        The exit status: 0, 1 where a rank failed, 128 and its number where a signal came (130: Ctrl-C).

    Raises:
        ValueError: with a sentence for the user, where the command line or the environment is wrong.
    """
    given = options.parse(arguments)
    training = config.read(config.find(given.config, CONFIGS), given.overrides)
    training.check()
    gpus = 0 if given.cpu or training.flag("common.cpu") else count_gpus()
    part = job.plan(given, environment, gpus)
    starts = _starts(given, training, part, gpus, environment)
    print(_summary(training, part, starts, gpus), flush=True)
    if given.dry_run:
        print("\n".join(map(str, starts)))
        return 0
    if part.port is not None and is_in_use(part.port):
        raise ValueError(
            f"Port {part.port} of this machine, where the ranks are to meet, is in use; please give another one "
            f"({'MASTER_PORT' if part.starter == 'SLURM' else '--master HOST:PORT'}), the same on all nodes."
        )
    begin = time.monotonic()
    outcome = processes.run(starts, sys.stdout.buffer)
    if outcome.interrupt is not None:
        print(
            f"Interrupted by {outcome.interrupt.name}; all ranks were stopped. The same command goes on.",
            file=sys.stderr,
        )
        return 128 + outcome.interrupt
    if outcome.failure is not None:
        print(outcome.failure, file=sys.stderr)
        return 1
    print(f"Done in {time.monotonic() - begin:.0f} s.")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:], os.environ))
    except (ValueError, OSError) as error:
        sys.exit(f"{error}")
