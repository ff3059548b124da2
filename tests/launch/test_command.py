from pathlib import Path

import pytest

from moec_fairseq.launch import __main__ as launch
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


def test_ranks_say_why_they_fail(monkeypatch, tmp_path):
    started = {}
    monkeypatch.setattr(launch, "run", lambda commands, logs, environment: started.update(environment))
    configs = str(Path(__file__).parents[2] / "configs")
    arguments = ["moec_transformer", "--configs", configs, f"task.data={tmp_path}", "common.cpu=true"]
    monkeypatch.setattr(launch.sys, "argv", ["train.sh", *arguments])
    launch.main()
    assert started["HYDRA_FULL_ERROR"] == "1"  # or hydra's last words would be how to see the reason
    assert started["CUDA_VISIBLE_DEVICES"] == ""
