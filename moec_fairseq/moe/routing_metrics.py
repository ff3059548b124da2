"""Routing metrics: sums over layers, micro-batches and workers, and the averages that are logged."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from moec_fairseq.moe.losses import GateStatistics, cluster_moments, gap_between_best_clusters
from moec_fairseq.moe.routing_records import RoutingRecord

PER_LAYER = ("tokens", "balance", "variance", "spread", "gap", "entropy", "overflow")
PER_EXPERT = ("tokens_per_expert", "active")


def gate_entropy(probabilities_TS: Tensor) -> Tensor:
    """Return the entropy of each token's routing probabilities in bits, (T,)."""
    return torch.special.entr(probabilities_TS).sum(dim=-1) / torch.log(probabilities_TS.new_tensor(2.0))


@torch.no_grad()
def layer_sums(
    record: RoutingRecord, statistics: GateStatistics, balance: Tensor, variance: Tensor
) -> dict[str, Tensor]:
    """Return the metrics of one layer as sums over its tokens.

    ``balance`` and ``variance`` are sums over tokens already; spread and gap are properties of a whole batch, so they
    are multiplied by T here and divided by the sum of all T in the end.
    """
    in_clusters = cluster_moments(statistics)
    tokens_of_rank = statistics.num_tokens / statistics.world_size
    relative_spread_C = in_clusters.variance_C.sqrt() / in_clusters.mean_C.clamp(min=1e-6)
    return {
        "tokens": record.tokens_per_expert_N.sum(),
        "balance": balance,
        "variance": variance,
        "spread": in_clusters.over_clusters(relative_spread_C) * tokens_of_rank,
        "gap": gap_between_best_clusters(in_clusters, statistics.num_tokens) * tokens_of_rank,
        "entropy": gate_entropy(statistics.probabilities_TS).sum(),
        "overflow": record.overflow,
        "tokens_per_expert": record.tokens_per_expert_N,
        "active": torch.zeros_like(record.tokens_per_expert_N).index_fill(0, statistics.active_ids_S, 1),
    }


@torch.no_grad()
def model_sums(
    layers: Iterable[tuple[int, dict[str, Tensor]]], num_layers: int, num_experts: int, device: torch.device
) -> dict[str, Tensor]:
    """Combine the sums of layers, given as (layer index, sums), into one tensor per metric, layers first.

    Keys and shapes are the same in every pass, whichever layers took part in it, so that workers can add them up.
    """
    joined = {key: torch.zeros(num_layers, device=device) for key in PER_LAYER}
    joined |= {key: torch.zeros(num_layers, num_experts, device=device) for key in PER_EXPERT}
    for layer_index, sums in layers:
        for key, value in sums.items():
            joined[key][layer_index] += value
    return joined


def averages(sums: Mapping[str, Any]) -> dict[str, float]:
    """Turn the sums of :func:`model_sums`, added up over passes and workers, into the metrics that are logged.

    Returns:
        Per token, over all layers: ``balance`` (1 is perfect), ``variance`` (N·β·variance), ``spread`` (standard
        deviation over mean of P_i inside a cluster), ``gap`` (between the two best clusters, in probability),
        ``entropy`` (bits); ``overflow`` (per cent of the tokens); ``load_max`` and ``load_min`` (per cent of a layer's
        tokens on its most and least loaded active expert, mean over layers); ``unused`` (active experts without a
        token, in all layers together).
        Empty if no token was routed.
    """
    tokens = float(sums["tokens"].sum())
    if tokens == 0:
        return {}
    metrics = {key: float(sums[key].sum()) / tokens for key in ("balance", "variance", "spread", "gap", "entropy")}
    metrics["overflow"] = 100 * float(sums["overflow"].sum()) / tokens
    routed = sums["tokens"] > 0
    active = sums["active"][routed] > 0
    load = 100 * sums["tokens_per_expert"][routed] / sums["tokens"][routed].unsqueeze(-1)
    metrics["load_max"] = float(load.amax(dim=-1).mean())
    metrics["load_min"] = float(load.masked_fill(~active, torch.inf).amin(dim=-1).mean())
    metrics["unused"] = float((active & (load == 0)).sum())
    return metrics
