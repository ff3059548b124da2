"""Do experts specialise? Mutual information of experts and token classes, against that of shuffled classes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
SHUFFLES = 20
EXPERT, CLUSTER = "expert", "cluster"


@dataclass(frozen=True)
class Information:
    """How much the class of a token and where it was routed say of each other.

    Attributes:
        of: ``expert`` or ``cluster``.
        bits: mutual information.
        shuffled: the same after the classes were shuffled among all tokens, mean over ``SHUFFLES``.
        highest: the highest of these.
        of_class: entropy of the classes in bits, the most that there can be to know.
    """

    of: str
    bits: float
    shuffled: float
    highest: float
    of_class: float

    @property
    def share(self) -> float:
        """Return how much of the class is known from the expert beyond chance, 0 to 1; 0 if there is one class only."""
        return max(0.0, self.bits - self.shuffled) / self.of_class if self.of_class > 0 else 0.0


def entropy(counts: Counts) -> float:
    """Return the entropy in bits of a distribution that was counted."""
    p = counts[counts > 0] / max(1, counts.sum())
    return float(-(p * np.log2(p)).sum()) + 0.0  # not -0


def mutual_information(counts_NK: Counts) -> float:
    """Return the mutual information, in bits, of rows and columns of a table of counts."""
    rows, columns = counts_NK.sum(axis=1), counts_NK.sum(axis=0)
    return max(0.0, entropy(rows) + entropy(columns) - entropy(counts_NK.reshape(-1)))


def shuffled(counts_NK: Counts, draw: np.random.Generator) -> Counts:
    """Return the table that the same tokens give with their classes shuffled.

    A shuffle keeps the totals of rows and columns, and all tables with these totals come as often as shuffles make
    them when rows are drawn one after the other without replacement; so no token has to be kept.
    """
    left_K, rows = counts_NK.sum(axis=0), []
    for tokens in counts_NK.sum(axis=1):
        rows.append(draw.multivariate_hypergeometric(left_K, tokens, method="marginals"))
        left_K = left_K - rows[-1]
    return np.stack(rows)


def by_cluster(counts_NK: Counts, num_clusters: int) -> Counts:
    """Return the counts of clusters, (C, K); cluster c has experts c·N/C to (c + 1)·N/C − 1."""
    return counts_NK.reshape(num_clusters, -1, counts_NK.shape[1]).sum(axis=1)


def information(counts_NK: Counts, num_clusters: int, seed: int = 0) -> Sequence[Information]:
    """Return what experts, and clusters where there are several, and the classes of tokens say of each other.

    Args:
        counts_NK: tokens of each class that each expert got.
        num_clusters: C, that the experts form.
        seed: of the shuffles.
    """
    draw = np.random.default_rng(seed)
    of = {EXPERT: len(counts_NK)} | ({CLUSTER: num_clusters} if num_clusters > 1 else {})
    tables = [counts_NK, *(shuffled(counts_NK, draw) for _ in range(SHUFFLES))]
    found = []
    for name, number in of.items():
        bits, *chance = (mutual_information(by_cluster(table, number)) for table in tables)
        found.append(Information(name, bits, float(np.mean(chance)), max(chance), entropy(counts_NK.sum(axis=0))))
    return found
