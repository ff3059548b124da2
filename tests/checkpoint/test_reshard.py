import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moec_fairseq.checkpoint.tools import reshard

from .made import EXPERT_INDICES, W1, assert_same, load, names, numbered, save, split, whole


def valid_ranks(n: int) -> list[int]:
    return [w for w in range(1, 13) if n % w == 0 or w % n == 0]


@st.composite
def journeys(draw):
    n = draw(st.integers(1, 6))
    return n, draw(st.sampled_from(valid_ranks(n))), draw(st.sampled_from(valid_ranks(n)))


@settings(max_examples=40, deadline=None)
@given(journeys(), st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
def test_there_and_back(journey, dtype):
    n, first, second = journey
    state = whole(n, dtype=dtype)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reshard(save(folder / "a", "x", state, first), second, f"{folder}/b/")
        reshard(folder / "b" / "x.pt", first, f"{folder}/c/")
        for where, ranks in (("b", second), ("c", first)):
            expected = split(state, ranks)
            files = [f"x-rank-{rank}.pt" for rank in range(ranks)] if ranks > 1 else ["x.pt"]
            assert names(folder / where) == sorted(files)
            for file, shard in zip(files, expected, strict=True):
                assert_same(load(folder / where / file), shard)


def test_by_hand(tmp_path):
    reshard(save(tmp_path, "x", whole(4)), 2, str(tmp_path / "y"))
    for rank in range(2):
        shard = load(tmp_path / f"y-rank-{rank}.pt")
        assert torch.equal(shard["model"][W1], numbered(2, 2, 3, start=300 + 12 * rank))
        adam = shard["last_optimizer_state"]["state"]
        assert torch.equal(adam[3]["exp_avg_sq"], numbered(2, 2, 3, start=300.5 + 12 * rank))
        assert [i for i in adam if len(adam[i]["exp_avg"]) == 2] == list(EXPERT_INDICES)
        assert shard["cfg"]["checkpoint"]["checkpoint_suffix"] == f"-rank-{rank}"
        distributed = shard["cfg"]["distributed_training"]
        assert (distributed["distributed_world_size"], distributed["distributed_rank"]) == (2, rank)


def test_more_ranks_than_experts_hold_copies(tmp_path):
    reshard(save(tmp_path, "x", whole(2), 2), 4, str(tmp_path / "y.pt"))
    values = [load(tmp_path / f"y-rank-{rank}.pt")["model"][W1] for rank in range(4)]
    for rank, value in enumerate(values):
        assert torch.equal(value, numbered(1, 2, 3, start=300 + 6 * (rank % 2)))


@pytest.mark.parametrize("first, second, expected", [(1, 2, 11), (2, 1, 42), (2, 4, 11), (2, 8, 6), (4, 4, 21)])
def test_the_epoch_goes_on_where_it_was(tmp_path, first, second, expected):
    def iterator(name, ranks):
        return load(tmp_path / (f"{name}.pt" if ranks == 1 else f"{name}-rank-0.pt"))["extra_state"]["train_iterator"]

    # a rank has seen 21 batches
    state = whole()
    state["extra_state"]["train_iterator"]["iterations_in_epoch"] = 21
    reshard(save(tmp_path, "x", state, first), second, str(tmp_path / "y"))
    batches = {"batches_in_epoch": 21 * first, "num_shards": first}
    assert iterator("y", second) == {"epoch": 3, "iterations_in_epoch": expected, **batches}
    reshard(tmp_path / "y.pt", first, str(tmp_path / "z"))
    assert iterator("z", first) == {"epoch": 3, "iterations_in_epoch": 21, **batches}


def test_model_without_experts(tmp_path):
    state = whole(1)
    state["cfg"]["model"].moe_expert_count = 0
    for tensors in (state["model"], state["extra_state"]["ema"]):
        for name in [name for name in tensors if ".experts." in name]:
            del tensors[name]
    del state["last_optimizer_state"]
    torch.save(state, tmp_path / "x.pt")
    reshard(tmp_path / "x.pt", 3, str(tmp_path / "y"))
    for rank in range(3):
        assert_same(load(tmp_path / f"y-rank-{rank}.pt"), state)


@pytest.mark.parametrize(
    "ranks, message",
    [
        (3, "4 experts .* cannot be shared by 3 processes; use 1, 2, 4 processes, or a multiple of 4"),
        (0, "--ranks is 0"),
    ],
)
def test_numbers_that_do_not_divide(tmp_path, ranks, message):
    path = save(tmp_path, "x", whole(4))
    with pytest.raises(ValueError, match=message):
        reshard(path, ranks, str(tmp_path / "y"))
    assert names(tmp_path) == ["x.pt"]


def test_in_place_with_more_ranks(tmp_path):
    path = save(tmp_path, "x", whole(), 2)
    reshard(path, 4, str(tmp_path))
    assert names(tmp_path) == [f"x-rank-{rank}.pt" for rank in range(4)]
    for rank, shard in enumerate(split(whole(), 4)):
        assert_same(load(tmp_path / f"x-rank-{rank}.pt"), shard)


def test_older_files_of_more_ranks_are_not_mixed_in(tmp_path):
    path = save(tmp_path, "x", whole(), 4)
    with pytest.raises(ValueError, match=r"x-rank-2\.pt, .*x-rank-3\.pt would be mixed up with the 2 new files"):
        reshard(path, 2, str(tmp_path / "x"))


def test_nothing_is_written_when_the_disk_is_full(tmp_path, monkeypatch):
    path = save(tmp_path, "x", whole(), 2)
    written = []

    def full(state, file):
        if written:
            raise RuntimeError("unexpected pos")
        written.append(file.write_bytes(b"truncated"))

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="is the disk full"):
        reshard(path, 4, str(tmp_path / "new"))
    assert written and names(tmp_path) == ["x-rank-0.pt", "x-rank-1.pt"]
