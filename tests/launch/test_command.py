from pathlib import Path

import pytest

from moec_fairseq.launch.command import rank_command
from moec_fairseq.launch.configuration import Configuration
from moec_fairseq.launch.job import Job


@pytest.mark.parametrize("job, gpus, devices", [
    (Job(4, range(2, 4), "a:1"), 2, [0, 1]),
    # one task of srun, which sees all GPUs of the machine, or its own only
    (Job(4, range(3, 4), "a:1", first_device=1), 2, [1]),
    (Job(4, range(3, 4), "a:1", first_device=1), 1, [0]),
])  # fmt: skip
def test_devices(job, gpus, devices):
    for rank, device in zip(job.ranks, devices, strict=True):
        command = rank_command(job, rank, Configuration(Path("x.yaml"), [], {}), gpus, 60)
        assert f"distributed_training.device_id={device}" in command
        assert "distributed_training.distributed_backend=nccl" in command and "common.cpu=true" not in command
