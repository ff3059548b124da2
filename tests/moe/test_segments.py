import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from .stubs import quick, segments_of

counts_of_experts = st.lists(st.integers(0, 9), min_size=1, max_size=6)


def test_answer_by_hand():
    segments = segments_of([2, 0, 3])
    assert segments.counts == [2, 0, 3] and segments.largest == 3
    assert segments.counts_N.tolist() == [2, 0, 3]
    assert segments.position_in_expert_A.tolist() == [0, 1, 0, 1, 2]
    assert segments.equal.slot_A.tolist() == [0, 1, 6, 7, 8] and segments.equal.num_slots == 9
    assert segments.spaced.slot_A.tolist() == [0, 1, 4, 5, 6] and segments.spaced.num_slots == 8
    assert segments.spaced.ends_N.tolist() == [3, 4, 8]
    assert segments.spaced.expert_X.tolist() == [0, 0, 0, 1, 2, 2, 2, 2]


@quick
@given(counts_of_experts)
def test_against_a_naive_reference(counts):
    segments = segments_of(counts)
    expert_of = [i for i, count in enumerate(counts) for _ in range(count)]
    position = [p for count in counts for p in range(count)]
    size = max(1, *counts, 1)
    assert segments.position_in_expert_A.tolist() == position
    assert segments.equal.slot_A.tolist() == [e * size + p for e, p in zip(expert_of, position, strict=True)]
    assert segments.equal.num_slots == len(counts) * size
    assert segments.spaced.slot_A.tolist() == [t + e for t, e in enumerate(expert_of)]
    assert segments.spaced.expert_X.tolist() == [i for i, count in enumerate(counts) for _ in range(count + 1)]
    assert segments.spaced.ends_N.tolist() == [sum(counts[: i + 1]) + i + 1 for i in range(len(counts))]


@quick
@given(counts_of_experts, st.sampled_from(["equal", "spaced"]))
def test_placing_fills_with_zeros_and_taking_undoes_it(counts, kind):
    slots = getattr(segments_of(counts), kind)
    rows_AD = torch.randn(sum(counts), 3)
    placed_XD = slots.place(rows_AD)
    assert torch.equal(slots.take(placed_XD), rows_AD)
    assert placed_XD.shape == (slots.num_slots, 3)
    assert placed_XD.any(1).sum() == sum(counts)


@pytest.mark.parametrize("kind", ["equal", "spaced"])
def test_gradients(kind):
    slots = getattr(segments_of([2, 0, 1]), kind)
    rows_AD = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    slots_XD = torch.randn(slots.num_slots, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(slots.place, rows_AD) and torch.autograd.gradgradcheck(slots.place, rows_AD)
    assert torch.autograd.gradcheck(slots.take, slots_XD) and torch.autograd.gradgradcheck(slots.take, slots_XD)


def test_what_the_host_waits_for():
    # nothing can be read from the device "meta"
    segments = segments_of([2, 0, 3], "meta")
    assert segments.spaced.num_slots == 8
    with pytest.raises((NotImplementedError, RuntimeError)):
        _ = segments.counts
    assert segments_of([0, 0, 0], "meta").counts == [0, 0, 0]


def test_everything_is_computed_once():
    segments = segments_of([2, 0, 3])
    for name in ("counts", "counts_N", "position_in_expert_A", "equal", "spaced"):
        assert getattr(segments, name) is getattr(segments, name), name
