"""Which expert belongs to which cluster."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ExpertClusters:
    """N experts in C clusters of equal size; cluster c holds experts c·N/C … (c+1)·N/C − 1 (MoEC, section 3.1).

    Raises:
        ValueError: the experts cannot be divided into clusters of equal size.
    """

    num_experts: int
    num_clusters: int

    def __post_init__(self) -> None:
        """Reject sizes that do not divide."""
        if self.num_experts < 1:
            raise ValueError(
                f"A MoE layer needs at least 1 expert, but --moe-expert-count is {self.num_experts}; "
                "give 1 or more, or 0 for a model without MoE layers."
            )
        if not 1 <= self.num_clusters <= self.num_experts or self.num_experts % self.num_clusters:
            divisors = [str(c) for c in range(1, self.num_experts + 1) if self.num_experts % c == 0]
            raise ValueError(
                f"{self.num_experts} experts (--moe-expert-count) cannot form {self.num_clusters} clusters "
                f"(--moec-cluster-count) of equal size; choose one of {', '.join(divisors)} clusters."
            )

    @property
    def cluster_size(self) -> int:
        """Experts per cluster."""
        return self.num_experts // self.num_clusters

    def cluster_of(self, experts: Tensor) -> Tensor:
        """Map expert IDs to cluster IDs, any shape."""
        return torch.div(experts, self.cluster_size, rounding_mode="floor")
