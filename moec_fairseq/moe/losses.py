"""Routing -> balance and variance losses (MoEC, section 3.2). Pure functions of the routing record."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from moec_fairseq.moe.clusters import ExpertClusters
from moec_fairseq.moe.routing_records import RoutingRecord

# The softmax over the scores has a fixed temperature, unlike the gate, whose temperature is learned.
LOSS_TEMPERATURE = 0.07
# Smallest mean of P_i that divides a variance: dot products can push a whole cluster to 0, where the gradient of
# Var/mean² is NaN. Cosines get there only if every token is at the very ends of the scale.
MIN_MEAN = 1e-12
# Added to every f_i, as published.
MIN_LOAD = 1e-6


@dataclass(frozen=True)
class GateStatistics:
    """Sums over the T tokens of one layer, from which all router losses and metrics are computed.

    Attributes:
        clusters: how the experts of the layer are grouped.
        active_ids_S: IDs of the S active experts.
        probabilities_TS: p_{t,i} = softmax_i(s_{t,i} / 0.07).
        importance_S: P_i = Σ_t p_{t,i}.
        load_S: f_i = fraction of the tokens routed to expert i, + 1e-6; no gradient.
        num_tokens: T, the tokens that P_i and f_i are computed from.
        world_size: number of processes whose tokens these are.
    """

    clusters: ExpertClusters
    active_ids_S: Tensor
    probabilities_TS: Tensor
    importance_S: Tensor
    load_S: Tensor
    num_tokens: int
    world_size: int = 1

    @property
    def num_experts(self) -> int:
        """S, the number of active experts."""
        return self.active_ids_S.shape[0]


def gate_statistics(record: RoutingRecord) -> GateStatistics:
    """Reduce the routing record of a layer to the sums that the losses need."""
    routing = record.routing
    # at least float32, even if the router computes in less: the square of a sum over tokens overflows in float16
    scores_TS = routing.scores_TS.to(torch.promote_types(routing.scores_TS.dtype, torch.float32))
    probabilities_TS = torch.softmax(scores_TS / LOSS_TEMPERATURE, dim=-1)
    num_tokens = len(probabilities_TS)
    load_S = record.tokens_per_expert_N[routing.active_ids_S].to(probabilities_TS.dtype) / max(1, num_tokens) + MIN_LOAD
    return GateStatistics(
        routing.clusters,
        routing.active_ids_S,
        probabilities_TS,
        probabilities_TS.sum(dim=0),
        load_S.detach(),
        num_tokens,
    )


def over_ranks(
    statistics: Sequence[GateStatistics], total: Callable[[Tensor], Tensor], is_dummy: bool = False
) -> list[GateStatistics]:
    """Sum the statistics of all layers over the tokens of all processes, in one message.

    P_i keeps the gradient of this rank's own tokens: summed over ranks, gradients are those of the global batch.

    Args:
        statistics: those of this rank, one per layer.
        total: returns the sum of a tensor over all processes.
        is_dummy: this rank has a dummy batch, which is ignored.
    """
    if not statistics:
        return []
    own = [
        torch.cat(
            [s.importance_S.detach(), (s.load_S - MIN_LOAD) * s.num_tokens, s.load_S.new_tensor([s.num_tokens, 1])]
        )
        for s in statistics
    ]
    summed = total(torch.cat(own) * (not is_dummy))
    found = []
    for s, everyone in zip(statistics, summed.split([len(o) for o in own]), strict=True):
        importance_S, tokens_per_expert_S, (tokens, ranks) = everyone.split([s.num_experts, s.num_experts, 2])
        found.append(
            replace(
                s,
                importance_S=importance_S + s.importance_S - s.importance_S.detach(),
                load_S=tokens_per_expert_S / tokens.clamp(min=1) + MIN_LOAD,
                num_tokens=int(tokens),
                world_size=max(1, int(ranks)),
            )
        )
    return found


def share_of_rank(loss: Tensor, world_size: int) -> Tensor:
    """Return one rank's part of a loss of the global batch: its value divided by W, with the whole gradient.

    Each rank differentiates with respect to its own tokens only, so gradients add up to that of the global batch;
    values, equal on all ranks, would add up to W times the loss.
    """
    return loss - loss.detach() * (1 - 1 / world_size)


def balance_loss(statistics: GateStatistics) -> Tensor:
    """Return N · Σ_i P_i f_i, N the number of active experts; T if they are perfectly balanced."""
    return statistics.num_experts * (statistics.importance_S * statistics.load_S).sum()


@dataclass(frozen=True)
class ClusterMoments:
    """Mean and unbiased variance of P_i in each cluster, over its active experts.

    Attributes:
        size_C: active experts of the cluster.
        mean_C: mean of P_i; 0 in a cluster without active experts.
        variance_C: unbiased variance of P_i; 0 with fewer than two active experts.
    """

    size_C: Tensor
    mean_C: Tensor
    variance_C: Tensor

    def over_clusters(self, value_C: Tensor) -> Tensor:
        """Return the mean of a value over the clusters that have a variance (0 if there is none)."""
        exists_C = (self.size_C > 1).to(value_C.dtype)
        return (value_C * exists_C).sum() / exists_C.sum().clamp(min=1)


def moments(importance_S: Tensor, cluster_S: Tensor, num_clusters: int) -> ClusterMoments:
    """Return mean and variance of ``importance_S`` in each cluster; ``cluster_S`` is the cluster of each expert."""
    zeros_C = importance_S.new_zeros(num_clusters)
    size_C = zeros_C.index_add(0, cluster_S, torch.ones_like(importance_S))
    mean_C = zeros_C.index_add(0, cluster_S, importance_S) / size_C.clamp(min=1)
    squares_C = zeros_C.index_add(0, cluster_S, (importance_S - mean_C[cluster_S]).square())
    return ClusterMoments(size_C, mean_C, squares_C / (size_C - 1).clamp(min=1))


def cluster_moments(statistics: GateStatistics) -> ClusterMoments:
    """Return the moments of P_i in the clusters of the layer."""
    clusters = statistics.clusters
    return moments(statistics.importance_S, clusters.cluster_of(statistics.active_ids_S), clusters.num_clusters)


def gap_between_best_clusters(in_clusters: ClusterMoments, num_tokens: int) -> Tensor:
    """Return ρ1 − ρ2, the two largest cluster means of P_i / T; 0 if only one cluster has active experts."""
    mean_C = in_clusters.mean_C
    if len(mean_C) < 2:
        return mean_C.new_zeros(())
    best, second = torch.topk(mean_C.masked_fill(in_clusters.size_C == 0, -1), 2).values.unbind()
    return (best - second).where(second >= 0, torch.zeros_like(best)) / max(1, num_tokens)


def no_variance(statistics: GateStatistics) -> Tensor:
    """Plain MoE: 0."""
    return statistics.importance_S.new_zeros(())


def global_variance(statistics: GateStatistics) -> Tensor:
    """Var_i(P_i) over all active experts (unbiased); coef_type 0 of the released code."""
    if statistics.num_experts < 2:
        return no_variance(statistics)
    return statistics.importance_S.var(unbiased=True)


def intra_variance(statistics: GateStatistics) -> Tensor:
    """Mean over clusters of Var_{i∈c}(P_i) (equation 6); coef_type 1 of the released code."""
    in_clusters = cluster_moments(statistics)
    return in_clusters.over_clusters(in_clusters.variance_C)


def _intra_inter(in_clusters: ClusterMoments, num_tokens: int) -> Tensor:
    gap = gap_between_best_clusters(in_clusters, num_tokens)
    return in_clusters.over_clusters(in_clusters.variance_C) * torch.exp(-gap)


def intra_inter_variance(statistics: GateStatistics) -> Tensor:
    """intra · exp(−(ρ1 − ρ2)): pulls the experts of a cluster together and clusters apart (equation 8)."""
    return _intra_inter(cluster_moments(statistics), statistics.num_tokens)


def intra_inter_sorted_variance(statistics: GateStatistics) -> Tensor:
    """coef_type 2 of the released code: ``intra_inter`` on groups of the experts sorted by P_i, not on clusters."""
    num_clusters = statistics.clusters.num_clusters
    sorted_S = statistics.importance_S.sort(descending=True).values
    group_S = torch.arange(statistics.num_experts, device=sorted_S.device) * num_clusters // statistics.num_experts
    return _intra_inter(moments(sorted_S, group_S, num_clusters), statistics.num_tokens)


def intra_cv_variance(statistics: GateStatistics) -> Tensor:
    """T · mean over clusters of Var(P)/mean(P)²: grows with T, as the cross-entropy does, not with T²."""
    in_clusters = cluster_moments(statistics)
    squared_cv_C = in_clusters.variance_C / in_clusters.mean_C.clamp(min=MIN_MEAN).square()
    return statistics.num_tokens * in_clusters.over_clusters(squared_cv_C)


VARIANCES: dict[str, Callable[[GateStatistics], Tensor]] = {
    "none": no_variance,
    "global": global_variance,
    "intra": intra_variance,
    "intra_inter": intra_inter_variance,
    "intra_inter_sorted": intra_inter_sorted_variance,
    "intra_cv": intra_cv_variance,
}
INTRA_FORMS = frozenset(name for name in VARIANCES if name.startswith("intra"))


@dataclass(frozen=True)
class GateLoss:
    """L_gate = L_bal + N · β · variance, for one layer.

    Attributes:
        variance: name of the variance form.
        variance_weight: β.

    Raises:
        ValueError: unknown form, or a negative weight.
    """

    variance: str = "intra_cv"
    variance_weight: float = 1.0

    def __post_init__(self) -> None:
        """Reject unknown forms and negative weights."""
        if self.variance not in VARIANCES:
            raise ValueError(f"--moec-variance is {self.variance!r}; choose one of {', '.join(VARIANCES)}.")
        if self.variance_weight < 0:
            raise ValueError(
                f"--moec-variance-wt is {self.variance_weight}, but a negative weight would drive the experts of a "
                "cluster apart; give 0 or more."
            )

    def check_cluster(self, active_experts: int) -> None:
        """Reject an intra form if a cluster may have fewer than two active experts, and thus no variance.

        Args:
            active_experts: active experts that every cluster is certain to have in training.

        Raises:
            ValueError: there is no variance; says which options to change.
        """
        if self.variance in INTRA_FORMS and active_experts < 2:
            raise ValueError(
                f"--moec-variance {self.variance} compares the experts of a cluster, but a cluster may have only "
                f"{active_experts} of them active in training; give fewer clusters (--moec-cluster-count), "
                "more experts (--moe-expert-count), a lower --moec-expert-dropout, or --moec-variance none or global."
            )

    def __call__(self, statistics: GateStatistics) -> tuple[Tensor, Tensor]:
        """Return (balance loss, N · β · variance), sums over the tokens."""
        if self.variance == "none" or self.variance_weight == 0:
            return balance_loss(statistics), no_variance(statistics)
        variance = VARIANCES[self.variance](statistics)
        return balance_loss(statistics), statistics.num_experts * self.variance_weight * variance
