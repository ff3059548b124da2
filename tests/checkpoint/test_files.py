import pytest

from moec_fairseq.checkpoint.files import check_processes


@pytest.fixture
def last(tmp_path):
    return tmp_path / "checkpoint_last.pt"


def written_by(last, world_size):
    names = [last.name] if world_size == 1 else [f"checkpoint_last-rank-{rank}.pt" for rank in range(world_size)]
    for name in names:
        (last.parent / name).touch()


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("written", [0, 1, 2, 4])
def test_as_many_processes_as_before(last, written, world_size):
    if written:
        written_by(last, written)
    for rank in range(world_size):
        if written in (0, world_size) or (written == 2 and world_size == 4):  # the last is for check_one_update
            check_processes(last, rank, world_size)
        else:
            with pytest.raises(
                ValueError, match=rf"holds the training of {written} process.*, and this one has {world_size}"
            ):
                check_processes(last, rank, world_size)


def test_disks_of_the_machines(last):
    for rank in (2, 3):
        (last.parent / f"checkpoint_last-rank-{rank}.pt").touch()
        check_processes(last, rank, 4)


def test_a_merged_file_beside_those_of_the_ranks(last):
    written_by(last, 1)
    written_by(last, 2)
    for rank in (0, 1):
        check_processes(last, rank, 2)
    check_processes(last, 0, 1)
