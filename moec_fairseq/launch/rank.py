"""One rank: fairseq-hydra-train that neither waits for lost ranks for ever nor outlives its launcher.

Usage: python -m moec_fairseq.launch.rank SECONDS ARGUMENTS OF fairseq-hydra-train
"""

import os
import sys
from datetime import timedelta
from functools import partial

import torch.distributed as dist
from fairseq_cli import hydra_train

from moec_fairseq.cli.child import end_with


def wait_at_most(seconds: float) -> None:
    """Let every later process group give up after that time; torch's own limit is 10 or 30 minutes."""
    for name in ("init_process_group", "new_group"):
        setattr(dist, name, partial(getattr(dist, name), timeout=timedelta(seconds=seconds)))


if __name__ == "__main__":
    end_with(os.getppid())
    wait_at_most(float(sys.argv.pop(1)))
    hydra_train.cli_main()
