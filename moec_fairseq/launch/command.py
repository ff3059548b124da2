"""The command line of one rank."""

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

import moec_fairseq
from moec_fairseq.launch.job import Job

ROOT = Path(moec_fairseq.__path__[0])


def check_nothing_missing(config: Path, overrides: Sequence[str]) -> None:
    """Check that every value the YAML file, or one in its list of defaults, leaves to the user (???) is given.

    Raises:
        ValueError: one is not; names it.
    """
    given = _values(overrides).keys() | {"common.user_dir"}
    for path in _with_defaults(config, overrides):
        for key in _left_open(OmegaConf.to_container(OmegaConf.load(path))):
            if key not in given:
                raise ValueError(f"{key} is missing, which {path} leaves to you; give {key}=VALUE.")


def check_data(config: Path, overrides: Sequence[str]) -> None:
    """Check that the folder of binary data is there, where it is named without the help of hydra.

    Raises:
        ValueError: it is not; says where it was expected.
    """
    wanted = ""
    for path in _with_defaults(config, overrides):
        task = OmegaConf.to_container(OmegaConf.load(path)).get("task") or {}
        wanted = str(task.get("data") or wanted)
    wanted = _values(overrides).get("task.data", wanted)
    if not wanted or re.search(r"[$?'\"\\]", wanted):
        return
    first = wanted.split(":")[0]  # fairseq takes several folders, with colons
    if not Path(first).is_dir():
        raise ValueError(
            f"task.data is {wanted}, but there is no folder {first}; make it with scripts/prepare_data.sh or "
            "fairseq-preprocess, or give task.data=FOLDER."
        )


def _values(overrides: Sequence[str]) -> dict[str, str]:
    """Return what is given to each key; the last one wins."""
    return {key.lstrip("+"): value for key, _, value in (override.partition("=") for override in overrides)}


def _with_defaults(config: Path, overrides: Sequence[str]) -> Iterator[Path]:
    """Yield the file and those that its list of defaults (of hydra) names, or an override such as corpus=NAME instead.

    Raises:
        ValueError: one is not there.
    """
    yield config
    given = _values(overrides)
    for default in OmegaConf.load(config).get("defaults", []):
        for group, name in default.items() if not isinstance(default, str) else ():
            path = config.parent / group / f"{given.get(group, name)}.yaml"
            if not path.is_file():
                who = f"{group}={given[group]}" if group in given else f"{config} names {group}: {name}"
                raise ValueError(f"{who}, but there is no {path}; make it or name another.")
            yield path


def _left_open(content: Any, path: str = "") -> Iterator[str]:
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _left_open(value, f"{path}.{key}" if path else key)
    elif content == "???":
        yield path


def _quoted(text: str) -> str:
    """Return text as hydra reads it, whatever characters it has."""
    return "'" + text.replace("'", r"\'") + "'"


def rank_command(job: Job, rank: int, config: Path, overrides: Sequence[str], gpus: int, patience: int) -> list[str]:
    """Return the command of ``rank``; overrides of the user come last and win.

    Args:
        job: all ranks, and where they meet.
        rank: the one to start.
        config: the YAML file.
        overrides: KEY=VALUE.
        gpus: GPUs that the processes of this machine see; 0 for training on the CPU.
        patience: seconds that a rank waits for the others.
    """
    own = [
        f"common.user_dir={_quoted(str(ROOT))}",
        # stay where the user stands, so that relative paths mean what he means
        "hydra.run.dir=.",
        "hydra.output_subdir=null",
        "hydra/job_logging=stdout",
    ]
    if gpus == 0:
        own += ["common.cpu=true", "common.fp16=false"]  # half precision is for GPUs
    own.append(f"distributed_training.distributed_world_size={job.world_size}")
    if job.world_size > 1:
        # srun may show every task its own GPU only
        device = (job.first_device + job.ranks.index(rank)) % max(gpus, 1)
        own += [
            f"distributed_training.distributed_rank={rank}",
            f"distributed_training.distributed_init_method=tcp://{job.master}",
            "distributed_training.distributed_no_spawn=true",
            f"distributed_training.device_id={device}",
            f"distributed_training.distributed_backend={'nccl' if gpus else 'gloo'}",
            "distributed_training.ddp_backend=legacy_ddp",
        ]
    train = [sys.executable, "-m", "moec_fairseq.launch.rank", str(patience)]
    return [*train, "--config-dir", str(config.parent), "--config-name", config.stem, *own, *overrides]
