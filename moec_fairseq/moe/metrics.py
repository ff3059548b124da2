"""What the log shows of the router: sums over layers, micro-batches and workers, and averages made of them."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from moec_fairseq.moe.losses import GateStatistics, cluster_moments, gap_between_best_clusters
from moec_fairseq.moe.records import LayerRecord

PER_LAYER = ("tokens", "balance", "variance", "spread", "gap", "entropy", "overflow")
PER_EXPERT = ("assigned", "in_play")


def gate_entropy(probabilities_TS: Tensor) -> Tensor:
    """Return the entropy of each token's routing probabilities in bits, (T,)."""
    return torch.special.entr(probabilities_TS).sum(dim=-1) / torch.log(probabilities_TS.new_tensor(2.0))


@torch.no_grad()
def layer_sums(record: LayerRecord, statistics: GateStatistics, balance: Tensor, variance: Tensor) -> dict[str, Tensor]:
    """Return the statistics of one layer as sums over its tokens.

    ``balance`` and ``variance`` are sums over tokens already; spread and gap are properties of a whole batch, so they
    enter times T, to be divided by the sum of all T.
    """
    in_clusters = cluster_moments(statistics)
    tokens_of_rank = statistics.num_tokens / statistics.world_size
    relative_spread_C = in_clusters.variance_C.sqrt() / in_clusters.mean_C.clamp(min=1e-6)
    return {
        "tokens": record.assigned_N.sum(),
        "balance": balance,
        "variance": variance,
        "spread": in_clusters.over_clusters(relative_spread_C) * tokens_of_rank,
        "gap": gap_between_best_clusters(in_clusters, statistics.num_tokens) * tokens_of_rank,
        "entropy": gate_entropy(statistics.probabilities_TS).sum(),
        "overflow": record.overflow,
        "assigned": record.assigned_N,
        "in_play": torch.zeros_like(record.assigned_N).index_fill(0, statistics.experts_S, 1),
    }


@torch.no_grad()
def model_sums(
    layers: Iterable[tuple[int, dict[str, Tensor]]], num_layers: int, num_experts: int, device: torch.device
) -> dict[str, Tensor]:
    """Join (layer number, sums) into one tensor per statistic, its first dimension the layers of the model.

    Keys and shapes are the same in every pass, whatever layers took part in it, so that workers can add them up.
    """
    joined = {key: torch.zeros(num_layers, device=device) for key in PER_LAYER}
    joined |= {key: torch.zeros(num_layers, num_experts, device=device) for key in PER_EXPERT}
    for number, sums in layers:
        for key, value in sums.items():
            joined[key][number] += value
    return joined


def averages(sums: Mapping[str, Any]) -> dict[str, float]:
    """Turn the sums of :func:`model_sums`, added up over passes and workers, into the figures of the log.

    Returns:
        Per token, over all layers: ``balance`` (1 is perfect), ``variance`` (N·β·variance), ``spread`` (standard
        deviation over mean of P_i inside a cluster), ``gap`` (between the two best clusters, in probability),
        ``entropy`` (bits); ``overflow`` (per cent of the tokens); ``load_max`` and ``load_min`` (per cent of a layer's
        tokens on its most and least loaded expert in play, mean over layers); ``unused`` (experts in play without a
        token, all layers together).
        Empty when no token was routed.
    """
    tokens = float(sums["tokens"].sum())
    if tokens == 0:
        return {}
    figures = {key: float(sums[key].sum()) / tokens for key in ("balance", "variance", "spread", "gap", "entropy")}
    figures["overflow"] = 100 * float(sums["overflow"].sum()) / tokens
    routed = sums["tokens"] > 0
    in_play = sums["in_play"][routed] > 0
    share = 100 * sums["assigned"][routed] / sums["tokens"][routed].unsqueeze(-1)
    figures["load_max"] = float(share.amax(dim=-1).mean())
    figures["load_min"] = float(share.masked_fill(~in_play, torch.inf).amin(dim=-1).mean())
    figures["unused"] = float((in_play & (share == 0)).sum())
    return figures
