"""Routing metrics: sums over layers, micro-batches and workers, and the averages that are logged."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from moec_fairseq.moe.losses import GateStatistics, gap_between_best_clusters, joined, stacked
from moec_fairseq.moe.routing_records import RoutingRecord

# what is summed: one value for each layer, and one for each expert of each layer
PER_LAYER = ("balance", "variance", "spread", "gap", "entropy", "overflow")
PER_EXPERT = ("tokens_per_expert", "active")


@torch.no_grad()
def model_sums(
    records: Sequence[RoutingRecord], statistics: GateStatistics, losses: tuple[Tensor, Tensor], num_layers: int
) -> Tensor:
    """Return the metrics of all layers of a model as sums over the tokens of this process, in one float32 tensor.

    Its shape, (L, M), is the same in every pass, whichever layers took part in it, so that workers can add it up;
    ``by_name`` takes it apart. Nothing is read on the host. Balance, variance and gap are sums over tokens already;
    the spread is a property of a whole batch, so it is multiplied by T here and divided by the sum of all T in the
    end. The entropy is that of the routing probabilities of each token, in nats.

    Args:
        records: those of the layers that took part.
        statistics: of the same layers.
        losses: their balance and variance loss, (L,) each.
        num_layers: MoE layers of the model.
    """
    in_clusters, tokens_per_expert_LN = statistics.in_clusters, statistics.tokens_per_expert_LN
    spread_L = in_clusters.over_clusters(in_clusters.squared_cv_LC.sqrt()) * statistics.num_tokens_L
    of_batch = [*losses, spread_L, gap_between_best_clusters(in_clusters)]
    if statistics.world_size is not None:  # all ranks have the same, and add it up
        of_batch = [value_L / statistics.world_size for value_L in of_batch]
    entropy_L = joined([torch.special.entr(p_LTS).sum(dim=(-2, -1)) for p_LTS in statistics.probabilities_LTS])
    overflow_L = stacked([record.overflow for record in records]).to(entropy_L.dtype)
    per_layer = [value_L.unsqueeze(-1) for value_L in (*of_batch, entropy_L, overflow_L)]
    active_LN = stacked([record.active_N for record in records]).to(entropy_L.dtype)
    sums_LM = torch.cat([*per_layer, tokens_per_expert_LN, active_LN], dim=-1).float()
    return _in_place([record.layer_index for record in records], sums_LM, num_layers)


def _in_place(layers: list[int], sums_LM: Tensor, num_layers: int) -> Tensor:
    """Put the sums of the given layers into those of all layers of the model; LayerDrop leaves layers out."""
    if layers == list(range(num_layers)):
        return sums_LM
    rows: dict[int, Tensor] = {}
    for layer_index, row_M in zip(layers, sums_LM.unbind(), strict=True):
        rows[layer_index] = rows[layer_index] + row_M if layer_index in rows else row_M
    zeros_M = torch.zeros_like(sums_LM[0])
    return torch.stack([rows.get(layer_index, zeros_M) for layer_index in range(num_layers)])


def no_sums(num_layers: int, num_experts: int, device: torch.device) -> Tensor:
    """Return what ``model_sums`` returns for a pass in which no layer took part."""
    return torch.zeros(num_layers, len(PER_LAYER) + len(PER_EXPERT) * num_experts, device=device)


def by_name(sums_LM: Tensor) -> dict[str, Tensor]:
    """Return what ``model_sums`` has put into one tensor: (L,) for each metric of layers, (L, N) for those of experts.

    The ``tokens`` of each layer are the sum of those of its experts.
    """
    num_experts = (sums_LM.shape[-1] - len(PER_LAYER)) // len(PER_EXPERT)
    sizes = [1] * len(PER_LAYER) + [num_experts] * len(PER_EXPERT)
    parts = dict(zip(PER_LAYER + PER_EXPERT, sums_LM.split(sizes, dim=-1), strict=True))
    sums = {key: parts[key].squeeze(-1) for key in PER_LAYER} | {key: parts[key] for key in PER_EXPERT}
    return sums | {"tokens": sums["tokens_per_expert"].sum(dim=-1)}


def averages(sums: Mapping[str, Any]) -> dict[str, float]:
    """Turn the sums of ``model_sums``, added up over passes and workers, into the metrics that are logged.

    Args:
        sums: as ``by_name`` returns them, on the host: this reads every value by itself.

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
    metrics["entropy"] /= math.log(2)
    metrics["overflow"] = 100 * float(sums["overflow"].sum()) / tokens
    routed = sums["tokens"] > 0
    active = sums["active"][routed] > 0
    load = 100 * sums["tokens_per_expert"][routed] / sums["tokens"][routed].unsqueeze(-1)
    metrics["load_max"] = float(load.amax(dim=-1).mean())
    metrics["load_min"] = float(load.masked_fill(~active, torch.inf).amin(dim=-1).mean())
    metrics["unused"] = float((active & (load == 0)).sum())
    return metrics
