import pytest
import torch

from moec_fairseq.moe.clusters import ExpertClusters


def test_cluster_c_holds_consecutive_experts():
    clusters = ExpertClusters(num_experts=6, num_clusters=2)
    assert clusters.cluster_size == 3
    assert clusters.cluster_of(torch.arange(6)).tolist() == [0, 0, 0, 1, 1, 1]


def test_cluster_of_keeps_shape():
    assert ExpertClusters(6, 3).cluster_of(torch.tensor([[0, 5], [2, 3]])).tolist() == [[0, 2], [1, 1]]


@pytest.mark.parametrize("num_clusters", [1, 2, 4, 8])
def test_all_divisors_are_allowed(num_clusters):
    clusters = ExpertClusters(8, num_clusters)
    sizes = torch.bincount(clusters.cluster_of(torch.arange(8)))
    assert sizes.tolist() == [8 // num_clusters] * num_clusters


@pytest.mark.parametrize("num_clusters", [5, 0, -2, 13, 24])
def test_sizes_that_do_not_divide_are_rejected_with_the_choices(num_clusters):
    with pytest.raises(ValueError) as error:
        ExpertClusters(12, num_clusters)
    message = str(error.value)
    assert "12 experts (--moe-expert-count)" in message
    assert f"{num_clusters} clusters (--moec-cluster-count)" in message
    assert "choose one of 1, 2, 3, 4, 6, 12 clusters" in message


@pytest.mark.parametrize("num_experts", [0, -3])
def test_a_layer_without_experts_is_rejected(num_experts):
    with pytest.raises(ValueError, match=f"--moe-expert-count is {num_experts}; give 1 or more"):
        ExpertClusters(num_experts, 1)
