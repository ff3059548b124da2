import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moec_fairseq.moe.clusters import ExpertClusters
from moec_fairseq.moe.losses import GateLoss, gate_statistics
from moec_fairseq.moe.router import Routing
from moec_fairseq.moe.routing_metrics import averages, by_name, model_sums, no_sums
from moec_fairseq.moe.routing_records import RoutingRecord

from .kernels import Kernels, no_synchronisation
from .stubs import quick, random_records, record_of

TWO_PAIRS = ExpertClusters(4, 2)


def sums_of(*records: RoutingRecord, num_layers: int = 1) -> dict[str, torch.Tensor]:
    """Return what one pass adds to the log."""
    statistics = gate_statistics(records)
    return by_name(model_sums(records, statistics, GateLoss("intra")(statistics), num_layers))


def added(*passes: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: sum(sums[key] for sums in passes) for key in passes[0]}


@pytest.mark.parametrize(
    "probabilities, bits",
    [
        ([0.25, 0.25, 0.25, 0.25], 2.0),
        ([0.5, 0.25, 0.25, 0.0], 1.5),  # 1/2·1 + 1/4·2 + 1/4·2
        ([1.0, 0.0, 0.0, 0.0], 0.0),
    ],
)
def test_entropy_in_bits(probabilities, bits):
    assert averages(sums_of(record_of([probabilities], [0], TWO_PAIRS)))["entropy"] == pytest.approx(bits)


# Layer 0: two tokens, P = (0.9, 0.5 | 0.4, 0.2), both on expert 0, one of them above capacity.
FIRST = record_of([[0.4, 0.3, 0.2, 0.1], [0.5, 0.2, 0.2, 0.1]], [0, 0], TWO_PAIRS, layer=0, overflow=1)
# Layer 1: four tokens, uniform, one on each expert.
SECOND = record_of([[0.25] * 4] * 4, [0, 1, 2, 3], TWO_PAIRS, layer=1)


def test_one_layer_by_hand():
    metrics = averages(sums_of(FIRST))
    assert metrics == pytest.approx(
        {
            "balance": 4 * (0.9 + 2e-6) / 2,
            "variance": 4 * 0.05 / 2,
            # standard deviation over mean: √0.08/0.7 and √0.02/0.3
            "spread": (math.sqrt(0.08) / 0.7 + math.sqrt(0.02) / 0.3) / 2,
            "gap": 0.35 - 0.15,
            # of (0.4, 0.3, 0.2, 0.1): 1.846439 bits; of (0.5, 0.2, 0.2, 0.1): 1.760964 bits
            "entropy": (1.846439 + 1.760964) / 2,
            "overflow": 50.0,
            "load_max": 100.0,
            "load_min": 0.0,
            "unused": 3,
        },
        rel=1e-5,
    )


def test_two_layers_are_averaged_over_their_tokens():
    metrics = averages(sums_of(FIRST, SECOND, num_layers=2))
    assert metrics == pytest.approx(
        {
            "balance": (3.600008 + 4.000016) / 6,
            "variance": 0.2 / 6,
            "spread": 2 * (math.sqrt(0.08) / 0.7 + math.sqrt(0.02) / 0.3) / 2 / 6,
            "gap": 2 * 0.2 / 6,
            "entropy": (1.846439 + 1.760964 + 4 * 2) / 6,
            "overflow": 100 / 6,
            "load_max": (100 + 25) / 2,
            "load_min": (0 + 25) / 2,
            "unused": 3,
        },
        rel=1e-5,
    )


def test_layers_that_took_no_part_count_nowhere():
    alone, among_others = averages(sums_of(FIRST)), averages(sums_of(FIRST, num_layers=5))
    assert among_others == pytest.approx(alone)


def test_shapes_do_not_depend_on_the_layers_that_took_part():
    one, both = sums_of(SECOND, num_layers=3), sums_of(FIRST, SECOND, num_layers=3)
    assert {key: value.shape for key, value in one.items()} == {key: value.shape for key, value in both.items()}
    assert one["tokens_per_expert"].tolist() == [[0] * 4, [1] * 4, [0] * 4]


def test_dropped_experts_are_not_unused():
    # Experts 0, 2 | 4, 5 of 6 active, one token on expert 0: 2, 4 and 5 are unused, 1 and 3 dropped.
    clusters = ExpertClusters(6, 2)
    metrics = averages(sums_of(record_of([[0.4, 0.2, 0.3, 0.1]], [0], clusters, active=[0, 2, 4, 5])))
    assert metrics["unused"] == 3
    # One token on each expert active: the least loaded has 1/4, though the dropped ones have nothing.
    metrics = averages(sums_of(record_of([[0.25] * 4] * 4, [0, 2, 4, 5], clusters, active=[0, 2, 4, 5])))
    assert metrics["unused"] == 0
    assert metrics["load_min"] == metrics["load_max"] == 25


@quick
@given(st.integers(0, 1000), st.integers(2, 10), st.data())
def test_two_halves_of_a_batch_give_the_metrics_of_the_whole(seed, tokens, data):
    cut = data.draw(st.integers(1, tokens - 1))
    rows = torch.rand(tokens, 4, generator=torch.Generator().manual_seed(seed)) + 0.01
    rows = (rows / rows.sum(dim=-1, keepdim=True)).tolist()
    chosen = [(seed + t * t) % 4 for t in range(tokens)]
    halves = added(
        sums_of(record_of(rows[:cut], chosen[:cut], TWO_PAIRS, overflow=1)),
        sums_of(record_of(rows[cut:], chosen[cut:], TWO_PAIRS, overflow=2)),
    )
    whole = averages(sums_of(record_of(rows, chosen, TWO_PAIRS, overflow=3)))
    for key in ("entropy", "overflow", "load_max", "load_min", "unused"):
        assert averages(halves)[key] == pytest.approx(whole[key], rel=1e-5), key


def test_no_tokens_no_metrics():
    empty = Routing(TWO_PAIRS, torch.arange(4), torch.empty(0, 4), torch.empty(0, dtype=torch.long), torch.empty(0))
    counts_N = torch.zeros(4, dtype=torch.long)
    assert averages(sums_of(RoutingRecord(0, empty, counts_N, torch.tensor(0), torch.ones(4)))) == {}


def test_sums_carry_no_graph():
    scores = torch.randn(3, 4, requires_grad=True)
    routing = Routing(TWO_PAIRS, torch.arange(4), scores, torch.tensor([0, 1, 2]), torch.ones(3))
    record = RoutingRecord(0, routing, torch.tensor([1, 1, 1, 0]), torch.tensor(0), torch.ones(4))
    assert not any(value.requires_grad for value in sums_of(record).values())


def test_all_sums_are_one_tensor():
    statistics = gate_statistics([SECOND])
    sums_LM = model_sums([SECOND], statistics, GateLoss()(statistics), 3)
    empty_LM = no_sums(3, 4, torch.device("cpu"))
    assert sums_LM.shape == empty_LM.shape == (3, 6 + 2 * 4) and sums_LM.dtype == empty_LM.dtype == torch.float32
    assert by_name(empty_LM).keys() == by_name(sums_LM).keys() and averages(by_name(empty_LM)) == {}


def test_a_layer_that_is_passed_twice_counts_twice():
    once, twice = sums_of(SECOND, num_layers=2), sums_of(SECOND, SECOND, num_layers=2)
    assert all(torch.equal(twice[key], 2 * value) for key, value in once.items())


def test_metrics_that_are_computed_first_leave_the_losses_their_gradient():
    (record,) = random_records(TWO_PAIRS, [10])
    statistics = gate_statistics([record])
    model_sums([record], statistics, (torch.zeros(1), torch.zeros(1)), 1)
    _, variance_L = GateLoss()(statistics)
    variance_L.sum().backward()
    assert record.routing.scores_TS.grad.any()


DROPOUT = [{"rate": 0.0}, {"rate": 0.5}, {"rate": 0.4, "scope": "global"}]


@pytest.mark.parametrize("dropout", DROPOUT, ids=str)
def test_nothing_is_read_on_the_host(dropout):
    records = random_records(ExpertClusters(12, 3), [50, 50, 31], device="meta", **dropout)
    with no_synchronisation() as device:
        statistics = gate_statistics(records)
        sums_LM = model_sums(records, statistics, GateLoss()(statistics), 5)
    assert sums_LM.device == device and sums_LM.shape == (5, 6 + 2 * 12)


def kernels_of(tokens: list[int], experts: int, **dropout: object) -> tuple[int, int]:
    """Return how many kernels losses and metrics launch on a device, forward and backward, with these tokens."""
    records = random_records(ExpertClusters(experts, 2), tokens, device="meta", **dropout)
    with Kernels() as forward:
        statistics = gate_statistics(records)
        losses = GateLoss()(statistics)
        total = torch.stack(losses, dim=-1).sum()
        model_sums(records, statistics, losses, len(records))
    with Kernels() as backward:
        total.backward()
    return forward.counts.total(), backward.counts.total()


@pytest.mark.parametrize("experts", [8, 64])
@pytest.mark.parametrize(
    "tokens, forward, backward",
    [
        ([50], 29, 10),
        ([50, 31], 40, 12),  # encoder and decoder
        ([50, 50, 50, 31, 31, 31], 42, 12),
        ([50] * 12 + [31] * 12, 42, 12),
    ],
    ids=["1 layer", "2", "6", "24"],
)
def test_kernels_depend_on_neither_layers_nor_experts(tokens, forward, backward, experts):
    launched_forward, launched_backward = kernels_of(tokens, experts, rate=0.5)
    assert launched_forward <= forward and launched_backward <= backward


def test_kernels_of_other_dropout():
    assert sum(kernels_of([50], 8)) <= 28 + 10
    assert sum(kernels_of([50] * 6, 8, rate=0.4, scope="global")) <= 70 + 33
