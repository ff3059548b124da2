"""Dispatch between ranks, with answers known by hand."""

import pytest
import torch

from .ranks import on_ranks

# two ranks, four experts: rank 0 owns 0 and 1, rank 1 owns 2 and 3
CHOSEN = [[3, 0, 2, 0, 3], [1, 1]]


def numbered(rank, count):
    return (torch.arange(count, dtype=torch.float32) + 10 * rank).unsqueeze(-1).requires_grad_()


def send(rank, world_size, kind, chosen, capacity=None):
    """Dispatch numbered tokens, let every rank's experts multiply by 100 · (expert + 1), combine."""
    from moec_fairseq.moe.exchange import DISPATCHERS
    from moec_fairseq.moe.ranks import Ranks

    ranks = Ranks.of_job(4)
    dispatcher = DISPATCHERS[kind](ranks)
    tokens = numbered(rank, len(chosen[rank]))
    dispatched = dispatcher.dispatch(tokens, torch.tensor(chosen[rank], dtype=torch.long), capacity)
    factors = torch.tensor([100.0 * (e + 1) for e in ranks.shard.experts]).repeat_interleave(dispatched.counts_N)
    values = dispatcher.combine(dispatched.tokens_AD * factors.unsqueeze(-1), dispatched, len(tokens))
    values.sum().backward()
    return {
        "tokens": dispatched.tokens_AD.flatten().tolist(),
        "counts": dispatched.counts_N.tolist(),
        "assigned": dispatched.assigned_N.tolist(),
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
    assert first["assigned"] == [2, 0, 1, 2] and second["assigned"] == [0, 2, 0, 0]
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


def evaluate(rank, world_size):
    """Ranks make different numbers of evaluation steps; nobody may wait."""
    from moec_fairseq.moe.experts import Experts
    from moec_fairseq.moe.ranks import Ranks

    torch.manual_seed(1)
    experts = Experts(4, 2, 3, ranks=Ranks.of_job(4))
    for block in experts.sublayers:
        block.b2_ND.data.copy_(torch.tensor([[10.0 * e, 0.0] for e in experts.ranks.shard.experts]))
    experts.eval()
    with torch.no_grad():
        outputs = [experts(torch.zeros(4, 2), torch.tensor([1, 1, 1, 1]))[:, 0] for _ in range(1 + 3 * rank)]
    experts.train()
    for block in experts.sublayers:
        block.b2_ND.data.add_(1)
    experts.eval()
    with torch.no_grad():
        outputs.append(experts(torch.zeros(4, 2), torch.tensor([1, 1, 1, 1]))[:, 0])
    return [o.tolist() for o in outputs]


def test_evaluation_has_all_experts_and_needs_nobody():
    for rank, outputs in enumerate(on_ranks(2, evaluate)):
        assert outputs[:-1] == (1 + 3 * rank) * [[0, 10, 20, 30]]
        assert outputs[-1] == [1, 11, 21, 31]


def split_badly(rank, world_size):
    from moec_fairseq.moe.ranks import Ranks

    try:
        Ranks.of_job(3)
    except ValueError as error:
        return str(error)


def test_a_number_of_experts_that_does_not_divide():
    for message in on_ranks(2, split_badly):
        assert message.startswith("3 experts (--moe-expert-count) cannot be shared by 2 processes; use 1, 3 processes")
