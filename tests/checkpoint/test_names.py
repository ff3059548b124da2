import pytest

from moec_fairseq.checkpoint.names import check_processes, last_checkpoints, rank_paths


@pytest.fixture
def last(tmp_path):
    return tmp_path / "checkpoint_last.pt"


def written_by(last, world_size):
    for path in rank_paths(last, world_size):
        path.touch()


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("written", [0, 1, 2, 4])
def test_as_many_processes_as_before(last, written, world_size):
    if written:
        written_by(last, written)
    for own in rank_paths(last, world_size):
        if written in (0, world_size) or (written == 2 and world_size == 4):  # the last is for check_ranks
            check_processes(own, world_size)
        else:
            with pytest.raises(ValueError, match=rf"consists of {written} file.* expects {world_size}; give"):
                check_processes(own, world_size)


def test_disks_of_the_machines(last):
    for own in rank_paths(last, 4)[2:]:
        own.touch()
        check_processes(own, 4)


def test_a_merged_file_beside_those_of_the_ranks(last):
    written_by(last, 1)
    written_by(last, 2)
    for world_size in (1, 2):
        for own in rank_paths(last, world_size):
            check_processes(own, world_size)


def test_updates_and_epochs(tmp_path):
    for name in ("checkpoint1.pt", "checkpoint_1_9-rank-0.pt", "checkpoint_1_9-rank-1.pt", "checkpoint_2_10.pt"):
        (tmp_path / name).touch()
    by_update = [tmp_path / "checkpoint_1_9.pt", tmp_path / "checkpoint_2_10.pt"]
    assert last_checkpoints(tmp_path, 2, "update") == by_update
    assert last_checkpoints(tmp_path, 1, "epoch") == [tmp_path / "checkpoint1.pt"]
    with pytest.raises(ValueError, match="give --by epoch or --by update"):
        last_checkpoints(tmp_path, 1)
    with pytest.raises(ValueError, match="--last is 3, but .* holds 2 numbered checkpoints by update; give 2 or less"):
        last_checkpoints(tmp_path, 3, "update")
    with pytest.raises(ValueError, match="--last is 0; give 1 or more"):
        last_checkpoints(tmp_path, 0)
