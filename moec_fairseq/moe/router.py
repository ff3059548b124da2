"""The router: tokens -> Routing."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moec_fairseq.moe.clusters import ExpertClusters

INITIAL_TEMPERATURE = 0.07


@dataclass(frozen=True)
class Routing:
    """What the router decided for T tokens.

    Attributes:
        clusters: how the N experts of the layer are grouped.
        experts_S: numbers of the experts in play, sorted, int64.
        scores_TS: score of each token for each expert in play; finite.
        expert_T: number of the one expert chosen for each token, int64.
        mix_T: mixing weight α of the expert's output, in (0, 1).
    """

    clusters: ExpertClusters
    experts_S: Tensor
    scores_TS: Tensor
    expert_T: Tensor
    mix_T: Tensor


def cosine_scores(tokens_TK: Tensor, experts_SK: Tensor, min_norm: float = 1e-4) -> Tensor:
    """Return the cosine of each token and each expert, norms floored at ``min_norm``, (T, S)."""
    return F.linear(F.normalize(tokens_TK, dim=-1, eps=min_norm), F.normalize(experts_SK, dim=-1, eps=min_norm))


def dot_scores(tokens_TK: Tensor, experts_SK: Tensor) -> Tensor:
    """Return the dot product of each token and each expert, (T, S)."""
    return F.linear(tokens_TK, experts_SK)


SCORES = {"cosine": cosine_scores, "dot": dot_scores}


def replace_non_finite(scores: Tensor) -> Tensor:
    """Replace every NaN and ±inf by the smallest finite score (by 0 if there is none): assignment must never fail."""
    finite = scores.isfinite()
    zero = scores.new_zeros(1)
    smallest = scores.detach().masked_fill(~finite, torch.inf).amin() if scores.numel() > 0 else zero
    return scores.where(finite, smallest.where(smallest.isfinite(), zero))


class Router(nn.Module):
    """Top-1 router in a low-rank space (MoEC, section 3.1; X-MoE's cosine score).

    r = W_r h; s_i = score(r, e_i); the token goes to a = argmax_i s_i over the experts in play, and the expert's
    output is mixed in with weight α = sigmoid(s_a / τ), τ learned.

    Args:
        dim: model dimension D.
        clusters: the experts and their clusters.
        score: ``cosine`` or ``dot``.
        reduced_dim: K of W_r; 0 compares in the model dimension, without W_r.
        fp32: do the arithmetic in float32 whatever the model's dtype.

    Raises:
        ValueError: unknown score, or a negative ``reduced_dim``.
    """

    min_temperature: Final[float] = 1e-4

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
        self.reduction = nn.Linear(dim, reduced_dim, bias=False) if reduced_dim else None
        self.experts_NK = nn.Parameter(torch.empty(clusters.num_experts, reduced_dim or dim))
        self.temperature = nn.Parameter(torch.tensor([INITIAL_TEMPERATURE]))
        nn.init.orthogonal_(self.experts_NK, gain=0.1)

    @torch.jit.unused
    def forward(self, tokens_TD: Tensor, experts_S: Tensor) -> Routing:
        """Assign each token to one of the experts in play ``experts_S`` (sorted expert numbers)."""
        # autocast would lower the precision of the products below
        precision = torch.autocast(tokens_TD.device.type, enabled=False) if self.fp32 else nullcontext()
        with precision:
            scores_TS, expert_T, mix_T = self.assign(tokens_TD, experts_S)
        return Routing(self.clusters, experts_S, scores_TS, expert_T, mix_T)

    def assign(self, tokens_TD: Tensor, experts_S: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return scores (T, S), expert (T,) and mixing weight (T,); TorchScript reads this, too."""
        dtype = torch.promote_types(tokens_TD.dtype, torch.float32) if self.fp32 else self.experts_NK.dtype
        tokens_TK = tokens_TD.to(dtype)
        if self.reduction is not None:
            tokens_TK = F.linear(tokens_TK, self.reduction.weight.to(dtype))
        experts_SK = self.experts_NK.to(dtype)
        if len(experts_S) < len(experts_SK):
            experts_SK = experts_SK[experts_S]
        scores_TS = replace_non_finite(self.score(tokens_TK, experts_SK))
        best_T, index_T = scores_TS.max(dim=-1)
        mix_T = torch.sigmoid(best_T / self.temperature.to(best_T.dtype).clamp(min=self.min_temperature))
        return scores_TS, experts_S[index_T], mix_T
