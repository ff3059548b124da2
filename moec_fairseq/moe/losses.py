"""Routing -> balance and variance losses (MoEC, section 3.2). Pure functions of the routing record."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from moec_fairseq.moe.clusters import ExpertClusters
from moec_fairseq.moe.records import LayerRecord

# The softmax over the scores has a fixed temperature, unlike the learned one of the mixing weight.
LOSS_TEMPERATURE = 0.07
# Smallest mean of P_i that divides a variance: dot products can push all of a cluster to 0, where the gradient of
# Var/mean² is NaN. Cosines get there only with every token at the very ends of the scale.
MIN_MEAN = 1e-12
# Added to every f_i, as published.
MIN_LOAD = 1e-6


@dataclass(frozen=True)
class GateStatistics:
    """Sums over the T tokens of one layer that all router losses and metrics are made of.

    Attributes:
        clusters: how the experts of the layer are grouped.
        experts_S: numbers of the S experts in play.
        probabilities_TS: p_{t,i} = softmax_i(s_{t,i} / 0.07).
        importance_S: P_i = Σ_t p_{t,i}.
        load_S: f_i = share of the tokens that chose expert i, + 1e-6; no gradient.
        num_tokens: T; P_i and f_i are of as many tokens.
        world_size: processes whose tokens P_i and f_i hold.
    """

    clusters: ExpertClusters
    experts_S: Tensor
    probabilities_TS: Tensor
    importance_S: Tensor
    load_S: Tensor
    num_tokens: int
    world_size: int = 1

    @property
    def num_experts(self) -> int:
        """S, the number of experts in play."""
        return self.experts_S.shape[0]


def gate_statistics(record: LayerRecord) -> GateStatistics:
    """Reduce the record of a layer to the sums that the losses need."""
    routing = record.routing
    # at least float32, also where the router computes in less: the square of a sum over tokens overflows in float16
    scores_TS = routing.scores_TS.to(torch.promote_types(routing.scores_TS.dtype, torch.float32))
    probabilities_TS = torch.softmax(scores_TS / LOSS_TEMPERATURE, dim=-1)
    num_tokens = len(probabilities_TS)
    load_S = record.assigned_N[routing.experts_S].to(probabilities_TS.dtype) / max(1, num_tokens) + MIN_LOAD
    return GateStatistics(
        routing.clusters,
        routing.experts_S,
        probabilities_TS,
        probabilities_TS.sum(dim=0),
        load_S.detach(),
        num_tokens,
    )


def over_ranks(
    statistics: Sequence[GateStatistics], total: Callable[[Tensor], Tensor], left_out: bool = False
) -> list[GateStatistics]:
    """Make the sums of all layers those over the tokens of all processes, in one message.

    P_i keeps the gradient of this rank's own tokens: added up over ranks, gradients are those of the global batch.

    Args:
        statistics: those of this rank, all layers.
        total: returns the sum of a tensor over all processes.
        left_out: the tokens of this rank do not count.
    """
    if not statistics:
        return []
    own = [
        torch.cat(
            [s.importance_S.detach(), (s.load_S - MIN_LOAD) * s.num_tokens, s.load_S.new_tensor([s.num_tokens, 1])]
        )
        for s in statistics
    ]
    summed = total(torch.cat(own) * (not left_out))
    found = []
    for s, everyone in zip(statistics, summed.split([len(o) for o in own]), strict=True):
        importance_S, assigned_S, (tokens, ranks) = everyone.split([s.num_experts, s.num_experts, 2])
        found.append(
            replace(
                s,
                importance_S=importance_S + s.importance_S - s.importance_S.detach(),
                load_S=assigned_S / tokens.clamp(min=1) + MIN_LOAD,
                num_tokens=int(tokens),
                world_size=max(1, int(ranks)),
            )
        )
    return found


def share_of_rank(loss: Tensor, world_size: int) -> Tensor:
    """Return a loss of the global batch as one rank adds it: value divided by W, gradient as it is.

    Each rank differentiates by its own tokens alone, so gradients add up to the whole; equal values would add up to W
    times the loss.
    """
    return loss - loss.detach() * (1 - 1 / world_size)


def balance_loss(statistics: GateStatistics) -> Tensor:
    """Return N · Σ_i P_i f_i, N the experts in play; T for perfectly balanced experts."""
    return statistics.num_experts * (statistics.importance_S * statistics.load_S).sum()


@dataclass(frozen=True)
class ClusterMoments:
    """Mean and unbiased variance of P_i in each cluster, over its experts in play.

    Attributes:
        size_C: experts of the cluster that are in play.
        mean_C: mean of P_i; 0 in a cluster without experts in play.
        variance_C: unbiased variance of P_i; 0 where fewer than two experts are in play.
    """

    size_C: Tensor
    mean_C: Tensor
    variance_C: Tensor

    def over_clusters(self, value_C: Tensor) -> Tensor:
        """Return the mean of a value over the clusters in which a variance exists (0 if there is none)."""
        exists_C = (self.size_C > 1).to(value_C.dtype)
        return (value_C * exists_C).sum() / exists_C.sum().clamp(min=1)


def moments(importance_S: Tensor, cluster_S: Tensor, num_clusters: int) -> ClusterMoments:
    """Return mean and variance of ``importance_S`` in the clusters named by ``cluster_S``."""
    zeros_C = importance_S.new_zeros(num_clusters)
    size_C = zeros_C.index_add(0, cluster_S, torch.ones_like(importance_S))
    mean_C = zeros_C.index_add(0, cluster_S, importance_S) / size_C.clamp(min=1)
    squares_C = zeros_C.index_add(0, cluster_S, (importance_S - mean_C[cluster_S]).square())
    return ClusterMoments(size_C, mean_C, squares_C / (size_C - 1).clamp(min=1))


def cluster_moments(statistics: GateStatistics) -> ClusterMoments:
    """Return the moments of P_i in the clusters of the layer."""
    clusters = statistics.clusters
    return moments(statistics.importance_S, clusters.cluster_of(statistics.experts_S), clusters.num_clusters)


def gap_between_best_clusters(in_clusters: ClusterMoments, num_tokens: int) -> Tensor:
    """Return ρ1 − ρ2, the two largest cluster means of P_i / T; 0 if only one cluster has experts in play."""
    mean_C = in_clusters.mean_C
    if len(mean_C) < 2:
        return mean_C.new_zeros(())
    best, second = torch.topk(mean_C.masked_fill(in_clusters.size_C == 0, -1), 2).values.unbind()
    return (best - second).where(second >= 0, torch.zeros_like(best)) / max(1, num_tokens)


def no_variance(statistics: GateStatistics) -> Tensor:
    """Plain MoE: 0."""
    return statistics.importance_S.new_zeros(())


def global_variance(statistics: GateStatistics) -> Tensor:
    """Var_i(P_i) over all experts in play (unbiased); coef_type 0 of the released code."""
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
    """intra · exp(−(ρ1 − ρ2)): experts of a cluster together, clusters apart (equation 8)."""
    return _intra_inter(cluster_moments(statistics), statistics.num_tokens)


def intra_inter_sorted_variance(statistics: GateStatistics) -> Tensor:
    """coef_type 2 of the released code: ``intra_inter`` on groups cut from the sorted experts, not on clusters."""
    num_clusters = statistics.clusters.num_clusters
    sorted_S = statistics.importance_S.sort(descending=True).values
    group_S = torch.arange(statistics.num_experts, device=sorted_S.device) * num_clusters // statistics.num_experts
    return _intra_inter(moments(sorted_S, group_S, num_clusters), statistics.num_tokens)


def intra_cv_variance(statistics: GateStatistics) -> Tensor:
    """T · mean over clusters of Var(P)/mean(P)²: grows with T as the cross-entropy does, not with its square."""
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
        """Refuse unknown forms and negative weights."""
        if self.variance not in VARIANCES:
            raise ValueError(f"--moec-variance is {self.variance!r}; choose one of {', '.join(VARIANCES)}.")
        if self.variance_weight < 0:
            raise ValueError(
                f"--moec-variance-wt is {self.variance_weight}, but a negative weight would drive the experts of a "
                "cluster apart; give 0 or more."
            )

    def check_cluster(self, experts_in_play: int) -> None:
        """Refuse an intra form where a cluster has fewer than two experts, so that there is no variance in it.

        Args:
            experts_in_play: experts that every cluster is sure to have while training.
        """
        if self.variance in INTRA_FORMS and experts_in_play < 2:
            raise ValueError(
                f"--moec-variance {self.variance} compares the experts of a cluster, but a cluster may have only "
                f"{experts_in_play} of them in play while training; give fewer clusters (--moec-cluster-count), "
                "more experts (--moe-expert-count), a lower --moec-expert-dropout, or --moec-variance none or global."
            )

    def __call__(self, statistics: GateStatistics) -> tuple[Tensor, Tensor]:
        """Return (balance loss, N · β · variance), sums over the tokens."""
        if self.variance == "none" or self.variance_weight == 0:
            return balance_loss(statistics), no_variance(statistics)
        variance = VARIANCES[self.variance](statistics)
        return balance_loss(statistics), statistics.num_experts * self.variance_weight * variance
