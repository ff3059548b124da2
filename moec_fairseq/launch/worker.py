"""One rank: fairseq-hydra-train that gives up on lost ranks after some time, and does not outlive its launcher.

Usage: python -m moec_fairseq.launch.worker SECONDS ARGUMENTS OF fairseq-hydra-train

Torchrun starts it; its variables (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT) say which rank it is.
"""

import os
import sys
from collections.abc import Mapping
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist
from fairseq_cli import hydra_train
from torch.distributed.elastic.multiprocessing.errors import record

from moec_fairseq.util.processes import end_with


def wait_at_most(seconds: float) -> None:
    """Let every later process group give up after that time; torch's own limit is 10 or 30 minutes."""
    for name in ("init_process_group", "new_group"):
        setattr(dist, name, partial(getattr(dist, name), timeout=timedelta(seconds=seconds)))


def rank_overrides(environment: Mapping[str, str], gpus: int) -> list[str]:
    """Return the options that differ from rank to rank, of which fairseq only learns where there are several."""
    if environment["WORLD_SIZE"] == "1":
        return []
    device = int(environment["LOCAL_RANK"]) % max(gpus, 1)  # SLURM may show each task its own GPU only
    return [
        f"distributed_training.distributed_rank={environment['RANK']}",
        f"distributed_training.device_id={device}",
    ]


if __name__ == "__main__":
    end_with(os.getppid())
    wait_at_most(float(sys.argv.pop(1)))
    overrides = rank_overrides(os.environ, torch.cuda.device_count())
    if not overrides:
        del os.environ["RANK"]  # fairseq 0.12.2 would make a process group of it
    sys.argv += overrides
    record(hydra_train.cli_main)()
