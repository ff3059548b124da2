"""How fairseq saves and loads: trainings that are killed while they save, and files of ranks given to its commands."""

import shlex
import shutil
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.file_io import PathManager

from moec_fairseq.__main__ import main as moec
from moec_fairseq.checkpoint.tools import reshard
from moec_fairseq.compat import checkpoints
from moec_fairseq.compat.checkpoints import (
    check_ranks,
    finish_removing,
    finish_renaming,
    num_updates,
    replacing_whole,
)
from moec_fairseq.models import MoECTransformerModel
from tests.conftest import USER_DIR
from tests.parallel.ranks import on_ranks


def save(path: Path, updates: int, value: float) -> None:
    cfg = {"distributed_training": {"distributed_world_size": 2}}
    torch.save({"model": {"x": torch.tensor(value)}, "cfg": cfg, "optimizer_history": [{"num_updates": updates}]}, path)


def finish(rank: int, world_size: int, folder: Path) -> tuple[int | None, str]:
    """Return updates of this rank's checkpoint after finishing, and what is wrong."""
    finish_renaming(folder, f"-rank-{rank}")
    path = folder / f"checkpoint_last-rank-{rank}.pt"
    try:
        check_ranks(path, world_size)
    except ValueError as error:
        return num_updates(path), str(error)
    return num_updates(path), ""


def name(rank: int, part: bool = False) -> str:
    return f"checkpoint_last-rank-{rank}.pt{'.tmp' if part else ''}"


def test_who_was_killed_before_renaming_does_so_later(tmp_path):
    save(tmp_path / name(0), 6, 1)
    save(tmp_path / name(1), 5, 1)
    save(tmp_path / name(1, part=True), 6, 1)
    assert on_ranks(2, finish, tmp_path) == [(6, ""), (6, "")]
    assert sorted(path.name for path in tmp_path.iterdir()) == [name(0), name(1)]


def test_the_very_first_checkpoint(tmp_path):
    save(tmp_path / name(1), 5, 1)
    save(tmp_path / name(0, part=True), 5, 1)
    assert on_ranks(2, finish, tmp_path) == [(5, ""), (5, "")]


def finish_removals(rank: int, world_size: int, folder: Path) -> None:
    finish_removing(folder, f"-rank-{rank}")


def test_best_checkpoints_that_a_rank_has_removed_go_on_all(tmp_path):
    kept = [f"checkpoint.best_loss_3.20-rank-{rank}.pt" for rank in range(2)]
    for name in [*kept, "checkpoint.best_loss_4.10-rank-1.pt", "checkpoint7-rank-1.pt"]:
        (tmp_path / name).touch()
    on_ranks(2, finish_removals, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [*kept, "checkpoint7-rank-1.pt"]


@pytest.mark.parametrize("truncated", [True, False])
def test_what_nobody_has_renamed_is_left_out(tmp_path, truncated):
    for rank in (0, 1):
        save(tmp_path / name(rank), 5, 1)
        save(tmp_path / name(rank, part=True), 6, 1)
    if truncated:
        part = tmp_path / name(1, part=True)
        part.write_bytes(part.read_bytes()[:100])
    assert on_ranks(2, finish, tmp_path) == [(5, ""), (5, "")]
    assert sorted(path.name for path in tmp_path.iterdir()) == [name(0), name(1)]


def test_no_checkpoint_at_all(tmp_path):
    assert on_ranks(2, finish, tmp_path) == [(None, ""), (None, "")]


def test_files_of_different_updates_are_named_by_all(tmp_path):
    save(tmp_path / name(0), 6, 1)
    save(tmp_path / name(1), 5, 1)
    for updates, (found, message) in zip((6, 5), on_ranks(2, finish, tmp_path), strict=True):
        assert found == updates
        assert message.startswith(
            f"the files to resume from are not of one checkpoint: {tmp_path / name(1)}: this file has 5 updates, "
            "but the first file 6; "
        )
        assert "same moment of the same training; give --restore-file" in message


@pytest.mark.parametrize("lost", [0, 1])
def test_a_missing_file_is_named_by_all(tmp_path, lost):
    save(tmp_path / name(1 - lost), 6, 1)
    for _, message in on_ranks(2, finish, tmp_path):
        assert f"not of one checkpoint: {tmp_path / name(lost)} is missing; give --restore-file" in message


def write(rank: int, world_size: int, folder: Path) -> list[str]:
    """Write as fairseq does; return the files of this rank."""
    first, last = (str(folder / f"{name}-rank-{rank}.pt") for name in ("checkpoint_1_5", "checkpoint_last"))
    with replacing_whole(on_every_rank=True):
        checkpoint_utils.torch_persistent_save({"x": rank}, first)
        Path(last).write_text("old")
        assert checkpoint_utils.PathManager.copy(first, last, overwrite=True)
    assert Path(last).read_bytes() == Path(first).read_bytes()
    return sorted(path.name for path in folder.glob(f"*-rank-{rank}*"))


def test_writing(tmp_path):
    for rank, names in enumerate(on_ranks(2, write, tmp_path)):
        assert names == [f"checkpoint_1_5-rank-{rank}.pt", f"checkpoint_last-rank-{rank}.pt"]


def test_who_is_killed_while_a_checkpoint_is_copied_keeps_the_old_one(tmp_path, monkeypatch):
    first, last = tmp_path / "checkpoint1.pt", tmp_path / "checkpoint_last.pt"
    first.write_text("new and long")
    last.write_text("old")

    def killed(source, target, *args, **kwargs):
        Path(target).write_text("new and")
        raise KeyboardInterrupt

    with replacing_whole(on_every_rank=False):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("shutil.copyfile", killed)
            checkpoint_utils.PathManager.copy(str(first), str(last), overwrite=True)
        assert last.read_text() == "old"
        checkpoint_utils.PathManager.copy(str(first), str(last), overwrite=True)
    assert last.read_text() == "new and long" and sorted(tmp_path.iterdir()) == [first, last]


def test_one_process_saves_whole_files_too(monkeypatch):
    used = []
    monkeypatch.setattr(checkpoints, "_save_checkpoint", lambda *_: used.append(checkpoint_utils.PathManager))
    checkpoint_utils.save_checkpoint(None, SimpleNamespace(shares_experts=False))
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
        assert str(error.value).startswith(f"{path} consists of one file for each process")
        commands.append(str(error.value).partition("give the result: ")[2])
    with pytest.raises(ValueError) as error:
        MoECTransformerModel.from_pretrained(str(path.parent), name, data_name_or_path=str(reversal_data))
    assert {*commands, str(error.value).partition("give the result: ")[2]} == {commands[0]}

    monkeypatch.setattr(sys, "argv", shlex.split(commands[0]))
    assert moec() == 0
    checkpoint_utils.load_model_ensemble([sys.argv[-1]], arg_overrides={"data": str(reversal_data)})


def test_a_file_of_a_rank_with_another_name(two_files, trained, reversal_data):
    alone = two_files.with_name("model.pt")
    shutil.copy(two_files.with_name("the checkpoint-rank-1.pt"), alone)
    for files in ([alone], [trained / "checkpoint_best.pt", alone]):
        with pytest.raises(ValueError, match=r"model\.pt holds the experts of one process of .*moec checkpoint merge"):
            checkpoint_utils.load_model_ensemble(list(map(str, files)), arg_overrides={"data": str(reversal_data)})


def test_what_is_wrong_with_other_files_stays_as_it_is(trained, tmp_path):
    (tmp_path / "truncated.pt").write_bytes((trained / "checkpoint_best.pt").read_bytes()[:-1000])
    for name in ("none.pt", "truncated.pt"):
        with pytest.raises((OSError, RuntimeError, ValueError)) as error:
            checkpoint_utils.load_model_ensemble([str(tmp_path / name)])
        assert "moec checkpoint" not in str(error.value)
