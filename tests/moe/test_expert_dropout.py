from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moec_fairseq.moe.clusters import ExpertClusters
from moec_fairseq.moe.expert_dropout import ExpertDropout

from .stubs import quick

cluster_sizes = st.builds(
    lambda count, size: ExpertClusters(count * size, count), st.integers(1, 6), st.integers(1, 12)
)
# Rates as people write them, with two decimals
rates = st.integers(1, 99).map(lambda hundredths: hundredths / 100)


def active_by_definition(rate: float, size: int) -> int:
    """max(1, floor((1 − γ)·L)) in exact arithmetic."""
    return max(1, (1 - Fraction(str(rate))) * size // 1)


def per_cluster(clusters: ExpertClusters, active: tuple[int, ...]) -> list[int]:
    return torch.bincount(clusters.cluster_of(torch.tensor(active)), minlength=clusters.num_clusters).tolist()


@quick
@given(cluster_sizes, rates, st.integers(0, 9), st.integers(0, 5000))
def test_each_cluster_keeps_its_share(clusters, rate, layer, update):
    active = ExpertDropout(rate).active_ids(clusters, layer, update)
    keep = active_by_definition(rate, clusters.cluster_size)
    assert per_cluster(clusters, active) == [keep] * clusters.num_clusters
    assert list(active) == sorted(set(active))
    assert ExpertDropout(rate).fewest_active_in_a_cluster(clusters) == keep


@pytest.mark.parametrize(
    "rate, size, keep",
    # (1 − 0.8)·10 is 1.9999999999999996 in floating point, yet 2 of 10 experts stay active at a rate of 0.8
    [(0.5, 8, 4), (0.5, 3, 1), (0.5, 1, 1), (0.99, 4, 1), (0.25, 8, 6), (0.8, 10, 2), (0.9, 20, 2), (0.7, 10, 3)],
)
def test_number_of_active(rate, size, keep):
    clusters = ExpertClusters(3 * size, 3)
    assert per_cluster(clusters, ExpertDropout(rate).active_ids(clusters, 0, 0)) == [keep] * 3


@quick
@given(cluster_sizes, rates, st.integers(0, 5000))
def test_global_scope_keeps_a_share_of_all_experts(clusters, rate, update):
    dropout = ExpertDropout(rate, scope="global")
    active = dropout.active_ids(clusters, 0, update)
    assert len(set(active)) == len(active) == active_by_definition(rate, clusters.num_experts)
    assert list(active) == sorted(active) and 0 <= active[0] and active[-1] < clusters.num_experts
    assert dropout.fewest_active_in_a_cluster(clusters) <= min(per_cluster(clusters, active))


def test_global_scope_may_empty_a_cluster():
    clusters, dropout = ExpertClusters(4, 2), ExpertDropout(0.5, interval=1, scope="global")
    counts = {tuple(per_cluster(clusters, dropout.active_ids(clusters, 0, update))) for update in range(100)}
    assert counts == {(0, 2), (1, 1), (2, 0)}
    assert dropout.fewest_active_in_a_cluster(clusters) == 0


@pytest.mark.parametrize("rate, fewest", [(0.0, 4), (0.125, 3), (0.25, 2), (0.5, 0)])
def test_fewest_active_under_global_dropout(rate, fewest):
    # Of 8 experts 0, 1, 2, 4 are dropped; at worst all of them from the same cluster of 4.
    assert ExpertDropout(rate, scope="global").fewest_active_in_a_cluster(ExpertClusters(8, 2)) == fewest


@quick
@given(st.integers(0, 2**32 - 1), st.integers(0, 9), st.integers(0, 10_000), st.integers(1, 500))
def test_draw_holds_for_an_interval_of_updates(seed, layer, update, interval):
    clusters, dropout = ExpertClusters(12, 3), ExpertDropout(0.5, interval, seed=seed)
    start = update // interval * interval
    draws = {dropout.active_ids(clusters, layer, u) for u in (start, update, start + interval - 1)}
    assert len(draws) == 1


@quick
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2000)), max_size=8))
def test_draw_does_not_depend_on_calls_before(earlier_calls):
    clusters, dropout = ExpertClusters(8, 2), ExpertDropout(0.5, 250)
    expected = ExpertDropout(0.5, 250).active_ids(clusters, 1, 500)
    torch.rand(len(earlier_calls))
    for layer, update in earlier_calls:
        dropout.active_ids(clusters, layer, update)
    assert dropout.active_ids(clusters, 1, 500) == expected


def test_pinned_draws():
    """A change of the random stream would give a resumed run other experts."""
    clusters = ExpertClusters(8, 2)
    assert ExpertDropout(0.5, 250, seed=1).active_ids(clusters, 0, 0) == (2, 3, 4, 7)
    assert ExpertDropout(0.5, 250, seed=1).active_ids(clusters, 1, 250) == (2, 3, 5, 7)
    assert ExpertDropout(0.5, 250, "global", seed=7).active_ids(clusters, 2, 1000) == (1, 2, 6, 7)


@pytest.mark.parametrize("changed", ["seed", "layer", "update"])
def test_seed_layer_and_update_all_change_the_draw(changed):
    clusters = ExpertClusters(64, 8)
    draws = set()
    for value in range(5):
        seed, layer, update = (value if changed == name else 0 for name in ("seed", "layer", "update"))
        draws.add(ExpertDropout(0.5, 1, seed=seed).active_ids(clusters, layer, update))
    assert len(draws) == 5


def test_every_expert_is_active_in_about_half_of_the_draws():
    clusters, dropout = ExpertClusters(8, 2), ExpertDropout(0.5, interval=1)
    times_active = torch.zeros(8)
    for update in range(1000):
        times_active[list(dropout.active_ids(clusters, 0, update))] += 1
    # 1000 draws of probability 1/2: standard deviation 16
    assert times_active.min() > 420 and times_active.max() < 580


@pytest.mark.parametrize("scope", ["cluster", "global"])
def test_rate_0_keeps_all(scope):
    assert ExpertDropout(0.0, scope=scope).active_ids(ExpertClusters(4, 2), 0, 0) == (0, 1, 2, 3)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rate": 1.0}, r"--moec-expert-dropout is 1\.0.*\[0, 1\).*0 switches"),
        ({"rate": -0.1}, r"--moec-expert-dropout is -0\.1.*\[0, 1\)"),
        ({"rate": float("nan")}, r"--moec-expert-dropout is nan.*\[0, 1\)"),
        ({"interval": 0}, "--moec-expert-dropout-interval is 0.*every 1 or more"),
        ({"scope": "rank"}, "--moec-expert-dropout-scope is 'rank'; choose one of cluster, global"),
    ],
)
def test_values_outside_their_range_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        ExpertDropout(**options)
