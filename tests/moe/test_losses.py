import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moec_fairseq.moe.clusters import ExpertClusters
from moec_fairseq.moe.losses import (
    GROUPS,
    VARIANCES,
    ClusterMoments,
    GateLoss,
    GateStatistics,
    balance_loss,
    gate_statistics,
    over_ranks,
    share_of_rank,
)
from moec_fairseq.moe.losses import gap_between_best_clusters as gap
from moec_fairseq.moe.router import Routing
from moec_fairseq.moe.routing_records import RoutingRecord

from .kernels import no_synchronisation
from .stubs import quick, random_records, record_of

TWO_PAIRS = ExpertClusters(4, 2)

# Two tokens: P = (0.9, 0.5 | 0.4, 0.2). Both choose expert 0.
#   cluster means 0.7 and 0.3; variances (0.2² + 0.2²)/1 = 0.08 and (0.1² + 0.1²)/1 = 0.02
PLAIN = record_of([[0.4, 0.3, 0.2, 0.1], [0.5, 0.2, 0.2, 0.1]], [0, 0], TWO_PAIRS)
# The same numbers in other places: P = (0.9, 0.2 | 0.5, 0.4)
#   cluster means 0.55 and 0.45; variances 2·0.35² = 0.245 and 2·0.05² = 0.005
MIXED = record_of([[0.4, 0.1, 0.3, 0.2], [0.5, 0.1, 0.2, 0.2]], [0, 0], TWO_PAIRS)
# One token, 2 clusters of 3, cluster dropout: experts 0, 2 | 4, 5 active, P = (0.4, 0.2 | 0.3, 0.1)
#   cluster means 0.3 and 0.2; variances 2·0.1² = 0.02 in both
ACTIVE = record_of([[0.4, 0.2, 0.3, 0.1]], [0], ExpertClusters(6, 2), active=[0, 2, 4, 5])
ACTIVE_EQUALLY = replace(ACTIVE, equal_clusters=True)
# One token, global dropout: experts 1 | 3, 4, 5 active, P = (0.4 | 0.3, 0.2, 0.1)
#   cluster means 0.4 and 0.2; no variance in the first, (0.1² + 0² + 0.1²)/2 = 0.01 in the second
UNEQUAL = record_of([[0.4, 0.3, 0.2, 0.1]], [1], ExpertClusters(6, 2), active=[1, 3, 4, 5])


@pytest.mark.parametrize(
    "form, record, expected",
    [
        ("none", PLAIN, 0.0),
        # mean 0.5: (0.4² + 0² + 0.1² + 0.3²)/3 = 0.26/3, wherever the numbers stand
        ("global", PLAIN, 0.26 / 3),
        ("global", MIXED, 0.26 / 3),
        # mean 0.25: (0.15² + 0.05² + 0.05² + 0.15²)/3 = 0.05/3
        ("global", ACTIVE, 0.05 / 3),
        ("global", ACTIVE_EQUALLY, 0.05 / 3),
        ("global", UNEQUAL, 0.05 / 3),
        ("intra", PLAIN, 0.05),  # (0.08 + 0.02)/2
        ("intra", MIXED, 0.125),  # (0.245 + 0.005)/2
        ("intra", ACTIVE, 0.02),
        ("intra", ACTIVE_EQUALLY, 0.02),
        ("intra", UNEQUAL, 0.01),  # the only cluster with two experts active
        ("intra_inter", PLAIN, 0.05 * math.exp(-0.2)),  # ρ = 0.7/2, 0.3/2
        ("intra_inter", MIXED, 0.125 * math.exp(-0.05)),  # ρ = 0.55/2, 0.45/2
        ("intra_inter", ACTIVE, 0.02 * math.exp(-0.1)),  # ρ = 0.3, 0.2
        ("intra_inter", ACTIVE_EQUALLY, 0.02 * math.exp(-0.1)),
        ("intra_inter", UNEQUAL, 0.01 * math.exp(-0.2)),  # ρ = 0.4, 0.2
        ("intra_inter_sorted", PLAIN, 0.05 * math.exp(-0.2)),  # sorted already
        ("intra_inter_sorted", MIXED, 0.05 * math.exp(-0.2)),  # 0.9, 0.5 | 0.4, 0.2 after sorting
        # 0.4, 0.3 | 0.2, 0.1: variances 2·0.05² = 0.005, ρ = 0.35, 0.15
        ("intra_inter_sorted", ACTIVE, 0.005 * math.exp(-0.2)),
        ("intra_inter_sorted", UNEQUAL, 0.005 * math.exp(-0.2)),
        ("intra_cv", PLAIN, 2 * (0.08 / 0.49 + 0.02 / 0.09) / 2),
        ("intra_cv", MIXED, 2 * (0.245 / 0.3025 + 0.005 / 0.2025) / 2),
        ("intra_cv", ACTIVE, (0.02 / 0.09 + 0.02 / 0.04) / 2),
        ("intra_cv", ACTIVE_EQUALLY, (0.02 / 0.09 + 0.02 / 0.04) / 2),
        ("intra_cv", UNEQUAL, 0.01 / 0.04),
    ],
)
def test_variance_by_hand(form, record, expected):
    value = VARIANCES[form](gate_statistics([record]))
    assert value.shape == (1,)
    assert value.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "record, expected",
    [
        # N · Σ P f, f = share + 1e-6
        (PLAIN, 4 * (0.9 * 1 + 2e-6)),
        (ACTIVE, 4 * (0.4 * 1 + 1e-6)),  # 4 experts active, not 6
        (UNEQUAL, 4 * (0.4 * 1 + 1e-6)),
        # one token each on experts 1 and 2: 4 · (0.5·1/2 + 0.4·1/2)
        (record_of([[0.4, 0.3, 0.2, 0.1], [0.5, 0.2, 0.2, 0.1]], [1, 2], TWO_PAIRS), 4 * (0.45 + 2e-6)),
    ],
)
def test_balance_by_hand(record, expected):
    assert balance_loss(gate_statistics([record])).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("num_experts", [1, 4, 8])
def test_uniform_routing_has_balance_T_and_no_variance(num_experts):
    tokens = 8
    record = record_of(
        [[1 / num_experts] * num_experts] * tokens,
        [t % num_experts for t in range(tokens)],
        ExpertClusters(num_experts, max(1, num_experts // 4)),
    )
    statistics = gate_statistics([record])
    assert balance_loss(statistics).item() == pytest.approx(tokens, rel=1e-4)
    for form, variance in VARIANCES.items():
        assert variance(statistics).item() == pytest.approx(0, abs=1e-12), form


def test_gate_statistics_by_hand():
    statistics = gate_statistics([UNEQUAL])
    assert statistics.num_tokens_L.tolist() == [1] and statistics.num_experts == 4
    assert statistics.importance_LS[0].tolist() == pytest.approx([0.4, 0.3, 0.2, 0.1])
    assert statistics.load_LS[0].tolist() == pytest.approx([1 + 1e-6, 1e-6, 1e-6, 1e-6])
    in_clusters = statistics.in_clusters
    assert in_clusters.size_LC[0].tolist() == [1, 3]
    assert in_clusters.mean_LC[0].tolist() == pytest.approx([0.4, 0.2])
    assert in_clusters.variance_LC[0].tolist() == pytest.approx([0, 0.01])
    assert gap(in_clusters).item() == pytest.approx(0.2)


def test_the_softmax_temperature_is_fixed():
    # scores 0.07 and 0: p = sigmoid(±1)
    routing = Routing(
        ExpertClusters(2, 1), torch.arange(2), torch.tensor([[0.07, 0.0]]), torch.tensor([0]), torch.ones(1)
    )
    record = RoutingRecord(0, routing, torch.tensor([1, 0]), torch.tensor(0), torch.ones(2))
    assert gate_statistics([record]).probabilities_LTS[0][0, 0].tolist() == pytest.approx([0.73105858, 0.26894142])


def of_means(*means: float, sizes: tuple[float, ...] | int = 2) -> ClusterMoments:
    mean_LC = torch.tensor([means])
    return ClusterMoments(
        sizes if isinstance(sizes, int) else torch.tensor([sizes]), mean_LC, torch.zeros_like(mean_LC)
    )


def test_clusters_without_experts_in_play_have_no_part_in_the_gap():
    assert gap(of_means(0.7, 0.0, 0.0, sizes=(2.0, 0.0, 0.0))) == 0
    assert gap(of_means(0.7, 0.0, 0.2, sizes=(2.0, 0.0, 1.0))).item() == pytest.approx(0.5)


def test_one_cluster_has_no_gap():
    assert gap(of_means(0.7)) == 0


def test_gap_takes_the_two_largest():
    assert gap(of_means(1.0, 5.0, 2.0, 4.0)).item() == pytest.approx(1.0)
    assert gap(of_means(1.0, 5.0, 2.0, 4.0, sizes=(2.0, 2.0, 3.0, 1.0))).item() == pytest.approx(1.0)


@pytest.mark.parametrize(
    "form, beta, variance",
    [
        ("intra", 0.5, 4 * 0.5 * 0.05),
        ("intra", 0.0, 0.0),
        ("global", 1.0, 4 * 0.26 / 3),
        ("none", 1.0, 0.0),
    ],
)
def test_gate_loss_by_hand(form, beta, variance):
    balance, weighted = GateLoss(form, beta)(gate_statistics([PLAIN]))
    assert balance.item() == pytest.approx(4 * (0.9 + 2e-6))
    assert weighted.item() == pytest.approx(variance)


def test_gate_loss_counts_the_experts_in_play():
    assert GateLoss("intra", 1.0)(gate_statistics([UNEQUAL]))[1].item() == pytest.approx(4 * 0.01)


def random_record(seed: int, tokens: int, repeat: int = 1, clusters: ExpertClusters = TWO_PAIRS) -> RoutingRecord:
    source = torch.Generator().manual_seed(seed)
    rows = torch.rand(tokens, clusters.num_experts, generator=source, dtype=torch.float64) + 0.01
    rows = rows / rows.sum(dim=-1, keepdim=True)
    return record_of(rows.tolist() * repeat, rows.argmax(dim=-1).tolist() * repeat, clusters)


@quick
@given(st.integers(0, 1000), st.integers(1, 6), st.integers(2, 5))
def test_growth_with_the_batch(seed, tokens, repeat):
    once, repeated = (gate_statistics([random_record(seed, tokens, times)]) for times in (1, repeat))

    def growth(loss):
        return (loss(repeated) / loss(once)).item()

    assert growth(balance_loss) == pytest.approx(repeat)
    assert growth(VARIANCES["intra_cv"]) == pytest.approx(repeat)
    for form in ("global", "intra", "intra_inter", "intra_inter_sorted"):
        assert growth(VARIANCES[form]) == pytest.approx(repeat**2), form


@quick
@given(st.integers(0, 1000), st.integers(1, 6))
def test_sorted_form_equals_clusters_that_follow_the_order(seed, tokens):
    record = random_record(seed, tokens, clusters=ExpertClusters(6, 3))
    order = gate_statistics([record]).importance_LS[0].argsort(descending=True)
    rows = gate_statistics([record]).probabilities_LTS[0][0, :, order].tolist()
    in_order = gate_statistics([record_of(rows, [0] * tokens, ExpertClusters(6, 3))])
    expected = VARIANCES["intra_inter"](in_order).item()
    assert VARIANCES["intra_inter_sorted"](in_order).item() == pytest.approx(expected)
    assert VARIANCES["intra_inter_sorted"](gate_statistics([record])).item() == pytest.approx(expected)


def with_scores(scores_TS: torch.Tensor, clusters: ExpertClusters = TWO_PAIRS) -> RoutingRecord:
    expert_T = scores_TS.argmax(dim=-1)
    routing = Routing(clusters, torch.arange(clusters.num_experts), scores_TS, expert_T, torch.ones(len(scores_TS)))
    counts_N = torch.bincount(expert_T, minlength=clusters.num_experts)
    return RoutingRecord(0, routing, counts_N, torch.tensor(0), torch.ones(clusters.num_experts))


@pytest.mark.parametrize("form", sorted(set(VARIANCES) - {"none"}))
def test_gradcheck(form):
    scores_TS = 0.1 * torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gate_loss = GateLoss(form, 0.5)
    assert torch.autograd.gradcheck(
        lambda scores: sum(gate_loss(gate_statistics([with_scores(scores)]))), scores_TS.requires_grad_()
    )


def test_no_gradient_through_the_load():
    scores_TS = torch.randn(5, 4, requires_grad=True)
    statistics = gate_statistics([with_scores(scores_TS)])
    assert not statistics.load_LS.requires_grad
    # d L_bal / d P_i = N · f_i
    (gradient_LS,) = torch.autograd.grad(balance_loss(statistics), statistics.importance_LS, retain_graph=True)
    torch.testing.assert_close(gradient_LS, 4 * statistics.load_LS)
    balance_loss(statistics).backward()
    assert scores_TS.grad.any()


@pytest.mark.parametrize("form", VARIANCES)
def test_no_tokens(form):
    scores_TS = torch.empty(0, 4, requires_grad=True)
    total = sum(GateLoss(form)(gate_statistics([with_scores(scores_TS)])))
    assert total.item() == 0
    total.backward()


@pytest.mark.parametrize("form", VARIANCES)
@pytest.mark.parametrize("low", [-6.0, -1e3], ids=["tiny", "underflow"])
def test_a_cluster_that_nobody_wants_gives_finite_gradients(form, low):
    """Dot products are unbounded, so the softmax of a cluster can vanish."""
    for spread in (0.0, 0.01):
        scores_TS = torch.tensor([[0.0, 0.1, low, low + spread]] * 64, requires_grad=True)
        total = sum(GateLoss(form)(gate_statistics([with_scores(scores_TS)])))
        total.backward()
        assert total.isfinite() and scores_TS.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", VARIANCES)
def test_losses_are_at_least_float32(form, dtype):
    # 4096 tokens that all want expert 0: P ≈ (4096, 0, 0, 0), whose variance is far above float16's 65504
    scores_TS = torch.tensor([[1.0, -1.0, -1.0, -1.0]], dtype=dtype).repeat(4096, 1)
    balance, variance = GateLoss(form)(gate_statistics([with_scores(scores_TS)]))
    assert balance.dtype == variance.dtype == torch.float32
    assert balance.isfinite() and variance.isfinite()


def test_unknown_form_is_rejected_with_the_choices():
    with pytest.raises(ValueError) as error:
        GateLoss("inter")
    assert str(error.value) == (
        "--moec-variance is 'inter'; choose one of none, global, intra, intra_inter, intra_inter_sorted, intra_cv."
    )


def test_negative_weight_is_rejected():
    with pytest.raises(ValueError, match=r"--moec-variance-wt is -0\.5, .*; give 0 or more"):
        GateLoss("intra", -0.5)


@pytest.mark.parametrize("form", ["intra", "intra_inter", "intra_inter_sorted", "intra_cv"])
def test_intra_forms_need_two_experts_in_a_cluster(form):
    GateLoss(form).check_cluster(2)
    with pytest.raises(ValueError) as error:
        GateLoss(form).check_cluster(1)
    message = str(error.value)
    assert f"--moec-variance {form} compares the experts of a cluster" in message
    assert "only 1 of them active" in message
    assert "fewer clusters (--moec-cluster-count)" in message and "a lower --moec-expert-dropout" in message


@pytest.mark.parametrize("form", ["none", "global"])
def test_other_forms_allow_one_expert_in_a_cluster(form):
    GateLoss(form).check_cluster(1)


def of_random_groups(form: str, record: RoutingRecord, update: int, layer: int = 0, seed: int = 1) -> float:
    record = replace(record, num_updates=update, layer_index=layer)
    return VARIANCES[form](GROUPS["random"](gate_statistics([record]), [record], seed)).item()


@pytest.mark.parametrize("record, values", [
    # P = 0.9, 0.5, 0.4, 0.2 in pairs: 0.9 with 0.5 (the clusters), with 0.4 (0.125 and 0.045) or with 0.2
    (PLAIN, {0.05, 0.085, 0.125}),
    # one with three: 0.4 alone (0.01), 0.3 alone (0.4, 0.2, 0.1: 0.14/6), 0.2 alone (0.14/6) or 0.1 alone (0.01)
    (UNEQUAL, {0.01, 0.14 / 6}),
])  # fmt: skip
def test_random_groups_are_as_large_as_clusters_and_redrawn_each_update(record, values):
    found = [of_random_groups("intra", record, update) for update in range(300)]
    times = {value: sum(abs(value - other) < 1e-12 for other in found) for value in values}
    assert sum(times.values()) == 300 and min(times.values()) > 60  # 100 or 150 of each; standard deviation 8 or 9
    assert found == [of_random_groups("intra", record, update) for update in range(300)]


@pytest.mark.parametrize("changed", ["seed", "layer", "update"])
def test_seed_layer_and_update_change_the_groups(changed):
    given = {"seed": 1, "layer": 2, "update": 3}
    record = random_record(0, 5, clusters=ExpertClusters(12, 3))
    assert len({of_random_groups("intra", record, **given | {changed: value}) for value in range(20)}) > 15


def test_pinned_groups():
    """A change of the random stream would give a resumed run other groups; those of expert dropout are others."""
    clusters = ExpertClusters(8, 2)
    records = [
        replace(record, num_updates=7, layer_index=layer)
        for layer, record in enumerate(random_records(clusters, [6, 6, 6]))
    ]
    statistics = gate_statistics(records)
    grouped = GROUPS["random"](statistics, records, 1)
    order_LS = (grouped.importance_LS.unsqueeze(-1) == statistics.importance_LS.unsqueeze(-2)).int().argmax(dim=-1)
    assert order_LS.tolist() == [[4, 0, 1, 2, 6, 5, 3, 7], [4, 3, 1, 0, 2, 5, 7, 6], [3, 1, 2, 4, 0, 5, 6, 7]]
    assert order_LS[0].tolist() != np.random.RandomState([1, 0, 7]).permutation(8).tolist()
    for before, after in ((statistics.load_LS, grouped.load_LS), (statistics.importance_LS, grouped.importance_LS)):
        assert torch.equal(before.gather(-1, order_LS), after)
    assert GROUPS["clusters"](statistics, records, 1) is statistics


@pytest.mark.parametrize("form", ["intra", "intra_inter", "intra_cv"])
@pytest.mark.parametrize("dropout", [{"rate": 0.5}, {"rate": 0.4, "scope": "global"}], ids=str)
def test_gradients_of_random_groups(form, dropout):
    records = random_records(ExpertClusters(12, 3), [9, 9, 4], dtype=torch.float64, **dropout)

    def losses(*_):
        statistics = gate_statistics(records)
        return GateLoss(form, 0.5, "random")(GROUPS["random"](statistics, records, 1))

    assert torch.autograd.gradcheck(losses, [record.routing.scores_TS for record in records])
    torch.testing.assert_close(losses()[0], balance_loss(gate_statistics(records)))


@pytest.mark.parametrize("form", ["none", "global", "intra_inter_sorted"])
def test_forms_without_clusters_have_no_random_groups(form):
    with pytest.raises(
        ValueError, match=f"with --moec-variance {form}, which .* --moec-variance intra or intra_inter or intra_cv"
    ):
        GateLoss(form, groups="random")
    with pytest.raises(ValueError, match="--moec-variance-groups is 'rank'; choose one of clusters, random"):
        GateLoss(form, groups="rank")


LAYERS = [
    pytest.param({"rate": 0.0}, id="no dropout"),
    pytest.param({"rate": 0.5}, id="cluster dropout"),
    pytest.param({"rate": 0.4, "scope": "global"}, id="global dropout"),
]


def losses_and_gradients(records: list[RoutingRecord], together: bool, form: str) -> tuple[torch.Tensor, ...]:
    groups = [records] if together else [[record] for record in records]
    losses = [torch.stack(GateLoss(form, 0.5)(gate_statistics(group))) for group in groups]
    values_2L = torch.cat(losses, dim=-1)
    return values_2L, *torch.autograd.grad(values_2L.sum(), [record.routing.scores_TS for record in records])


@pytest.mark.parametrize("form", VARIANCES)
@pytest.mark.parametrize("dropout", LAYERS)
def test_layers_together_are_the_layers_one_by_one(dropout, form):
    # an encoder of three layers, a layer without tokens, a decoder of two
    records = random_records(ExpertClusters(12, 3), [50, 50, 50, 0, 31, 31], **dropout)
    together, alone = (losses_and_gradients(records, choice, form) for choice in (True, False))
    for ours, reference in zip(together, alone, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-6, atol=0)


@pytest.mark.parametrize("form", VARIANCES)
@pytest.mark.parametrize("clusters", [ExpertClusters(8, 2), ExpertClusters(64, 8), ExpertClusters(6, 6)], ids=str)
def test_clusters_of_equal_size_are_a_case_of_any(clusters, form):
    """To the last bit: both add up in the same order."""
    records = random_records(clusters, [30, 30, 11], rate=0.5)
    equal, any_size = (
        losses_and_gradients([replace(record, equal_clusters=equal) for record in records], True, form)
        for equal in (True, False)
    )
    assert all(record.equal_clusters for record in records)
    assert all(torch.equal(ours, reference) for ours, reference in zip(equal, any_size, strict=True))


def test_layers_of_two_kinds_are_not_computed_together():
    with pytest.raises(ValueError, match=r"same clusters and number of active experts, but got .* for each kind"):
        gate_statistics([PLAIN, ACTIVE])
    with pytest.raises(ValueError, match="same clusters and number of active experts"):
        gate_statistics([ACTIVE, record_of([[0.4, 0.6]], [0], ExpertClusters(6, 2), active=[0, 4])])


def test_a_form_that_mixes_layers_is_rejected(monkeypatch):
    monkeypatch.setitem(VARIANCES, "mixed", lambda statistics: statistics.in_clusters.variance_LC.amax())
    with pytest.raises(ValueError, match=r"mixed returned a tensor of shape \(\) for 2 layers; .* \(dim=-1\)"):
        GateLoss("mixed")(gate_statistics([PLAIN, MIXED]))


def of_ranks(ranks: list[list[RoutingRecord] | None], layers: list[RoutingRecord]) -> list[GateStatistics]:
    """Return the statistics that each rank has of all; None: a dummy batch, of ``layers``."""
    messages: list[torch.Tensor] = []
    results = []
    for total in (lambda own: messages.append(own) or own, lambda own: sum(messages)):
        results = [over_ranks(gate_statistics(r or layers), total, is_dummy=r is None) for r in ranks]
    return results


@pytest.mark.parametrize("form", VARIANCES)
def test_ranks_together_have_the_losses_of_the_whole_batch(form):
    whole = random_records(TWO_PAIRS, [40, 25], dtype=torch.float64)
    scores = [record.routing.scores_TS.detach() for record in whole]
    parts = [
        [with_scores(scores_TS[tokens].clone().requires_grad_()) for scores_TS in scores]
        for tokens in (slice(0, 7), slice(7, None))
    ]
    values, *gradients = losses_and_gradients(whole, True, form)
    shares = []
    for statistics in of_ranks([parts[0], None, parts[1]], whole)[::2]:
        assert statistics.world_size == 2  # the dummy batch is nobody's
        own = share_of_rank(torch.stack(GateLoss(form, 0.5)(statistics)), statistics.world_size)
        own.sum().backward()
        shares.append(own.detach())
    torch.testing.assert_close(sum(shares), values.detach())
    for layer, gradient in enumerate(gradients):
        ours = torch.cat([records[layer].routing.scores_TS.grad for records in parts])
        torch.testing.assert_close(ours, gradient)


@pytest.mark.parametrize("form", VARIANCES)
@pytest.mark.parametrize("dropout", LAYERS)
def test_nothing_is_read_on_the_host(dropout, form):
    records = random_records(ExpertClusters(12, 3), [50, 50, 0, 31], device="meta", **dropout)
    with no_synchronisation() as device:
        statistics = GROUPS["random"](over_ranks(gate_statistics(records), torch.Tensor.clone), records, 1)
        loss = share_of_rank(torch.stack(GateLoss(form)(statistics)).sum(), statistics.world_size)
        loss.backward()
    assert loss.device == device and all(record.routing.scores_TS.grad is not None for record in records)
