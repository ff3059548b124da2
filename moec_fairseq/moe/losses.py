"""Routing -> balance and variance losses (MoEC, section 3.2). Pure functions of the routing record."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from moec_fairseq.moe.clusters import ExpertClusters
from moec_fairseq.moe.fused import MIN_MEAN, IntraCVLosses
from moec_fairseq.moe.routing_records import RoutingRecord

# The softmax over the scores has a fixed temperature, unlike the gate, whose temperature is learned.
LOSS_TEMPERATURE = 0.07
# Tells the draws of random groups from those of expert dropout.
GROUPS_DRAW = 1
# Added to every f_i, as published.
MIN_LOAD = 1e-6


@dataclass(frozen=True)
class ClusterMoments:
    """Mean and unbiased variance of P_i in each cluster of each layer, over its active experts.

    Attributes:
        size_LC: active experts of the cluster; one number if all clusters have equally many.
        mean_LC: mean of P_i; 0 in a cluster without active experts.
        variance_LC: unbiased variance of P_i; 0 with fewer than two active experts.
    """

    size_LC: Tensor | int
    mean_LC: Tensor
    variance_LC: Tensor

    @cached_property
    def squared_mean_LC(self) -> Tensor:
        """Mean², floored: what divides a variance."""
        with torch.enable_grad():  # for the losses, even if metrics, which need no gradient, ask first
            return self.mean_LC.clamp(min=MIN_MEAN).square()

    @cached_property
    def squared_cv_LC(self) -> Tensor:
        """Square of the coefficient of variation, Var/mean²."""
        with torch.enable_grad():
            return self.variance_LC / self.squared_mean_LC

    def over_clusters(self, value_LC: Tensor) -> Tensor:
        """Return the mean of a value over the clusters that have a variance (0 if there is none), (L,)."""
        if isinstance(self.size_LC, int):
            return value_LC.mean(dim=-1) if self.size_LC > 1 else torch.zeros_like(value_LC[..., 0])
        exists_LC = (self.size_LC > 1).to(value_LC.dtype)
        return (value_LC * exists_LC).sum(dim=-1) / exists_LC.sum(dim=-1).clamp(min=1)


def moments(importance_LS: Tensor, cluster_LS: Tensor, num_clusters: int) -> ClusterMoments:
    """Return mean and variance of ``importance_LS`` in each cluster; ``cluster_LS`` is the cluster of each expert.

    Sums over a mask of all pairs of experts and clusters, which are few: adding up by index is done by atomics on a
    GPU, in an order that differs from run to run.
    """
    in_cluster_LSC = cluster_LS.unsqueeze(-1) == torch.arange(num_clusters, device=cluster_LS.device)
    in_cluster_LSC = in_cluster_LSC.to(importance_LS.dtype)
    size_LC = in_cluster_LSC.sum(dim=-2)
    mean_LC = (importance_LS.unsqueeze(-1) * in_cluster_LSC).sum(dim=-2) / size_LC.clamp(min=1)
    deviation_LSC = (importance_LS.unsqueeze(-1) - mean_LC.unsqueeze(-2)) * in_cluster_LSC
    return ClusterMoments(size_LC, mean_LC, deviation_LSC.square().sum(dim=-2) / (size_LC - 1).clamp(min=1))


def equal_moments(importance_LS: Tensor, num_clusters: int) -> ClusterMoments:
    """Do the same as ``moments`` for S/C experts in each cluster, those of cluster 0 first, in half as many kernels."""
    size = importance_LS.shape[-1] // num_clusters
    by_cluster = (num_clusters, size)
    if size > 1 and importance_LS.device.type != "cpu":  # one kernel; results on a CPU do not change by a rounding
        variance_LC, mean_LC = torch.var_mean(importance_LS.unflatten(-1, by_cluster), dim=-1)
        return ClusterMoments(size, mean_LC, variance_LC)
    mean_LC1 = importance_LS.unflatten(-1, by_cluster).mean(dim=-1, keepdim=True)
    # a view of its own: gradients are then added up in the order of ``moments``, to the same last bit
    deviation = importance_LS.unflatten(-1, by_cluster) - mean_LC1
    return ClusterMoments(size, mean_LC1.squeeze(-1), deviation.square().sum(dim=-1) / max(1, size - 1))


@dataclass(frozen=True)
class GateStatistics:
    """Sums over the tokens of each of L layers, from which all router losses and metrics are computed.

    The layers are computed together, so that a GPU does not launch kernels for each of them.

    Attributes:
        clusters: how the experts of each layer are grouped.
        active_ids_LS: IDs of the S active experts.
        equal_clusters: whether equally many experts of each cluster are active.
        probabilities_LTS: p_{t,i} = softmax_i(s_{t,i} / 0.07); layers in a row that have equally many tokens are in
            one tensor.
        importance_LS: P_i = Σ_t p_{t,i}.
        load_LS: f_i = fraction of the tokens routed to expert i, + 1e-6; no gradient.
        num_tokens_L: T, the tokens that P_i and f_i are computed from, a float.
        tokens_per_expert_LN: tokens of this process routed to each expert, a float.
        world_size: number of processes whose tokens P_i and f_i are computed from, shape (); None: this one only.
        sample_size_L: what the loss beside the router losses is a sum of, such as masked tokens, if that is not tokens.
    """

    clusters: ExpertClusters
    active_ids_LS: Tensor
    equal_clusters: bool
    probabilities_LTS: tuple[Tensor, ...]
    importance_LS: Tensor
    load_LS: Tensor
    num_tokens_L: Tensor
    tokens_per_expert_LN: Tensor
    world_size: Tensor | None = None
    sample_size_L: Tensor | None = None

    @property
    def num_experts(self) -> int:
        """S, the number of active experts."""
        return self.active_ids_LS.shape[-1]

    @cached_property
    def in_clusters(self) -> ClusterMoments:
        """The moments of P_i in the clusters of each layer."""
        with torch.enable_grad():  # for the losses, even if metrics, which need no gradient, ask first
            if self.equal_clusters:
                return equal_moments(self.importance_LS, self.clusters.num_clusters)
            return moments(self.importance_LS, self.clusters.cluster_of(self.active_ids_LS), self.clusters.num_clusters)


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Stack the tensors of all layers; that of a single layer is not copied."""
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(list(tensors))


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate tensors of runs of layers; a single one is not copied."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def gate_statistics(records: Sequence[RoutingRecord]) -> GateStatistics:
    """Reduce the routing records of one or more layers to the sums that the losses need.

    Raises:
        ValueError: the layers do not all have the same clusters and the same number of active experts.
    """
    routings = [record.routing for record in records]
    if len({(routing.clusters, len(routing.active_ids_S)) for routing in routings}) != 1:
        raise ValueError(
            "the router losses of several layers are computed together if these have the same clusters and number of "
            f"active experts, but got {[(routing.clusters, len(routing.active_ids_S)) for routing in routings]}; "
            "call gate_statistics for each kind of layer."
        )
    clusters, num_active = routings[0].clusters, len(routings[0].active_ids_S)
    # all layers of an encoder have equally many tokens, and all of a decoder
    runs = [stacked([r.scores_TS for r in run]) for _, run in groupby(routings, key=lambda r: len(r.scores_TS))]
    # at least float32, even if the router computes in less: the square of a sum over tokens overflows in float16
    dtype = torch.promote_types(runs[0].dtype, torch.float32)
    probabilities_LTS = tuple(torch.softmax(scores_LTS.to(dtype) / LOSS_TEMPERATURE, dim=-1) for scores_LTS in runs)
    active_ids_LS = stacked([routing.active_ids_S for routing in routings])
    tokens_per_expert_LN = stacked([record.tokens_per_expert_N for record in records]).to(dtype)
    # counted on the device: T is known to the host, but would have to be copied from there
    num_tokens_L = tokens_per_expert_LN.sum(dim=-1)
    all_active = num_active == clusters.num_experts
    tokens_per_expert_LS = tokens_per_expert_LN if all_active else tokens_per_expert_LN.gather(-1, active_ids_LS)
    any_empty = any(len(routing.scores_TS) == 0 for routing in routings)
    divisor_L = num_tokens_L.clamp(min=1) if any_empty else num_tokens_L
    return GateStatistics(
        clusters,
        active_ids_LS,
        all_active or all(record.equal_clusters for record in records),
        probabilities_LTS,
        joined([p_LTS.sum(dim=1) for p_LTS in probabilities_LTS]),
        tokens_per_expert_LS / divisor_L.unsqueeze(-1) + MIN_LOAD,
        num_tokens_L,
        tokens_per_expert_LN,
    )


def over_ranks(statistics: GateStatistics, total: Callable[[Tensor], Tensor], is_dummy: bool = False) -> GateStatistics:
    """Sum the statistics of all layers over the tokens of all processes, in one message.

    P_i keeps the gradient of this rank's own tokens: summed over ranks, gradients are those of the global batch.

    Args:
        statistics: those of this rank.
        total: returns the sum of a tensor over all processes.
        is_dummy: this rank has a dummy batch, which is ignored.
    """
    importance_LS, tokens_L1 = statistics.importance_LS, statistics.num_tokens_L.unsqueeze(-1)
    sample_size_L = statistics.sample_size_L
    sample_size = [] if sample_size_L is None else [sample_size_L.unsqueeze(-1)]
    tokens_per_expert_LS = (statistics.load_LS - MIN_LOAD) * tokens_L1
    own = torch.cat(
        [importance_LS.detach(), tokens_per_expert_LS, tokens_L1, torch.ones_like(tokens_L1), *sample_size], dim=-1
    )
    summed = total(torch.zeros_like(own) if is_dummy else own)
    sizes = [statistics.num_experts] * 2 + [1, 1] + [1] * len(sample_size)
    sum_LS, tokens_per_expert_LS, tokens_L1, ranks_L1, *sample_size = summed.split(sizes, dim=-1)
    return replace(
        statistics,
        importance_LS=sum_LS + importance_LS - importance_LS.detach(),
        load_LS=tokens_per_expert_LS / tokens_L1.clamp(min=1) + MIN_LOAD,
        num_tokens_L=tokens_L1.squeeze(-1),
        world_size=ranks_L1[0, 0].clamp(min=1),
        sample_size_L=sample_size[0].squeeze(-1) if sample_size else None,
    )


def share_of_rank(loss: Tensor, world_size: Tensor | int) -> Tensor:
    """Return one rank's part of a loss of the global batch: its value divided by W, with the whole gradient.

    Each rank differentiates with respect to its own tokens only, so gradients add up to that of the global batch;
    values, equal on all ranks, would add up to W times the loss.
    """
    return loss - loss.detach() * (1 - 1 / world_size)


def balance_loss(statistics: GateStatistics) -> Tensor:
    """Return N · Σ_i P_i f_i of each layer, (L,), N the number of active experts; T if they are perfectly balanced."""
    return statistics.num_experts * (statistics.importance_LS * statistics.load_LS).sum(dim=-1)


def gap_between_best_clusters(in_clusters: ClusterMoments) -> Tensor:
    """Return the difference of the two largest cluster means of P_i, (L,); 0 if only one cluster has active experts."""
    size_LC, mean_LC = in_clusters.size_LC, in_clusters.mean_LC
    if mean_LC.shape[-1] < 2:
        return torch.zeros_like(mean_LC[..., 0])
    if isinstance(size_LC, int):
        best_L, second_L = torch.topk(mean_LC, 2).values.unbind(-1)
        return best_L - second_L
    best_L, second_L = torch.topk(mean_LC.masked_fill(size_LC == 0, -1), 2).values.unbind(-1)
    return (best_L - second_L).where(second_L >= 0, torch.zeros_like(best_L))


def no_variance(statistics: GateStatistics) -> Tensor:
    """Plain MoE: 0."""
    return torch.zeros_like(statistics.num_tokens_L)


def global_variance(statistics: GateStatistics) -> Tensor:
    """Var_i(P_i) over all active experts (unbiased); coef_type 0 of the released code."""
    if statistics.num_experts < 2:
        return no_variance(statistics)
    return statistics.importance_LS.var(dim=-1, unbiased=True)


def intra_variance(statistics: GateStatistics) -> Tensor:
    """Mean over clusters of Var_{i∈c}(P_i) (equation 6); coef_type 1 of the released code."""
    return statistics.in_clusters.over_clusters(statistics.in_clusters.variance_LC)


def _intra_inter(in_clusters: ClusterMoments, num_tokens_L: Tensor) -> Tensor:
    gap_L = gap_between_best_clusters(in_clusters) / num_tokens_L.clamp(min=1)
    return in_clusters.over_clusters(in_clusters.variance_LC) * torch.exp(-gap_L)


def intra_inter_variance(statistics: GateStatistics) -> Tensor:
    """intra · exp(−(ρ1 − ρ2)), ρ1 and ρ2 the two largest cluster means of P_i / T.

    It pulls the experts of a cluster together and clusters apart (equation 8).
    """
    return _intra_inter(statistics.in_clusters, statistics.num_tokens_L)


def intra_inter_sorted_variance(statistics: GateStatistics) -> Tensor:
    """coef_type 2 of the released code: ``intra_inter`` on groups of the experts sorted by P_i, not on clusters."""
    num_clusters, num_experts = statistics.clusters.num_clusters, statistics.num_experts
    sorted_LS = statistics.importance_LS.sort(dim=-1, descending=True).values
    if num_experts % num_clusters == 0:
        return _intra_inter(equal_moments(sorted_LS, num_clusters), statistics.num_tokens_L)
    group_S = torch.arange(num_experts, device=sorted_LS.device) * num_clusters // num_experts
    return _intra_inter(moments(sorted_LS, group_S, num_clusters), statistics.num_tokens_L)


def intra_cv_variance(statistics: GateStatistics) -> Tensor:
    """T · mean over clusters of Var(P)/mean(P)²: grows with T, as the cross-entropy does, not with T²."""
    in_clusters = statistics.in_clusters
    return statistics.num_tokens_L * in_clusters.over_clusters(in_clusters.squared_cv_LC)


def fused_intra_cv(statistics: GateStatistics, variance_weight: float) -> tuple[Tensor, Tensor]:
    """Return (balance, N · β · ``intra_cv``), (L,) each, of clusters of equal size, at least 2, in few kernels."""
    of = statistics.in_clusters
    losses: tuple[Tensor, Tensor] = IntraCVLosses.apply(
        statistics.importance_LS, statistics.load_LS, statistics.num_tokens_L,
        of.mean_LC, of.squared_mean_LC, of.squared_cv_LC, variance_weight,
    )  # fmt: skip
    return losses


# Each form maps the statistics of L layers to one value for each, (L,).
VARIANCES: dict[str, Callable[[GateStatistics], Tensor]] = {
    "none": no_variance,
    "global": global_variance,
    "intra": intra_variance,
    "intra_inter": intra_inter_variance,
    "intra_inter_sorted": intra_inter_sorted_variance,
    "intra_cv": intra_cv_variance,
}
INTRA_FORMS = frozenset(name for name in VARIANCES if name.startswith("intra"))
FORMS_WITHOUT_CLUSTERS = ("none", "global", "intra_inter_sorted")


def as_clustered(statistics: GateStatistics, records: Sequence[RoutingRecord], seed: int) -> GateStatistics:
    """Leave the experts in their clusters."""
    return statistics


def randomly_grouped(statistics: GateStatistics, records: Sequence[RoutingRecord], seed: int) -> GateStatistics:
    """Let the active experts change places: each cluster then stands for a random group of its size.

    A draw is a pure function of (seed, layer, update), as that of expert dropout is, but another one: it is the same on
    all ranks, in all micro-batches of an update, and after a restart.

    Args:
        statistics: of some layers.
        records: of the same layers.
        seed: must be the same on all ranks.
    """
    draws = [[seed % 2**32, record.layer_index, record.num_updates, GROUPS_DRAW] for record in records]
    orders = [np.random.RandomState(draw).permutation(statistics.num_experts) for draw in draws]
    order_LS = torch.from_numpy(np.stack(orders)).to(statistics.importance_LS.device, non_blocking=True)
    return replace(
        statistics,
        importance_LS=statistics.importance_LS.gather(-1, order_LS),
        load_LS=statistics.load_LS.gather(-1, order_LS),
    )


# Each maps the statistics of the layers with the given records, and the seed, to those that the losses are taken of.
GROUPS: dict[str, Callable[[GateStatistics, Sequence[RoutingRecord], int], GateStatistics]] = {
    "clusters": as_clustered,
    "random": randomly_grouped,
}


@dataclass(frozen=True)
class GateLoss:
    """L_gate = L_bal + N · β · variance, for each layer.

    Attributes:
        variance: name of the variance form.
        variance_weight: β.
        groups: name of the groups of experts that it keeps alike; the criterion makes them (``GROUPS``).

    Raises:
        ValueError: unknown form or groups, groups that the form does not look at, or a negative weight.
    """

    variance: str = "intra_cv"
    variance_weight: float = 1.0
    groups: str = "clusters"

    def __post_init__(self) -> None:
        """Reject unknown forms and groups, and negative weights."""
        if self.variance not in VARIANCES:
            raise ValueError(f"--moec-variance is {self.variance!r}; choose one of {', '.join(VARIANCES)}.")
        if self.variance_weight < 0:
            raise ValueError(
                f"--moec-variance-wt is {self.variance_weight}, but a negative weight would drive the experts of a "
                "cluster apart; give 0 or more."
            )
        if self.groups not in GROUPS:
            raise ValueError(f"--moec-variance-groups is {self.groups!r}; choose one of {', '.join(GROUPS)}.")
        if self.groups != "clusters" and self.variance in FORMS_WITHOUT_CLUSTERS:
            others = " or ".join(name for name in VARIANCES if name not in FORMS_WITHOUT_CLUSTERS)
            raise ValueError(
                f"--moec-variance-groups {self.groups} changes nothing with --moec-variance {self.variance}, which has "
                f"no clusters; leave it out, or give --moec-variance {others}."
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
        """Return (balance loss, N · β · variance) of each layer, (L,), sums over the tokens.

        Raises:
            ValueError: the variance form does not return one value for each layer.
        """
        if self.variance == "none" or self.variance_weight == 0:
            return balance_loss(statistics), no_variance(statistics)
        variance = VARIANCES[self.variance]
        # every cluster has a variance, of equally many experts
        alike = statistics.equal_clusters and statistics.num_experts > statistics.clusters.num_clusters
        if variance is intra_cv_variance and alike and statistics.importance_LS.device.type != "cpu":
            return fused_intra_cv(statistics, self.variance_weight)
        variance_L = variance(statistics)
        if variance_L.shape != statistics.num_tokens_L.shape:
            raise ValueError(
                f"--moec-variance {self.variance} returned a tensor of shape {tuple(variance_L.shape)} for "
                f"{len(statistics.num_tokens_L)} layers; return one value for each layer, (L,): reduce the last "
                "dimension of its statistics only (dim=-1)."
            )
        return balance_loss(statistics), statistics.num_experts * self.variance_weight * variance_L
