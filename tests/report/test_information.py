import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moec_fairseq.report.information import by_cluster, entropy, information, mutual_information, shuffled
from tests.moe.stubs import quick


def table(rows):
    return np.array(rows, dtype=np.int64)


@pytest.mark.parametrize("rows, bits", [
    ([[5, 0], [0, 5]], 1.0),  # the expert tells the class
    ([[2, 2, 0, 0], [0, 0, 2, 2]], 1.0),  # half of the two bits of four classes
    ([[3, 6], [1, 2]], 0.0),  # independent
    ([[4, 6]], 0.0),  # one expert
    ([[7], [3]], 0.0),  # one class
    ([[0, 0], [0, 0]], 0.0),  # no tokens
    # p(x, y) = 3/8 on the diagonal, 1/8 beside it: 1 + 1 − H(3/8, 1/8, 1/8, 3/8)
    ([[3, 1], [1, 3]], 2 + 2 * (3 / 8 * math.log2(3 / 8) + 1 / 8 * math.log2(1 / 8))),
])  # fmt: skip
def test_mutual_information_by_hand(rows, bits):
    assert mutual_information(table(rows)) == pytest.approx(bits, abs=1e-12)


@pytest.mark.parametrize("counts, bits", [([1, 1, 1, 1], 2), ([2, 1, 1], 1.5), ([7, 0], 0), ([0, 0], 0)])
def test_entropy(counts, bits):
    assert entropy(np.array(counts)) == bits


@quick
@given(st.lists(st.lists(st.integers(0, 20), min_size=3, max_size=3), min_size=1, max_size=4), st.integers(0, 9))
def test_a_shuffle_keeps_experts_and_classes(rows, seed):
    counts, other = table(rows), shuffled(table(rows), np.random.default_rng(seed))
    assert (other >= 0).all() and other.dtype == counts.dtype
    assert (other.sum(axis=0) == counts.sum(axis=0)).all() and (other.sum(axis=1) == counts.sum(axis=1)).all()


def test_shuffled_tables_come_as_often_as_shuffles_make_them():
    # 4 tokens, two on each expert, two of each class: expert 0 gets 2, 1 or 0 of class 0 in 1, 4 and 1 of 6 shuffles
    draw = np.random.default_rng(1)
    drawn = Counter(int(shuffled(table([[2, 0], [0, 2]]), draw)[0, 0]) for _ in range(3000))
    assert [drawn[number] / 3000 for number in range(3)] == pytest.approx([1 / 6, 4 / 6, 1 / 6], abs=0.03)


def test_experts_that_are_told_by_a_class_and_those_that_are_not():
    # 4 experts in 2 clusters: the class tells the cluster, and nothing more
    of_expert, of_cluster = information(table([[50, 0], [50, 0], [0, 50], [0, 50]]), num_clusters=2)
    assert (of_expert.of, of_cluster.of) == ("expert", "cluster")
    assert [of_expert.bits, of_cluster.bits, of_cluster.of_class] == pytest.approx([1] * 3)
    assert 0 < of_expert.shuffled <= of_expert.highest < 0.1 and of_cluster.shuffled < of_expert.shuffled
    assert of_cluster.share == pytest.approx(1 - of_cluster.shuffled)
    # classes inside a cluster say nothing of clusters
    of_expert, of_cluster = information(table([[50, 0], [0, 50]] * 2), num_clusters=2)
    assert of_expert.bits == pytest.approx(1) and of_cluster.bits == pytest.approx(0, abs=1e-12)
    assert of_cluster.share == 0


def test_without_specialisation_nothing_is_known_beyond_chance():
    draw = np.random.default_rng(3)
    (found,) = information(draw.multinomial(2000, [1 / 80] * 80).reshape(8, 10), num_clusters=1)
    assert found.bits == pytest.approx(found.shuffled, rel=0.5) and found.share < 0.01 and found.bits > 0


def test_clusters_have_neighbouring_experts():
    assert by_cluster(table([[1, 2], [3, 4], [5, 6], [7, 8]]), 2).tolist() == [[4, 6], [12, 14]]
