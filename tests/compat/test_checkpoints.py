import argparse
import pickle
import shlex
import shutil
import sys
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.file_io import PathManager

import moec_fairseq.compat  # noqa: F401  (importing it applies the workarounds)
from moec_fairseq.checkpoint.__main__ import main as moec_checkpoint
from moec_fairseq.checkpoint.reshard import reshard
from moec_fairseq.compat.checkpoints import save_whole
from moec_fairseq.models import MoECTransformerModel
from tests.conftest import USER_DIR


class Evil:
    """Runs code when it is unpickled the unsafe way."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (self.target, "w"))


def test_safe_loader_reads_the_namespace_of_a_fairseq_checkpoint(tmp_path):
    torch.save({"args": argparse.Namespace(arch="x")}, tmp_path / "checkpoint.pt")
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["args"].arch == "x"


def test_safe_loader_reads_the_arrays_that_eval_bleu_leaves(tmp_path):
    saved = {"counts": np.array([3, 2, 1]), "bleu": np.float64(1.5), "share": np.array(0.25, dtype=np.float32)}
    torch.save(saved, tmp_path / "checkpoint.pt")
    loaded = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert loaded["counts"].tolist() == [3, 2, 1] and loaded["bleu"] == 1.5 and loaded["share"] == 0.25


def test_safe_loader_still_refuses_code(tmp_path):
    torch.save({"args": Evil(str(tmp_path / "ran"))}, tmp_path / "checkpoint.pt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert not (tmp_path / "ran").exists()


def test_one_process_saves_whole_files_too():
    used = []
    save = save_whole(lambda cfg, trainer: used.append(checkpoint_utils.PathManager))
    save(None, SimpleNamespace(shares_experts=False))
    assert used[0].copy != PathManager.copy and used[0].rename == PathManager.rename
    assert checkpoint_utils.PathManager is PathManager


@pytest.fixture
def two_files(trained, tmp_path):
    reshard(trained / "checkpoint_best.pt", 2, str(tmp_path / "the checkpoint"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["the checkpoint-rank-0.pt", "the checkpoint-rank-1.pt"]
    return tmp_path / "the checkpoint.pt"


@pytest.mark.parametrize("name", ["the checkpoint.pt", "the checkpoint-rank-0.pt", "the checkpoint-rank-1.pt"])
def test_files_of_ranks_are_to_be_merged(monkeypatch, two_files, reversal_data, name):
    path = two_files.with_name(name)
    common = [str(reversal_data), "--user-dir", str(USER_DIR), "--path", str(path), "--cpu", "--max-tokens", "500"]
    common += ["--task", "translation"]  # fairseq-validate asks for it
    commands = []
    for command in ("generate", "interactive", "validate"):
        monkeypatch.setattr(sys, "argv", [f"fairseq-{command}", *common])
        with pytest.raises(ValueError) as error:
            import_module(f"fairseq_cli.{command}").cli_main()
        assert str(error.value).startswith(f"{path} is there in a file for each process")
        commands.append(str(error.value).partition("give that: ")[2])
    with pytest.raises(ValueError) as error:
        MoECTransformerModel.from_pretrained(str(path.parent), name, data_name_or_path=str(reversal_data))
    assert {*commands, str(error.value).partition("give that: ")[2]} == {commands[0]}

    monkeypatch.setattr(sys, "argv", shlex.split(commands[0]))
    assert moec_checkpoint() == 0
    checkpoint_utils.load_model_ensemble([sys.argv[-1]], arg_overrides={"data": str(reversal_data)})


def test_a_file_of_a_rank_with_another_name(two_files, trained, reversal_data):
    alone = two_files.with_name("model.pt")
    shutil.copy(two_files.with_name("the checkpoint-rank-1.pt"), alone)
    for files in ([alone], [trained / "checkpoint_best.pt", alone]):
        with pytest.raises(ValueError, match=r"model\.pt holds the experts of one process of .*moec-checkpoint merge"):
            checkpoint_utils.load_model_ensemble(list(map(str, files)), arg_overrides={"data": str(reversal_data)})


def test_what_is_wrong_with_other_files_stays_as_it_is(trained, tmp_path):
    (tmp_path / "torn.pt").write_bytes((trained / "checkpoint_best.pt").read_bytes()[:-1000])
    for name in ("none.pt", "torn.pt"):
        with pytest.raises((OSError, RuntimeError, ValueError)) as error:
            checkpoint_utils.load_model_ensemble([str(tmp_path / name)])
        assert "moec-checkpoint" not in str(error.value)
