from argparse import Namespace

import pytest

from moec_fairseq import preflight
from moec_fairseq.preflight import check, check_model, check_together


def config(**options):
    values = {
        "amp": False, "fp16": False, "fp16_no_flatten_grads": False, "memory_efficient_fp16": False, "cpu": False,
        "model_parallel_size": 1, "ddp_backend": "pytorch_ddp", "zero_sharding": "none", "use_bmuf": False,
        "distributed_backend": "nccl", "moec_evaluation": "gathered", "eval_bleu": False,
        "write_checkpoints_asynchronously": False, "find_unused_parameters": False, "encoder_layerdrop": 0,
        "decoder_layerdrop": 0, "bf16": False, **options,
    }  # fmt: skip
    everything = Namespace(**values)
    return Namespace(
        **dict.fromkeys(("common", "distributed_training", "optimization", "model", "task", "checkpoint"), everything)
    )


@pytest.mark.parametrize(
    "options, way_out",
    [
        ({"fp16": True}, "add --fp16-no-flatten-grads or --memory-efficient-fp16, or give --bf16"),
        ({"amp": True}, "--amp scales .* give --bf16, or --fp16 --fp16-no-flatten-grads"),
        ({"ddp_backend": "fully_sharded"}, "give --ddp-backend legacy_ddp or pytorch_ddp"),
        ({"ddp_backend": "slowmo"}, "--ddp-backend slowmo"),
        ({"cpu": True}, "does not start on a CPU; give --ddp-backend legacy_ddp"),
        ({"zero_sharding": "os"}, "--zero-sharding os"),
        ({"model_parallel_size": 2}, "--model-parallel-size 2"),
        ({"use_bmuf": True}, "--use-bmuf"),
        ({"distributed_backend": "mpi"}, "give nccl"),
        ({"write_checkpoints_asynchronously": True}, "--write-checkpoints-asynchronously"),
        ({"moec_evaluation": "exchanged", "eval_bleu": True}, "--moec-evaluation exchanged .* leave one of them out"),
        ({"encoder_layerdrop": 0.1}, "--encoder-layerdrop .* give --ddp-backend legacy_ddp, or --find-unused"),
        ({"decoder_layerdrop": 0.1, "ddp_backend": "c10d"}, "--ddp-backend c10d waits"),
    ],
)
def test_what_cannot_work_is_refused_with_the_way_out(options, way_out):
    with pytest.raises(ValueError, match=way_out):
        check(config(**options))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fp16": True, "fp16_no_flatten_grads": True},
        {"fp16": True, "memory_efficient_fp16": True},
        {"moec_evaluation": "exchanged"},
        {"eval_bleu": True},
        {"encoder_layerdrop": 0.1, "find_unused_parameters": True},
        {"decoder_layerdrop": 0.1, "ddp_backend": "legacy_ddp"},
        {"ddp_backend": "legacy_ddp", "cpu": True, "distributed_backend": "gloo", "amp": True},
    ],
)
def test_what_works_is_not(options):
    check(config(**options))


def test_bfloat16_is_refused_where_gloo_cannot_send_it(monkeypatch):
    options = {"bf16": True, "ddp_backend": "legacy_ddp", "distributed_backend": "gloo"}
    check(config(**options))
    monkeypatch.setattr(preflight, "_gloo_takes_bfloat16", lambda: False)
    check(config(**options | {"distributed_backend": "nccl"}))
    with pytest.raises(ValueError, match="--bf16 sends bfloat16 .* give --amp"):
        check(config(**options))


def test_a_config_of_fairseq_itself_has_all_of_these():
    from fairseq.dataclass.configs import FairseqConfig

    check(FairseqConfig())


TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1"}
SRUN = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_ID": "7"}
MPIRUN = {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "3"}


@pytest.mark.parametrize(
    "environment, started, rank",
    [
        (TORCHRUN, "torchrun has started 4 processes (RANK=1, WORLD_SIZE=4)", 1),
        (SRUN, "srun has started 2 processes", 0),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_JOB_ID": "7"}, "srun has started 2 processes", 1),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, "srun has started 2 processes", 0),
        (MPIRUN, "mpirun has started 3 processes", 2),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, "mpirun has started 2 processes", 0),
    ],
)
def test_trainings_side_by_side_are_refused_with_the_commands_for_one(environment, started, rank):
    with pytest.raises(ValueError) as caught:
        check_together(Namespace(distributed_world_size=1), environment)
    number = started.split()[3]
    meeting = "env://" if "torchrun" in started else "tcp://HOST:PORT"
    options = f"--distributed-world-size {number} --distributed-rank {rank} --distributed-init-method {meeting} "
    for words in (started, f"train.sh CONFIG --processes {number},", options):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    "environment, world_size",
    [
        ({}, 1),
        ({"RANK": "0", "WORLD_SIZE": "1"}, 1),
        ({"WORLD_SIZE": "2"}, 1),  # left over in a shell, without a rank
        ({"RANK": "0", "WORLD_SIZE": ""}, 1),
        ({"RANK": "x", "WORLD_SIZE": "many"}, 1),
        (TORCHRUN, 4),
        (TORCHRUN | SRUN | MPIRUN, 2),
        # the script that sbatch runs for a job of eight tasks, and a step of one task in it
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "7"}, 1),
        (SRUN | {"SLURM_STEP_NUM_TASKS": "1"}, 1),
    ],
)
def test_one_training_is_not(environment, world_size):
    check_together(Namespace(distributed_world_size=world_size), environment)


@pytest.mark.parametrize("option", ["adaptive_input", "tie_adaptive_weights", "tie_adaptive_proj"])
def test_options_that_fairseq_knows_by_name_only(build, option):
    flag = f"--{option.replace('_', '-')}"
    with pytest.raises(ValueError, match=f"^{flag} is for language models.*leave it out"):
        build(flag, "--adaptive-softmax-cutoff", "4,8")
    check_model(build("--adaptive-softmax-cutoff", "4,8").model.cfg)
