"""Options that cannot work, refused before training, each with the way out."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

# fairseq knows each under two names
DDP_BACKENDS = ("legacy_ddp", "no_c10d", "pytorch_ddp", "c10d")

# who starts several processes, and the variables that tell each its number and how many there are
STARTERS = (
    ("torchrun", "RANK", "WORLD_SIZE"),
    ("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    ("srun", "SLURM_PROCID", "SLURM_NTASKS"),
    ("mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("mpirun", "PMI_RANK", "PMI_SIZE"),
)


def _gloo_takes_bfloat16() -> bool:
    """Whether this version of torch sends bfloat16 by gloo (1.13 does not); all processes ask together."""
    try:
        if dist.is_initialized():
            dist.all_reduce(torch.zeros(1, dtype=torch.bfloat16))
    except RuntimeError:
        return False
    return True


def _problems(config: Any) -> list[tuple[bool, str]]:
    common, distributed = config.common, config.distributed_training
    return [
        (
            common.fp16 and not (common.fp16_no_flatten_grads or common.memory_efficient_fp16),
            "--fp16 flattens all parameters into one, in which experts and shared parameters cannot be told apart; "
            "add --fp16-no-flatten-grads or --memory-efficient-fp16, or give --bf16.",
        ),
        (
            common.amp and not common.cpu,
            "--amp scales the gradients of each process by itself, and leaves out an update where one has grown too "
            "large, which others with other experts do not notice; give --bf16, or --fp16 --fp16-no-flatten-grads.",
        ),
        (
            distributed.ddp_backend not in DDP_BACKENDS,
            f"--ddp-backend {distributed.ddp_backend} would share out the experts a second time; "
            "give --ddp-backend legacy_ddp or pytorch_ddp.",
        ),
        (
            common.cpu and distributed.ddp_backend in ("pytorch_ddp", "c10d"),
            f"--ddp-backend {distributed.ddp_backend} does not start on a CPU; give --ddp-backend legacy_ddp.",
        ),
        (
            distributed.ddp_backend in ("pytorch_ddp", "c10d")
            and not distributed.find_unused_parameters
            and any(getattr(config.model, f"{side}_layerdrop", 0) > 0 for side in ("encoder", "decoder")),
            f"--ddp-backend {distributed.ddp_backend} waits for the gradients of layers that --encoder-layerdrop or "
            "--decoder-layerdrop has left out; give --ddp-backend legacy_ddp, or --find-unused-parameters.",
        ),
        (
            distributed.zero_sharding != "none",
            f"--zero-sharding {distributed.zero_sharding} shares out the optimizer of ranks that have different "
            "experts; leave it out: every rank already keeps the state of its own experts only.",
        ),
        (
            common.model_parallel_size > 1,
            f"--model-parallel-size {common.model_parallel_size} cannot be combined with experts on several ranks; "
            "leave it out.",
        ),
        (
            config.optimization.use_bmuf,
            "--use-bmuf averages all parameters over ranks, but their experts are different; leave it out.",
        ),
        (
            config.checkpoint.write_checkpoints_asynchronously,
            "--write-checkpoints-asynchronously would leave files of different updates after a kill, because nobody "
            "knows when all ranks have written theirs; leave it out.",
        ),
        (
            getattr(config.model, "moec_evaluation", None) == "exchanged" and getattr(config.task, "eval_bleu", False),
            "--moec-evaluation exchanged makes ranks wait for each other at every step, but with --eval-bleu they make "
            "different numbers of steps; leave one of them out.",
        ),
        (
            common.bf16 and distributed.distributed_backend == "gloo" and not _gloo_takes_bfloat16(),
            f"--bf16 sends bfloat16 from process to process, which the gloo of torch {torch.__version__} cannot; give "
            "--amp, or use a newer torch.",
        ),
        (
            distributed.distributed_backend == "mpi",
            "--distributed-backend mpi has no all-to-all with unequal splits; give nccl (GPUs) or gloo (CPU).",
        ),
    ]


def check_model(config: Any) -> None:
    """Refuse options of the model that fairseq's translation models know by name only.

    Raises:
        ValueError: one is given.
    """
    for option in ("adaptive_input", "tie_adaptive_weights", "tie_adaptive_proj"):
        if getattr(config, option):
            raise ValueError(
                f"--{option.replace('_', '-')} is for language models, fairseq's translation models have no adaptive "
                "input; leave it out (--adaptive-softmax-cutoff works without it)."
            )


def check_together(distributed: Any, environment: Mapping[str, str]) -> None:
    """Refuse to train one of several models that are trained side by side, each alone, instead of one together.

    Args:
        distributed: fairseq's options of the job.
        environment: variables of this process.

    Raises:
        ValueError: somebody has started several processes, but this one knows of none beside it.
    """
    for starter, rank, size in STARTERS if distributed.distributed_world_size == 1 else ():
        processes = environment.get(size, "")
        if rank not in environment or not processes.isdecimal() or int(processes) < 2:
            continue
        if size == "SLURM_NTASKS" and environment[rank] == "0" and "SLURM_JOB_ID" in environment:
            continue  # the script that sbatch runs, once for all tasks; srun would have named those of its step
        # torchrun's own store is in the way of another
        meeting = "env://" if starter == "torchrun" else "tcp://HOST:PORT"
        raise ValueError(
            f"{starter} has started {processes} processes ({rank}={environment[rank]}, {size}={processes}), but "
            "--distributed-world-size is 1, so that each would train a model of its own; start one training with "
            f"bash scripts/train.sh CONFIG --processes {processes}, or give fairseq-train --distributed-world-size "
            f"{processes} --distributed-rank {environment[rank]} --distributed-init-method {meeting} "
            "--distributed-no-spawn --ddp-backend legacy_ddp (and on a CPU --distributed-backend gloo); to train with "
            f"one process all the same, unset {size}."
        )


def check(config: Any) -> None:
    """Refuse a configuration (of fairseq, all of it) that would train experts of several ranks wrongly, or hang.

    Raises:
        ValueError: says the first problem, and what to give instead.
    """
    for found, message in _problems(config):
        if found:
            raise ValueError(message)
