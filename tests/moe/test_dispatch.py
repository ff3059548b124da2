import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moec_fairseq.moe.dispatch import LocalDispatcher

from .stubs import quick

EXPERTS = 4
assignments = st.lists(st.integers(0, EXPERTS - 1), max_size=20)
capacities = st.none() | st.integers(1, 21)


def numbered_tokens(count: int) -> torch.Tensor:
    """Token t is (t, −t)."""
    return torch.arange(count, dtype=torch.float32).unsqueeze(-1) * torch.tensor([1.0, -1.0])


def dispatch(chosen: list[int], capacity: int | None = None):
    tokens_TD = numbered_tokens(len(chosen))
    return tokens_TD, LocalDispatcher(EXPERTS).dispatch(tokens_TD, torch.tensor(chosen, dtype=torch.long), capacity)


def test_tokens_are_grouped_by_expert_in_the_order_of_the_batch():
    _, dispatched = dispatch([3, 0, 3, 1, 0])
    assert dispatched.accepted_A.tolist() == [1, 4, 3, 0, 2]
    assert dispatched.tokens_AD[:, 0].tolist() == [1, 4, 3, 0, 2]
    assert dispatched.segments.counts_N.tolist() == dispatched.tokens_per_expert_N.tolist() == [2, 1, 0, 2]


def test_capacity_keeps_the_first_tokens_of_each_expert():
    _, dispatched = dispatch([3, 0, 3, 3, 0, 1], capacity=1)
    assert dispatched.accepted_A.tolist() == [1, 5, 0]
    assert dispatched.segments.counts_N.tolist() == [1, 1, 0, 1]
    assert dispatched.tokens_per_expert_N.tolist() == [2, 1, 0, 3]


def test_tokens_above_capacity_get_nothing():
    _, dispatched = dispatch([3, 0, 3, 3], capacity=2)
    outputs = LocalDispatcher(EXPERTS).combine(dispatched.tokens_AD * 100 + 7, dispatched, 4)
    assert outputs[:, 0].tolist() == [7, 107, 207, 0]


@quick
@given(assignments, capacities)
def test_dispatch_then_combine_brings_accepted_tokens_back(chosen, capacity):
    tokens_TD, dispatched = dispatch(chosen, capacity)
    accepted_T1 = torch.isin(torch.arange(len(chosen)), dispatched.accepted_A).unsqueeze(-1)
    outputs_TD = LocalDispatcher(EXPERTS).combine(dispatched.tokens_AD, dispatched, len(chosen))
    assert torch.equal(outputs_TD, tokens_TD * accepted_T1)


@quick
@given(assignments)
def test_no_token_is_lost_or_doubled(chosen):
    tokens_TD, dispatched = dispatch(chosen)
    assert sorted(dispatched.accepted_A.tolist()) == list(range(len(chosen)))
    outputs_TD = LocalDispatcher(EXPERTS).combine(dispatched.tokens_AD, dispatched, len(chosen))
    assert torch.equal(outputs_TD, tokens_TD)


@quick
@given(assignments, capacities)
def test_against_a_naive_reference(chosen, capacity):
    tokens_TD, dispatched = dispatch(chosen, capacity)
    wanted = [[t for t, expert in enumerate(chosen) if expert == i] for i in range(EXPERTS)]
    accepted = [tokens[:capacity] for tokens in wanted]
    assert dispatched.tokens_per_expert_N.tolist() == [len(tokens) for tokens in wanted]
    assert dispatched.segments.counts_N.tolist() == [len(tokens) for tokens in accepted]
    assert dispatched.accepted_A.tolist() == sum(accepted, [])
    assert torch.equal(dispatched.tokens_AD, tokens_TD[dispatched.accepted_A])


@pytest.mark.parametrize("capacity", [None, 1])
def test_empty_batch(capacity):
    tokens_TD, dispatched = dispatch([], capacity)
    assert dispatched.tokens_AD.shape == (0, 2)
    assert dispatched.segments.counts_N.tolist() == dispatched.tokens_per_expert_N.tolist() == [0] * EXPERTS
    assert LocalDispatcher(EXPERTS).combine(dispatched.tokens_AD, dispatched, 0).shape == (0, 2)


def test_combine_does_not_change_its_input():
    tokens_TD, dispatched = dispatch([1, 0])
    LocalDispatcher(EXPERTS).combine(dispatched.tokens_AD, dispatched, 2).mul_(100)
    assert torch.equal(tokens_TD, numbered_tokens(2))
