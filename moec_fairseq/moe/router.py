"""The router: tokens -> Routing."""

import re
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moec_fairseq.moe.clusters import ExpertClusters
from moec_fairseq.moe.fused import MIN_NORM, MIN_TEMPERATURE, CosineRouting

INITIAL_TEMPERATURE = 0.07
# names of parameters up to version 0.2 -> names now
RENAMED = {"reduction.weight": "query_proj.weight", "experts_NK": "expert_embeddings_NK"}


def rename_old_parameters(state: dict[str, Any]) -> None:
    """Give the routers' parameters in a state dict their current names, in place; the order stays the same."""
    pattern = re.compile(rf"((?:.*\.)?router\.)({'|'.join(map(re.escape, RENAMED))})")
    for name in list(state):
        match = pattern.fullmatch(name)
        # every value moves to the end in turn, so that the order, by which optimizers know parameters, stays
        state[match[1] + RENAMED[match[2]] if match else name] = state.pop(name)


@dataclass(frozen=True)
class Routing:
    """What the router decided for T tokens.

    Attributes:
        clusters: how the N experts of the layer are grouped.
        active_ids_S: IDs of the active experts, sorted, int64.
        scores_TS: score of each token for each active expert; finite.
        expert_T: ID of the expert chosen for each token, int64.
        gate_T: gate α, the weight of the expert's output, in (0, 1).
    """

    clusters: ExpertClusters
    active_ids_S: Tensor
    scores_TS: Tensor
    expert_T: Tensor
    gate_T: Tensor


def cosine_scores(queries_TK: Tensor, embeddings_SK: Tensor, min_norm: float = MIN_NORM) -> Tensor:
    """Return the cosine of each query and each embedding, (T, S); norms are floored at ``min_norm``."""
    return F.linear(F.normalize(queries_TK, dim=-1, eps=min_norm), F.normalize(embeddings_SK, dim=-1, eps=min_norm))


def dot_scores(queries_TK: Tensor, embeddings_SK: Tensor) -> Tensor:
    """Return the dot product of each query and each embedding, (T, S)."""
    return F.linear(queries_TK, embeddings_SK)


SCORES = {"cosine": cosine_scores, "dot": dot_scores}


def replace_non_finite(scores: Tensor) -> Tensor:
    """Replace every NaN and ±inf by the smallest finite score (by 0 if there is none): routing must never fail."""
    finite = scores.isfinite()
    zero = scores.new_zeros(1)
    smallest = scores.detach().masked_fill(~finite, torch.inf).amin() if scores.numel() > 0 else zero
    return scores.where(finite, smallest.where(smallest.isfinite(), zero))


class Router(nn.Module):
    """Top-1 router in a low-rank space (MoEC, section 3.1; X-MoE's cosine score).

    r = W_r h; s_i = score(r, e_i); the token goes to a = argmax_i s_i over the active experts, and the output of that
    expert is weighted by the gate α = sigmoid(s_a / τ), τ learned.

    Args:
        dim: model dimension D.
        clusters: the experts and their clusters.
        score: ``cosine`` or ``dot``.
        reduced_dim: K of W_r; 0 compares in the model dimension, without W_r.
        fp32: compute in float32 whatever the model's dtype.

    Raises:
        ValueError: unknown score, or a negative ``reduced_dim``.
    """

    min_temperature: Final[float] = MIN_TEMPERATURE

    def __init__(
        self, dim: int, clusters: ExpertClusters, score: str = "cosine", reduced_dim: int = 32, fp32: bool = True
    ) -> None:
        super().__init__()
        if score not in SCORES:
            raise ValueError(f"--moec-router is {score!r}; choose one of {', '.join(SCORES)}.")
        if reduced_dim < 0:
            raise ValueError(
                f"--moec-router-dim is {reduced_dim}; give the router's dimension, or 0 for the model dimension {dim}."
            )
        self.clusters = clusters
        self.score = SCORES[score]
        self.fp32 = fp32
        self.query_proj = nn.Linear(dim, reduced_dim, bias=False) if reduced_dim else None
        self.expert_embeddings_NK = nn.Parameter(torch.empty(clusters.num_experts, reduced_dim or dim))
        self.temperature = nn.Parameter(torch.tensor([INITIAL_TEMPERATURE]))
        nn.init.orthogonal_(self.expert_embeddings_NK, gain=0.1)

    @torch.jit.unused
    def forward(self, tokens_TD: Tensor, active_ids_S: Tensor) -> Routing:
        """Route each token to one of the active experts ``active_ids_S`` (sorted IDs)."""
        # autocast would lower the precision of the products below
        precision = torch.autocast(tokens_TD.device.type, enabled=False) if self.fp32 else nullcontext()
        with precision:
            if self.fp32 and self.score is cosine_scores and tokens_TD.device.type != "cpu":
                scores_TS, index_T, gate_T = CosineRouting.apply(*self._operands(tokens_TD, active_ids_S))
                expert_T = active_ids_S[index_T]
            else:
                scores_TS, expert_T, gate_T = self.assign(tokens_TD, active_ids_S)
        return Routing(self.clusters, active_ids_S, scores_TS, expert_T, gate_T)

    def assign(self, tokens_TD: Tensor, active_ids_S: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return scores (T, S), expert (T,) and gate (T,); TorchScript compiles this, too."""
        queries_TK, embeddings_SK, temperature = self._operands(tokens_TD, active_ids_S)
        scores_TS = replace_non_finite(self.score(queries_TK, embeddings_SK))
        best_T, index_T = scores_TS.max(dim=-1)
        gate_T = torch.sigmoid(best_T / temperature.to(best_T.dtype).clamp(min=self.min_temperature))
        return scores_TS, active_ids_S[index_T], gate_T

    def _operands(self, tokens_TD: Tensor, active_ids_S: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (T, K), embeddings of the active experts (S, K), temperature (1,)."""
        dtype = torch.promote_types(tokens_TD.dtype, torch.float32) if self.fp32 else self.expert_embeddings_NK.dtype
        queries_TK = tokens_TD.to(dtype)
        if self.query_proj is not None:
            queries_TK = F.linear(queries_TK, self.query_proj.weight.to(dtype))
        embeddings_SK = self.expert_embeddings_NK.to(dtype)
        if len(active_ids_S) < len(embeddings_SK):
            embeddings_SK = embeddings_SK[active_ids_S]
        return queries_TK, embeddings_SK, self.temperature.to(dtype)
