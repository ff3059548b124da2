"""The command line of one rank."""

import sys

from moec_fairseq.launch.configuration import Configuration, user_dir
from moec_fairseq.launch.job import Job


def rank_command(job: Job, rank: int, configuration: Configuration, gpus: int, patience: int) -> list[str]:
    """Return the command of ``rank``; overrides of the user come last and win.

    Args:
        job: all ranks, and where they meet.
        rank: the one to start.
        configuration: of the training.
        gpus: GPUs that the processes of this machine see; 0 for training on the CPU.
        patience: seconds that a rank waits for the others.
    """
    own = [
        user_dir(),
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
    file = ["--config-dir", str(configuration.path.parent), "--config-name", configuration.path.stem]
    return [*train, *file, *own, *configuration.overrides]
