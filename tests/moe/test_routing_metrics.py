import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moec_fairseq.moe.clusters import ExpertClusters
from moec_fairseq.moe.losses import GateLoss, gate_statistics
from moec_fairseq.moe.router import Routing
from moec_fairseq.moe.routing_metrics import averages, gate_entropy, layer_sums, model_sums
from moec_fairseq.moe.routing_records import RoutingRecord

from .stubs import quick, record_of

TWO_PAIRS = ExpertClusters(4, 2)


def sums_of(*records: RoutingRecord, num_layers: int = 1) -> dict[str, torch.Tensor]:
    """Return what one pass adds to the log."""
    layers = []
    num_experts = records[0].routing.clusters.num_experts
    for record in records:
        statistics = gate_statistics(record)
        balance, variance = GateLoss("intra")(statistics)
        layers.append((record.layer_index, layer_sums(record, statistics, balance, variance)))
    return model_sums(layers, num_layers, num_experts, torch.device("cpu"))


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
    assert gate_entropy(torch.tensor([probabilities])).tolist() == pytest.approx([bits])


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
    assert averages(sums_of(RoutingRecord(0, empty, torch.zeros(4, dtype=torch.long), torch.tensor(0)))) == {}


def test_sums_carry_no_graph():
    scores = torch.randn(3, 4, requires_grad=True)
    routing = Routing(TWO_PAIRS, torch.arange(4), scores, torch.tensor([0, 1, 2]), torch.ones(3))
    record = RoutingRecord(0, routing, torch.tensor([1, 1, 1, 0]), torch.tensor(0))
    assert not any(value.requires_grad for value in sums_of(record).values())
