import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from moec_fairseq.moe.expert_parallel import Shard
from tests.parallel.ranks import on_ranks

from .stubs import quick


@pytest.mark.parametrize(
    "experts, world_size, rank, owned, parallel, replicas",
    [
        (8, 1, 0, [0, 1, 2, 3, 4, 5, 6, 7], [0], [0]),
        (8, 2, 1, [4, 5, 6, 7], [0, 1], [1]),
        (4, 4, 2, [2], [0, 1, 2, 3], [2]),
        (2, 4, 3, [1], [2, 3], [1, 3]),
        (1, 3, 2, [0], [2], [0, 1, 2]),
    ],
)
def test_by_hand(experts, world_size, rank, owned, parallel, replicas):
    shard = Shard(experts, world_size, rank)
    assert (list(shard.experts), list(shard.parallel_ranks), list(shard.replica_ranks)) == (owned, parallel, replicas)
    assert shard.num_ranks == len(parallel) and shard.num_replicas == len(replicas)


@quick
@given(st.integers(1, 24), st.integers(1, 24))
def test_parallel_ranks_hold_every_expert_once_and_replica_ranks_the_same(experts, world_size):
    assume(experts % world_size == 0 or world_size % experts == 0)
    shards = [Shard(experts, world_size, rank) for rank in range(world_size)]
    for rank, shard in enumerate(shards):
        assert rank in shard.parallel_ranks and rank in shard.replica_ranks
        assert [e for other in shard.parallel_ranks for e in shards[other].experts] == list(range(experts))
        assert {shards[other].experts for other in shard.replica_ranks} == {shard.experts}


def test_numbers_that_do_not_divide_are_rejected():
    with pytest.raises(
        ValueError, match="6 experts .* cannot be shared by 4 processes; use 1, 2, 3, 6 processes, or a multiple of 6"
    ):
        Shard(6, 4)


def evaluate(rank, world_size):
    """Ranks take different numbers of evaluation steps; none may wait for another."""
    from moec_fairseq.moe.expert_parallel import ExpertParallelGroups
    from moec_fairseq.moe.experts import Experts
    from moec_fairseq.moe.segments import Segments

    torch.manual_seed(1)
    one_each = Segments(torch.arange(4), 4)
    experts = Experts(4, 2, 3, groups=ExpertParallelGroups.of_job(4))
    for block in experts.sublayers:
        block.b2_ND.data.copy_(torch.tensor([[10.0 * e, 0.0] for e in experts.groups.shard.experts]))
    experts.eval()
    with torch.no_grad():
        outputs = [experts(torch.zeros(4, 2), one_each)[:, 0] for _ in range(1 + 3 * rank)]
    experts.train()
    for block in experts.sublayers:
        block.b2_ND.data.add_(1)
    experts.eval()
    with torch.no_grad():
        outputs.append(experts(torch.zeros(4, 2), one_each)[:, 0])
    return [o.tolist() for o in outputs]


def test_evaluation_gathers_all_experts_and_then_needs_no_other_rank():
    for rank, outputs in enumerate(on_ranks(2, evaluate)):
        assert outputs[:-1] == (1 + 3 * rank) * [[0, 10, 20, 30]]
        assert outputs[-1] == [1, 11, 21, 31]


def split_badly(rank, world_size):
    from moec_fairseq.moe.expert_parallel import ExpertParallelGroups

    try:
        ExpertParallelGroups.of_job(3)
    except ValueError as error:
        return str(error)


def test_a_number_of_experts_that_does_not_divide():
    for message in on_ranks(2, split_badly):
        assert message.startswith("3 experts (--moe-expert-count) cannot be shared by 2 processes; use 1, 3 processes")
