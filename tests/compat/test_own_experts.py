"""Trainings that begin with the model of another one, on any number of processes."""

import pytest
import torch

from moec_fairseq.checkpoint.tools import merge, reshard
from tests.parallel.ranks import on_ranks
from tests.whole_trainings import train, vars_of_training, write_corpus

FLAGS = ("--max-tokens", 200, "--dropout", 0)
# one update that changes nothing
IDLE = (*FLAGS, "--optimizer", "sgd", "--lr", 0)
RESETS = ("--reset-optimizer", "--reset-lr-scheduler", "--reset-dataloader", "--reset-meters")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A trained model, and folders with its files for 1, 2 and 4 processes; and the data."""
    folder = tmp_path_factory.mktemp("source")
    data = write_corpus(folder / "data", 40)
    seen = train(data, folder / "1", *FLAGS, max_update=4)
    for ranks in (2, 4):
        reshard(folder / "1" / "checkpoint_last.pt", ranks, f"{folder / str(ranks)}/")
    merge(folder / "4" / "checkpoint_last.pt", folder / "merged.pt")
    return data, folder, seen


def begin_on_two_ranks(rank, world_size, data, out, names):
    """Return the parameters with which trainings begin, by how the checkpoint is named."""
    found = {}
    for number, (option, name) in enumerate(names):
        flags = (*IDLE, option, name, *(RESETS if option == "--restore-file" else ()))
        run = vars_of_training(rank, world_size, data, out / str(number), [1], *flags)
        found[option, name] = run["parameters"]
    return found


NAMES = ["2/checkpoint_last.pt", "2/checkpoint_last-rank-0.pt", "2/checkpoint_last-rank-1.pt", "merged.pt",
         "1/checkpoint_last.pt", "4/checkpoint_last.pt", "4/checkpoint_last-rank-3.pt"]  # fmt: skip


def share(parameters, rank, world_size):
    """Return the parameters of a rank."""
    return {name: value.chunk(world_size)[rank] if ".experts." in name else value for name, value in parameters.items()}


def check_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_each_rank_takes_its_own_experts(source, tmp_path):
    data, folder, seen = source
    names = [(option, str(folder / name)) for option in ("--finetune-from-model", "--restore-file") for name in NAMES]
    for rank, found in enumerate(on_ranks(2, begin_on_two_ranks, data, tmp_path, names)):
        assert list(found) == names
        for parameters in found.values():
            check_same(parameters, share(seen.parameters, rank, 2))


@pytest.mark.parametrize("name", ["2/checkpoint_last.pt", "2/checkpoint_last-rank-1.pt", "merged.pt"])
def test_one_process_takes_all_experts(source, tmp_path, name):
    data, folder, seen = source
    begun = train(data, tmp_path, *IDLE, "--finetune-from-model", folder / name, max_update=1)
    check_same(begun.parameters, seen.parameters)


def test_a_training_goes_on_from_the_files_of_other_ranks(source, tmp_path):
    """With its optimizer, on the next batches."""
    data, folder, _ = source
    whole = train(data, tmp_path / "whole", *FLAGS, max_update=6)
    rest = train(data, tmp_path / "rest", *FLAGS, "--restore-file", folder / "1" / "checkpoint_last.pt", max_update=6)
    assert rest.sentences == whole.sentences[4:]
    check_same(rest.parameters, whole.parameters)
    reshard(folder / "2" / "checkpoint_last.pt", 1, str(tmp_path / "again.pt"))
    for name in (folder / "2" / "checkpoint_last.pt", tmp_path / "again.pt"):
        again = train(data, tmp_path / f"{name.parent.name}", *FLAGS, "--restore-file", name, max_update=6)
        check_same(again.parameters, whole.parameters)


def test_a_fine_tuning_that_is_started_again_goes_on(source, tmp_path):
    data, folder, _ = source
    flags = (*FLAGS, "--finetune-from-model", folder / "2" / "checkpoint_last.pt")
    whole = train(data, tmp_path / "whole", *flags, max_update=5)
    train(data, tmp_path / "parts", *flags, max_update=2)
    rest = train(data, tmp_path / "parts", *flags, max_update=5)
    assert rest.sentences == whole.sentences[2:]
    check_same(rest.parameters, whole.parameters)


@pytest.mark.parametrize("option", ["--finetune-from-model", "--restore-file"])
def test_a_checkpoint_that_is_not_there_or_of_other_experts(source, tmp_path, option):
    data, folder, _ = source
    with pytest.raises(ValueError, match=r"there is neither .*/none.pt nor .*/none-rank-0.pt"):
        train(data, tmp_path, *IDLE, option, tmp_path / "none.pt", max_update=1)
    with pytest.raises(ValueError, match="has 8 experts in a layer, but the model to be trained 16"):
        train(data, tmp_path, *IDLE, "--moe-expert-count", 16, option, folder / "merged.pt", max_update=1)
