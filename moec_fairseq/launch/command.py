"""The command line of one rank."""

import sys
from collections.abc import Sequence
from pathlib import Path

import moec_fairseq
from moec_fairseq.launch.job import Job

ROOT = Path(moec_fairseq.__path__[0])


def find_config(name: str, folder: Path) -> Path:
    """Return the YAML file that ``name`` means: a path, or a name in ``folder``.

    Raises:
        ValueError: there is no such file; lists what there is.
    """
    for path in (Path(name), folder / name, folder / f"{name}.yaml"):
        if path.is_file():
            return path.resolve()
    known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml"))) or "none"
    raise ValueError(f"there is no configuration {name}; give the path of a YAML file, or one of {folder}: {known}.")


def rank_command(job: Job, rank: int, config: Path, overrides: Sequence[str], gpus: int) -> list[str]:
    """Return the command of ``rank``; overrides of the user come last and win."""
    own = [
        f"common.user_dir={ROOT}",
        # stay where the user stands, so that relative paths mean what he means
        "hydra.run.dir=.",
        "hydra.output_subdir=null",
        "hydra/job_logging=stdout",
    ]
    if gpus == 0:
        own.append("common.cpu=true")
    own.append(f"distributed_training.distributed_world_size={job.world_size}")
    if job.world_size > 1:
        device = job.first_device + job.ranks.index(rank)
        own += [
            f"distributed_training.distributed_rank={rank}",
            f"distributed_training.distributed_init_method=tcp://{job.master}",
            "distributed_training.distributed_no_spawn=true",
            f"distributed_training.device_id={device}",
            f"distributed_training.distributed_backend={'nccl' if gpus else 'gloo'}",
            "distributed_training.ddp_backend=legacy_ddp",
        ]
    train = Path(sys.executable).with_name("fairseq-hydra-train")
    return [str(train), "--config-dir", str(config.parent), "--config-name", config.stem, *own, *overrides]
