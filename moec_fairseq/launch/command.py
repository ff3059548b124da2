"""The command line and the environment of one rank."""

import os
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .config import Config
from .job import Job, Rank

PACKAGE = Path(__file__).resolve().parent.parent
LOG_FORMAT = "%(asctime)s | %(levelname)s | %(name)s | %(message)s"


@dataclass(frozen=True)
class Start:
    """A rank that is ready to be started."""

    rank: int
    command: list[str]
    settings: dict[str, str]
    log: Path

    def __str__(self) -> str:
        """Return it as a line for a shell."""
        return shlex.join(["env", *(f"{name}={value}" for name, value in self.settings.items()), *self.command])


def _quoted(value: str | Path) -> str:
    """Return a value as hydra's grammar takes it."""
    text = str(value)
    return text if re.fullmatch(r"[\w/.:+%@-]+", text, re.ASCII) else "'" + text.replace("'", r"\'") + "'"


def _distributed(config: Config, job: Job, rank: Rank, gpus: int) -> list[str]:
    """Return the overrides that make a process this rank of the job."""
    # A machine may show each of its processes one GPU only.
    device = rank.local_rank % gpus if gpus else 0
    settings = {"distributed_world_size": job.world_size, "device_id": device}
    if job.init_method is None:
        return [f"distributed_training.{key}={value}" for key, value in settings.items()]
    choices = {
        "distributed_backend": "nccl" if gpus else "gloo",
        "ddp_backend": "legacy_ddp",  # fairseq's default does not start on a CPU
    }
    open_choices = {k: v for k, v in choices.items() if config.get(f"distributed_training.{k}") is None}
    addressed = settings | {
        "distributed_rank": rank.rank,
        "distributed_init_method": job.init_method,
        "distributed_no_spawn": "true",
    }
    return [f"distributed_training.{key}={value}" for key, value in (addressed | open_choices).items()]


def _hydra(log_dir: Path, rank: Rank) -> list[str]:
    """Return the overrides that keep hydra from moving elsewhere and writing its own log; rank 0 records the config."""
    record = _quoted(log_dir / "config") if rank.rank == 0 else "null"
    return [
        "hydra.run.dir=.",
        f"hydra.output_subdir={record}",
        "hydra/job_logging=stdout",
        f"hydra.job_logging.formatters.simple.format='{LOG_FORMAT}'",
    ]


def command(config: Config, job: Job, rank: Rank, gpus: int, log_dir: Path) -> list[str]:
    """Return the command line of a rank; what the user overrides stands last, and wins."""
    return [
        sys.executable, "-m", "moec_fairseq.launch.rank",
        "--config-dir", str(config.path.parent), "--config-name", config.path.stem,
        f"common.user_dir={_quoted(PACKAGE)}", *([] if gpus else ["common.cpu=true"]),
        *_hydra(log_dir, rank), *_distributed(config, job, rank, gpus), *config.overrides,
    ]  # fmt: skip


def settings(job: Job, gpus: int, timeout: int, cores: int, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a rank gets beside those of ``environment``."""
    path = os.pathsep.join([str(PACKAGE.parent), *filter(None, [environment.get("PYTHONPATH")])])
    threads = environment.get("OMP_NUM_THREADS") or str(max(1, cores // job.neighbours))
    added = {
        "OMP_NUM_THREADS": threads,
        "MOEC_TIMEOUT": str(timeout),
        "PYTHONPATH": path,
        "PYTHONUNBUFFERED": "1",
        "HYDRA_FULL_ERROR": "1",  # the log shall tell where an error came from
    }
    # fairseq asks torch, not its own settings, whether to begin with a message between GPUs
    return added if gpus else added | {"CUDA_VISIBLE_DEVICES": ""}
