import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from moec_fairseq.moe.shards import Shard

from .stubs import quick


@pytest.mark.parametrize(
    "experts, world_size, rank, owned, partners, holders",
    [
        (8, 1, 0, [0, 1, 2, 3, 4, 5, 6, 7], [0], [0]),
        (8, 2, 1, [4, 5, 6, 7], [0, 1], [1]),
        (4, 4, 2, [2], [0, 1, 2, 3], [2]),
        (2, 4, 3, [1], [2, 3], [1, 3]),
        (1, 3, 2, [0], [2], [0, 1, 2]),
    ],
)
def test_by_hand(experts, world_size, rank, owned, partners, holders):
    shard = Shard(experts, world_size, rank)
    assert (list(shard.experts), list(shard.partners), list(shard.holders)) == (owned, partners, holders)
    assert shard.num_ranks == len(partners) and shard.num_copies == len(holders)


@quick
@given(st.integers(1, 24), st.integers(1, 24))
def test_partners_hold_every_expert_once_and_holders_the_same(experts, world_size):
    assume(experts % world_size == 0 or world_size % experts == 0)
    shards = [Shard(experts, world_size, rank) for rank in range(world_size)]
    for rank, shard in enumerate(shards):
        assert rank in shard.partners and rank in shard.holders
        assert [e for partner in shard.partners for e in shards[partner].experts] == list(range(experts))
        assert {shards[holder].experts for holder in shard.holders} == {shard.experts}


def test_numbers_that_do_not_divide_are_refused():
    with pytest.raises(
        ValueError, match="6 experts .* cannot be shared by 4 processes; use 1, 2, 3, 6 processes, or a multiple of 6"
    ):
        Shard(6, 4)
