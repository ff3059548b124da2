"""A training that is killed while it saves, on one rank or several."""

from pathlib import Path

import pytest
import torch
from fairseq import checkpoint_utils

from moec_fairseq.checkpoint.together import whole_files
from tests.parallel.ranks import on_ranks


def save(path: Path, updates: int, value: float) -> None:
    torch.save({"model": {"x": torch.tensor(value)}, "cfg": {}, "optimizer_history": [{"num_updates": updates}]}, path)


def finish(rank: int, world_size: int, folder: Path) -> tuple[int | None, str]:
    """Return updates of this rank's checkpoint after finishing, and what is wrong."""
    from moec_fairseq.checkpoint.together import check_one_update, finish_renaming, num_updates

    finish_renaming(folder, f"-rank-{rank}")
    path = folder / f"checkpoint_last-rank-{rank}.pt"
    try:
        check_one_update(path)
    except ValueError as error:
        return num_updates(path), str(error)
    return num_updates(path), ""


def name(rank: int, part: bool = False) -> str:
    return f"checkpoint_last-rank-{rank}.pt{'.tmp' if part else ''}"


def test_who_was_killed_before_renaming_does_so_later(tmp_path):
    save(tmp_path / name(0), 6, 0)
    save(tmp_path / name(1), 5, 1)
    save(tmp_path / name(1, part=True), 6, 1)
    assert on_ranks(2, finish, tmp_path) == [(6, ""), (6, "")]
    assert sorted(path.name for path in tmp_path.iterdir()) == [name(0), name(1)]


def test_the_very_first_checkpoint(tmp_path):
    save(tmp_path / name(1), 5, 1)
    save(tmp_path / name(0, part=True), 5, 1)
    assert on_ranks(2, finish, tmp_path) == [(5, ""), (5, "")]


@pytest.mark.parametrize("torn", [True, False])
def test_what_nobody_has_renamed_is_left_out(tmp_path, torn):
    for rank in (0, 1):
        save(tmp_path / name(rank), 5, 1)
        save(tmp_path / name(rank, part=True), 6, 1)
    if torn:
        part = tmp_path / name(1, part=True)
        part.write_bytes(part.read_bytes()[:100])
    assert on_ranks(2, finish, tmp_path) == [(5, ""), (5, "")]
    assert sorted(path.name for path in tmp_path.iterdir()) == [name(0), name(1)]


def test_no_checkpoint_at_all(tmp_path):
    assert on_ranks(2, finish, tmp_path) == [(None, ""), (None, "")]


def test_files_of_different_updates_are_named_by_all(tmp_path):
    save(tmp_path / name(0), 6, 0)
    save(tmp_path / name(1), 5, 1)
    for updates, (found, message) in zip((6, 5), on_ranks(2, finish, tmp_path), strict=True):
        assert found == updates
        assert message.startswith(
            f"the files to go on from are not of one checkpoint: {tmp_path / name(0)} has seen 6 updates, "
            f"{tmp_path / name(1)} has seen 5 updates; give --restore-file"
        )


def write(rank: int, world_size: int, folder: Path) -> list[str]:
    """Write as fairseq does; return the files of this rank."""
    first, last = (str(folder / f"{name}-rank-{rank}.pt") for name in ("checkpoint_1_5", "checkpoint_last"))
    with whole_files(on_every_rank=True):
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

    with whole_files(on_every_rank=False):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("shutil.copyfile", killed)
            checkpoint_utils.PathManager.copy(str(first), str(last), overwrite=True)
        assert last.read_text() == "old"
        checkpoint_utils.PathManager.copy(str(first), str(last), overwrite=True)
    assert last.read_text() == "new and long" and sorted(tmp_path.iterdir()) == [first, last]
