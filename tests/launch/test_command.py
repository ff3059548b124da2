from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from moec_fairseq.launch.command import check_data, check_nothing_missing, rank_command
from moec_fairseq.launch.job import Job


@pytest.mark.parametrize("job, gpus, devices", [
    (Job(4, range(2, 4), "a:1"), 2, [0, 1]),
    # one task of srun, which sees all GPUs of the machine, or its own only
    (Job(4, range(3, 4), "a:1", first_device=1), 2, [1]),
    (Job(4, range(3, 4), "a:1", first_device=1), 1, [0]),
])  # fmt: skip
def test_devices(job, gpus, devices):
    for rank, device in zip(job.ranks, devices, strict=True):
        command = rank_command(job, rank, Path("x.yaml"), [], gpus, 60)
        assert f"distributed_training.device_id={device}" in command
        assert "distributed_training.distributed_backend=nccl" in command and "common.cpu=true" not in command


def test_values_left_to_the_user(tmp_path):
    config = tmp_path / "x.yaml"
    config.write_text("common:\n  user_dir: ???\ntask:\n  data: ???\n  source_lang: de\nlr: [1]\n")
    check_nothing_missing(config, ["task.data=here"])
    check_nothing_missing(config, ["+task.data=here"])
    with pytest.raises(ValueError, match=r"^task\.data is missing, which .*x\.yaml leaves to you"):
        check_nothing_missing(config, ["task.source_lang=en"])


def test_values_left_to_the_user_in_a_list_of_defaults(tmp_path):
    config = tmp_path / "x.yaml"
    config.write_text("defaults:\n  - _self_\n  - corpus: own\n")
    with pytest.raises(ValueError, match=r"x\.yaml names corpus: own, but there is no .*own\.yaml"):
        check_nothing_missing(config, [])
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/own.yaml").write_text("task:\n  data: ???\n")
    with pytest.raises(ValueError, match=r"^task\.data is missing, which .*own\.yaml leaves to you"):
        check_nothing_missing(config, [])
    check_nothing_missing(config, ["task.data=here"])
    (tmp_path / "corpus/other.yaml").write_text("task:\n  data: here\n")
    check_nothing_missing(config, ["corpus=other"])
    with pytest.raises(ValueError, match=r"^corpus=none, but there is no .*none\.yaml"):
        check_nothing_missing(config, ["corpus=none"])


@pytest.mark.parametrize("folder", ["/a (copy)/ü", "/it's/x", "/a=b,c/{d}"])
def test_a_checkout_may_lie_anywhere(monkeypatch, folder):
    monkeypatch.setattr("moec_fairseq.launch.command.ROOT", folder)
    command = rank_command(Job(1, range(1), None), 0, Path("x.yaml"), [], 0, 60)
    (override,) = (argument for argument in command if argument.startswith("common.user_dir="))
    assert OverridesParser.create().parse_override(override).value() == folder


def test_the_folder_of_the_data(tmp_path):
    config = tmp_path / "x.yaml"
    config.write_text("task:\n  data: nowhere\n")
    with pytest.raises(ValueError, match="^task.data is nowhere, but there is no folder nowhere; make it with"):
        check_data(config, [])
    with pytest.raises(ValueError, match="^task.data is a:b, but there is no folder a; make it with"):
        check_data(config, [f"task.data={tmp_path}", "task.data=a:b"])
    check_data(config, [f"task.data={tmp_path}:more"])
    # what only hydra understands
    check_data(config, ["task.data='a,b'"])
    for data in ("${hydra:job.config_name}-bin", "???"):
        config.write_text(f"task:\n  data: {data}\n")
        check_data(config, [])
        with pytest.raises(ValueError, match="^task.data is nowhere"):
            check_data(config, ["task.data=nowhere"])
    config.write_text("common:\n  seed: 1\n")
    check_data(config, [])
