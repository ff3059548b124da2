import pytest

from moec_fairseq.launch.job import (
    Job,
    first_host,
    from_options,
    from_slurm,
    from_torchrun,
    is_started_by_srun,
    is_started_by_torchrun,
)

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}
SLURM = {
    "SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1", "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_JOB_ID": "123456",
}  # fmt: skip


def test_torchrun():
    assert is_started_by_torchrun(TORCHRUN)
    assert from_torchrun(TORCHRUN) == Job(8, range(5, 6), "node0:29500", 1)
    # its agents keep the port for themselves
    assert from_torchrun(TORCHRUN | {"TORCHELASTIC_RUN_ID": "x"}).master == "node0:29501"


def test_slurm():
    assert is_started_by_srun(SLURM) and not is_started_by_srun(SLURM | {"SLURM_STEP_NUM_TASKS": "1"})
    # what sbatch sets for its script, before any srun
    assert not is_started_by_srun({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_NODELIST": "gpu[07-08]"})
    assert from_slurm(SLURM) == Job(8, range(5, 6), "gpu07:23456", 1)


@pytest.mark.parametrize(
    "nodes, host",
    [
        ("gpu[07-09,12],cpu1", "gpu07"),
        ("node3", "node3"),
        ("a1,a2", "a1"),
        ("rack[2-3]-x", "rack2-x"),
        ("h-[5]", "h-5"),
    ],
)
def test_first_host(nodes, host):
    assert first_host(nodes) == host


def test_machines():
    assert from_options(1, 1, 0, None) == Job(1, range(0, 1))
    assert from_options(2, 3, 1, "10.0.0.1:29500") == Job(6, range(2, 4), "10.0.0.1:29500")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((0, 1, 0, None), "--processes is 0"),
        ((1, 2, 2, "a:1"), "--node-rank is 2, but must be from 0 to 1"),
        ((1, 2, 0, None), "--nodes 2 needs --master HOST:PORT"),
        ((1, 2, 0, "here"), "--master is 'here', but must be HOST:PORT"),
    ],
)
def test_bad_options(arguments, message):
    with pytest.raises(ValueError, match=message):
        from_options(*arguments)


def test_bad_environment():
    with pytest.raises(ValueError, match="RANK is 'x' in the environment"):
        from_torchrun(TORCHRUN | {"RANK": "x"})
