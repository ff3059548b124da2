"""Expert dropout: which experts are active, as a pure function of (seed, layer, update)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from moec_fairseq.moe.clusters import ExpertClusters

# One draw: (clusters, rate, random source) -> sorted IDs of the active experts.
Draw = Callable[[ExpertClusters, float, np.random.RandomState], list[int]]


def num_active(experts: int, rate: float) -> int:
    """Return max(1, floor((1 − rate)·experts))."""
    # floating point puts (1 - 0.8) * 10 just below 2, which would drop one expert too many
    return max(1, math.floor((1 - rate) * experts + 1e-9))


def _active_of(group: range, rate: float, random: np.random.RandomState) -> list[int]:
    keep = num_active(len(group), rate)
    return sorted(group[i] for i in random.permutation(len(group))[:keep])


def _within_clusters(clusters: ExpertClusters, rate: float, random: np.random.RandomState) -> list[int]:
    size = clusters.cluster_size
    groups = [range(c * size, (c + 1) * size) for c in range(clusters.num_clusters)]
    return [expert for group in groups for expert in _active_of(group, rate, random)]


def _over_all_experts(clusters: ExpertClusters, rate: float, random: np.random.RandomState) -> list[int]:
    return _active_of(range(clusters.num_experts), rate, random)


SCOPES: dict[str, Draw] = {"cluster": _within_clusters, "global": _over_all_experts}


@dataclass(frozen=True)
class ExpertDropout:
    """Cluster-level expert dropout (MoEC, section 3.3), or its ablation over all experts at once.

    In each cluster max(1, floor((1 − rate)·cluster_size)) experts stay active; a draw holds for ``interval`` updates.

    Attributes:
        rate: fraction of the experts that is dropped, in [0, 1).
        interval: number of updates (not forward passes) between two draws.
        scope: ``cluster`` or ``global``.
        seed: must be the same on all ranks.

    Raises:
        ValueError: a value outside its range.
    """

    rate: float = 0.0
    interval: int = 250
    scope: str = "cluster"
    seed: int = 1

    def __post_init__(self) -> None:
        """Reject values outside their range."""
        if not 0 <= self.rate < 1:
            raise ValueError(
                f"--moec-expert-dropout is {self.rate}, but the fraction of dropped experts must be in [0, 1); "
                "0 switches expert dropout off, 0.5 is the published value."
            )
        if self.interval < 1:
            raise ValueError(
                f"--moec-expert-dropout-interval is {self.interval}, but experts are redrawn every 1 or more updates."
            )
        if self.scope not in SCOPES:
            raise ValueError(f"--moec-expert-dropout-scope is {self.scope!r}; choose one of {', '.join(SCOPES)}.")

    def active_ids(self, clusters: ExpertClusters, layer_index: int, update: int) -> tuple[int, ...]:
        """Return the sorted IDs of the active experts: the same on all ranks, and after a restart."""
        if self.rate == 0:
            return tuple(range(clusters.num_experts))
        # RandomState, because numpy guarantees that its stream never changes: a run can resume under a newer numpy
        random = np.random.RandomState([self.seed % 2**32, layer_index, update // self.interval])
        return tuple(SCOPES[self.scope](clusters, self.rate, random))

    @property
    def equal_clusters(self) -> bool:
        """Whether equally many experts of each cluster are active at any update."""
        return self.scope == "cluster" or self.rate == 0

    def fewest_active_in_a_cluster(self, clusters: ExpertClusters) -> int:
        """Return how many experts of each cluster are certain to be active at any update."""
        if self.scope == "global" and self.rate > 0:
            dropped = clusters.num_experts - num_active(clusters.num_experts, self.rate)
            return max(0, clusters.cluster_size - dropped)
        return num_active(clusters.cluster_size, self.rate)
