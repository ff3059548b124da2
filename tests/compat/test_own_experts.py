"""Trainings that begin with the model of another one, on any number of processes."""

import io
import os
import shutil

import pytest
import torch

from moec_fairseq.checkpoint.state import load_state
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
        flags = (*IDLE, option, name, *(() if option == "--finetune-from-model" else RESETS))
        run = vars_of_training(rank, world_size, data, out / str(number), [1], *flags)
        found[option, name] = run["parameters"]
    return found


STARTS = ("--finetune-from-model", "--restore-file", "--continue-once")
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
    names = [(option, str(folder / name)) for option in STARTS for name in NAMES]
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
    ways = {"--restore-file": folder / "2" / "checkpoint_last.pt", "--continue-once": tmp_path / "again.pt"}
    for option, name in ways.items():
        again = train(data, tmp_path / f"{name.parent.name}", *FLAGS, option, name, max_update=6)
        check_same(again.parameters, whole.parameters)


def run(folder):
    return load_state(folder / "checkpoint_last.pt")["extra_state"]["run"]


def test_a_fine_tuning_that_is_started_again_goes_on(source, tmp_path):
    """As the same run, which is another one than that of its model."""
    data, folder, _ = source
    flags = (*FLAGS, "--finetune-from-model", folder / "2" / "checkpoint_last.pt")
    whole = train(data, tmp_path / "whole", *flags, max_update=5)
    train(data, tmp_path / "parts", *flags, max_update=2)
    begun = run(tmp_path / "parts")
    assert len({begun, run(tmp_path / "whole"), run(folder / "1")}) == 3
    rest = train(data, tmp_path / "parts", *flags, max_update=5)
    assert run(tmp_path / "parts") == begun
    assert rest.sentences == whole.sentences[2:]
    check_same(rest.parameters, whole.parameters)


@pytest.mark.parametrize("option", STARTS)
def test_a_checkpoint_that_is_not_there_or_of_other_experts(source, tmp_path, option):
    data, folder, _ = source
    with pytest.raises(ValueError, match=r"there is neither .*/none.pt nor .*/none-rank-0.pt"):
        train(data, tmp_path, *IDLE, option, tmp_path / "none.pt", max_update=1)
    with pytest.raises(ValueError, match="has 8 experts in a layer, but the model to be trained 16"):
        train(data, tmp_path, *IDLE, "--moe-expert-count", 16, option, folder / "merged.pt", max_update=1)


def edited(file, edit):
    state = load_state(file)
    edit(state)
    content = io.BytesIO()
    torch.save(state, content)
    file.write_bytes(content.getvalue())


def exchange(first, second):
    first.rename(first.with_name("kept"))
    second.rename(first)
    first.with_name("kept").rename(second)


def copy_over(first, second):
    second.write_bytes(first.read_bytes())


def other_run(first, second):
    edited(second, lambda state: state["extra_state"].update(run="another"))


def other_values(first, second):
    """Of version 0.2, whose runs have no names."""
    for file in (first, second):
        edited(file, lambda state: state["extra_state"].pop("run"))
    edited(second, lambda state: state["model"]["encoder.layers.0.self_attn_layer_norm.weight"].add_(1))


def other_setting(first, second):
    edited(second, lambda state: state["cfg"]["criterion"].update(moe_gate_loss_wt=0.5))


def of_four(first, second):
    for file in (first, second):
        edited(file, lambda state: state["cfg"]["distributed_training"].update(distributed_world_size=4))


def flip_a_bit(first, second):
    content = bytearray(second.read_bytes())
    content[content.index(load_state(second)["model"]["decoder.embed_tokens.weight"].numpy().tobytes()) + 3] ^= 64
    second.write_bytes(content)


MIXED_UP = {
    exchange: "named this file with -rank-1, not -rank-0",
    copy_over: "named this file with -rank-0, not -rank-1",
    other_run: "is of the training another, but the first file of",
    other_values: "the shared parameter encoder.layers.0.self_attn_layer_norm.weight has other values",
    other_setting: "was trained with criterion.moe_gate_loss_wt=0.5, but the first file with 0.01",
    of_four: "was written by 4 processes, but",
    flip_a_bit: "checkpoint_last-rank-1.pt is corrupt (Bad CRC-32 for file",
}
BEGINNINGS = ((), ("--restore-file", "./checkpoint_last.pt"), ("--finetune-from-model", "./checkpoint_last.pt"))


def what_is_wrong(rank, world_size, data, folders):
    """Return why trainings do not begin, in each folder in three ways."""
    before, found = os.getcwd(), []
    for folder in folders:
        os.chdir(folder)
        for beginning in BEGINNINGS:
            try:
                vars_of_training(rank, world_size, data, "new" if beginning else ".", [5], *FLAGS, *beginning)
            except ValueError as error:
                found.append(str(error))
            else:
                found.append("")
    os.chdir(before)
    return found


def test_trainings_begin_with_files_that_belong_together_as_the_tools_do(source, tmp_path):
    data, folder, _ = source
    for mix in MIXED_UP:
        shutil.copytree(folder / "2", tmp_path / mix.__name__)
        mix(*(tmp_path / mix.__name__ / f"checkpoint_last-rank-{rank}.pt" for rank in (0, 1)))
        with pytest.raises(ValueError):
            merge(tmp_path / mix.__name__ / "checkpoint_last.pt", tmp_path / "merged.pt")
    for found in on_ranks(2, what_is_wrong, data, [tmp_path / mix.__name__ for mix in MIXED_UP]):
        for number, (mix, message) in enumerate(MIXED_UP.items()):
            beginnings = found[3 * number : 3 * number + 3]
            # files of other processes are taken by whoever names them
            expected = [message, *[message if mix is not of_four else "of their files"] * 2]
            for sentence, words in zip(beginnings, expected, strict=True):
                assert words in sentence and "\n" not in sentence, (mix.__name__, beginnings)


@pytest.mark.parametrize("option", [*STARTS, None])
def test_one_process_finds_a_flipped_bit(source, tmp_path, option):
    data, folder, _ = source
    last = tmp_path / "checkpoint_last.pt"
    shutil.copy(folder / "1" / "checkpoint_last.pt", last)
    flip_a_bit(last, last)
    with pytest.raises(ValueError, match=r"checkpoint_last\.pt is corrupt \(Bad CRC-32"):
        train(data, tmp_path / "new" if option else tmp_path, *FLAGS, *((option, last) if option else ()), max_update=5)
