"""Dispatch between ranks, with answers known by hand."""

import pytest
import torch

from tests.parallel.ranks import on_ranks

# two ranks, four experts: rank 0 owns 0 and 1, rank 1 owns 2 and 3
CHOSEN = [[3, 0, 2, 0, 3], [1, 1]]


def numbered(rank, count):
    return (torch.arange(count, dtype=torch.float32) + 10 * rank).unsqueeze(-1).requires_grad_()


def send(rank, world_size, kind, chosen, capacity=None):
    """Dispatch numbered tokens, let every rank's experts multiply by 100 · (expert + 1), combine."""
    from moec_fairseq.moe.exchange import DISPATCHERS
    from moec_fairseq.moe.expert_parallel import ExpertParallelGroups

    groups = ExpertParallelGroups.of_job(4)
    dispatcher = DISPATCHERS[kind](groups)
    tokens = numbered(rank, len(chosen[rank]))
    dispatched = dispatcher.dispatch(tokens, torch.tensor(chosen[rank], dtype=torch.long), capacity)
    assert dispatched.segments.counts == dispatched.segments.counts_N.tolist()  # which the host knows without waiting
    factors = torch.tensor([100.0 * (e + 1) for e in groups.shard.experts])[dispatched.segments.expert_A]
    values = dispatcher.combine(dispatched.tokens_AD * factors.unsqueeze(-1), dispatched, len(tokens))
    values.sum().backward()
    return {
        "tokens": dispatched.tokens_AD.flatten().tolist(),
        "counts": dispatched.segments.counts_N.tolist(),
        "tokens_per_expert": dispatched.tokens_per_expert_N.tolist(),
        "values": values.flatten().tolist(),
        "gradient": tokens.grad.flatten().tolist(),
    }


def expected(chosen, rank):
    factors = [100.0 * (e + 1) for e in chosen[rank]]
    return {"values": [f * (t + 10 * rank) for t, f in enumerate(factors)], "gradient": factors}


def test_exact():
    first, second = on_ranks(2, send, "exact", CHOSEN)
    # tokens of rank 0 first, in the order of the batch; nothing else travels
    assert (first["tokens"], first["counts"]) == ([1, 3, 10, 11], [2, 2])
    assert (second["tokens"], second["counts"]) == ([2, 0, 4], [1, 2])
    assert first["tokens_per_expert"] == [2, 0, 1, 2] and second["tokens_per_expert"] == [0, 2, 0, 0]
    for rank, found in enumerate((first, second)):
        assert {key: found[key] for key in ("values", "gradient")} == expected(CHOSEN, rank)


def test_capacity_with_room_for_all():
    first, second = on_ranks(2, send, "capacity", CHOSEN, 4)
    # two slots for each expert and rank; empty ones are zeros
    assert first["tokens"] == [1, 3, 0, 0, 0, 0, 10, 11] and first["counts"] == [4, 4]
    assert second["tokens"] == [2, 0, 0, 0, 0, 4, 0, 0]
    for rank, found in enumerate((first, second)):
        assert {key: found[key] for key in ("values", "gradient")} == expected(CHOSEN, rank)


def test_tokens_above_capacity_get_nothing():
    first, second = on_ranks(2, send, "capacity", CHOSEN, 2)
    assert first["values"] == [0, 100, 600, 0, 0] and first["gradient"] == [400, 100, 300, 0, 0]
    assert second["values"] == [2000, 0]


@pytest.mark.parametrize("kind", ["exact", "capacity"])
def test_a_rank_without_tokens(kind):
    chosen = [[], [3, 0]]
    first, second = on_ranks(2, send, kind, chosen, 2)
    assert first["values"] == [] and second["values"] == [4000.0, 1100.0]
    assert second["gradient"] == [400, 100]


def only_padding(rank, world_size):
    """Rank 1 has padding only; return values and gradients of a layer."""
    from moec_fairseq.moe.clusters import ExpertClusters
    from moec_fairseq.moe.exchange import DISPATCHERS
    from moec_fairseq.moe.expert_dropout import ExpertDropout
    from moec_fairseq.moe.expert_parallel import ExpertParallelGroups
    from moec_fairseq.moe.experts import Experts
    from moec_fairseq.moe.layer import MoELayer
    from moec_fairseq.moe.router import Router

    found = []
    for kind in DISPATCHERS:
        torch.manual_seed(1)
        groups, clusters = ExpertParallelGroups.of_job(4), ExpertClusters(4, 2)
        experts = Experts(4, 8, 16, groups=groups)
        for block in experts.sublayers:
            torch.nn.init.ones_(block.b2_ND)
        layer = MoELayer(Router(8, clusters), experts, DISPATCHERS[kind](groups), ExpertDropout(0.0))
        hidden = torch.randn(3, 2, 8, requires_grad=True)
        output = layer(hidden, torch.full((2, 3), bool(rank)))
        output.sum().backward()
        found.append((hidden.detach(), output.detach(), hidden.grad, experts.sublayers[0].b2_ND.grad.sum()))
    return found


def test_a_rank_with_padding_only():
    first, second = on_ranks(2, only_padding)
    for (hidden, output, _, b2_grad), (padding, same, grad, other_b2_grad) in zip(first, second, strict=True):
        assert not output.equal(hidden) and same.equal(padding) and grad.eq(1).all()
        # each of six tokens gives every dimension of its expert's bias alpha, 0 < alpha < 1; divided by two ranks
        assert 0 < b2_grad + other_b2_grad < 6 * 8 / 2
