import math

import pytest
import torch
from torch.nn import functional as F

from moec_fairseq.moe.clusters import ExpertClusters
from moec_fairseq.moe.experts import Experts
from moec_fairseq.report.resemblance import (
    Sample,
    compare,
    cosine,
    cosine_of_outputs,
    cosine_of_weights,
    resemblances,
)
from tests.moe.stubs import real_layer


def blocks(num_experts, num_clusters, inside, between):
    """Similarities that are the same inside all clusters, and between them."""
    cluster_N = ExpertClusters(num_experts, num_clusters).cluster_of(torch.arange(num_experts))
    cosine_NN = torch.where(cluster_N.unsqueeze(0) == cluster_N.unsqueeze(1), inside, between)
    return cosine_NN.fill_diagonal_(1)


def test_inside_against_between():
    found = compare("weights", blocks(8, 2, 0.6, 0.1), ExpertClusters(8, 2))
    assert (found.inside, found.between) == (pytest.approx(0.6), pytest.approx(0.1))
    # one of the 35 groupings of 8 in two fours is as good: the clusters themselves
    assert found.p_value == pytest.approx(1 / 35, abs=0.02)


def test_clusters_that_are_no_groups():
    # experts 0 and 2, and 1 and 3 are alike, but not those of the clusters 0, 1 and 2, 3
    alike = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 1]] * 2, dtype=torch.float32)
    found = compare("weights", alike, ExpertClusters(4, 2))
    assert (found.inside, found.between) == (0, 0.5) and found.p_value == 1


@pytest.mark.parametrize("clusters, inside, between", [(1, 0.5, math.nan), (4, math.nan, 0.5)])
def test_what_there_is_nothing_of(clusters, inside, between):
    found = compare("weights", blocks(4, 1, 0.5, 0.0), ExpertClusters(4, clusters))
    assert [found.inside, found.between] == pytest.approx([inside, between], nan_ok=True)
    assert math.isnan(found.p_value)


def test_cosine_of_embeddings():
    rows = torch.tensor([[2.0, 0], [0, 3], [-1, 0], [1, 1], [0, 0]])
    root = math.sqrt(0.5)
    expected = [[1, 0, -1, root, 0], [0, 1, 0, root, 0], [-1, 0, 1, -root, 0], [root, root, -root, 1, 0], [0] * 5]
    assert torch.allclose(cosine(rows), torch.tensor(expected))


def set_experts(dim=2):
    """Three experts that add (1, 0), (0, 2) and (−3, 0) to every token: their W2 is 0."""
    experts = Experts(3, dim, 5).eval()
    experts.sublayers[0].b2_ND.data = torch.tensor([[1.0, 0], [0, 2], [-3, 0]])
    return experts


def test_outputs_of_experts_set_by_hand():
    expected = torch.tensor([[1.0, 0, -1], [0, 1, 0], [-1, 0, 1]])
    for tokens in (1, 130):  # more than one chunk
        assert torch.allclose(cosine_of_outputs(set_experts(), torch.randn(tokens, 2), 3), expected, atol=1e-6)
    assert cosine_of_outputs(Experts(3, 2, 5), torch.randn(4, 2), 3).tolist() == [[0] * 3] * 3  # new: they add nothing
    assert cosine_of_outputs(set_experts(), torch.empty(0, 2), 3).tolist() == [[0] * 3] * 3


def test_outputs_are_those_that_the_experts_compute():
    layer = real_layer(dim=4, experts=4).eval()
    tokens_TD = torch.randn(7, 4)
    added = [layer.experts.residual(tokens_TD, torch.full((7,), expert)).detach() for expert in range(4)]
    expected = torch.tensor([[F.cosine_similarity(a, b, dim=-1).mean() for b in added] for a in added])
    assert torch.allclose(cosine_of_outputs(layer.experts, tokens_TD, 4), expected, atol=1e-5)


def test_weights_of_all_blocks_are_one_vector():
    experts = Experts(3, 2, 5, sublayers=2)
    for block in experts.sublayers:
        block.w1_NFD.data[:] = 0
    first, second = (block.w2_NDF.data for block in experts.sublayers)
    first[0, 0, 0], second[0, 0, 0] = 3, 4
    first[1, 0, 0] = 1
    found = cosine_of_weights(experts)
    assert torch.allclose(found[0, :2], torch.tensor([1, 0.6])) and found[2].tolist() == [0, 0, 0]


def test_experts_of_a_cluster_that_are_copies():
    layer = real_layer(experts=4, clusters=2).eval()
    with torch.no_grad():
        for parameter in [*layer.experts.parameters(), layer.router.expert_embeddings_NK]:
            parameter[1], parameter[3] = parameter[0], parameter[2]
    for found in resemblances(layer, torch.randn(20, 4), layer.router.clusters):
        assert found.inside == pytest.approx(1, abs=1e-5) and found.between < 0.99, found.what


def test_a_sample_gives_every_token_the_same_chance():
    times = torch.zeros(60)
    for seed in range(300):
        sample = Sample(10, seed)
        for start, stop in ((0, 3), (3, 30), (30, 60)):
            sample.add(torch.arange(start, stop).unsqueeze(1))
            assert len(sample.tokens_TD) == min(10, stop)
        times[sample.tokens_TD.flatten()] += 1
    # 50 times each; one standard deviation is 6.5
    assert times.sum() == 3000 and times.min() > 20 and times.max() < 80


def test_a_small_text_is_its_own_sample():
    sample = Sample(10)
    sample.add(torch.tensor([[1.0], [2.0]]))
    sample.add(torch.tensor([[3.0]]))
    assert sorted(sample.tokens_TD.flatten().tolist()) == [1, 2, 3]
