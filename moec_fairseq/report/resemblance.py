"""Do the experts of a cluster resemble each other? Similarities inside clusters against those between clusters."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from moec_fairseq.moe.clusters import ExpertClusters
from moec_fairseq.moe.experts import Experts
from moec_fairseq.moe.layer import MoELayer

GROUPINGS = 999  # random ones, with which the clusters are compared
CHUNK = 64  # tokens that all experts compute at a time


@dataclass(frozen=True)
class Resemblance:
    """How similar the experts of one layer are.

    Attributes:
        what: is compared: ``router embeddings``, ``weights`` or ``outputs``.
        cosine_NN: mean cosine of each pair of experts; float32, on the CPU.
        groups: that the experts are taken to form: their clusters; or, of a model without clusters, those of a model
            that it is compared with.
        inside: mean over the pairs of different experts of the same group; NaN if there are none.
        between: mean over the pairs of experts of different groups; NaN if there are none.
        p_value: share of groupings at random, of the same sizes, whose inside − between is at least as high; NaN if
            there is only one grouping.
    """

    what: str
    cosine_NN: Tensor
    groups: ExpertClusters
    inside: float
    between: float
    p_value: float


def resemblances(layer: MoELayer, tokens_TD: Tensor, groups: ExpertClusters) -> list[Resemblance]:
    """Compare the experts of a layer in three ways.

    Args:
        layer: at evaluation, all of whose experts are in this process.
        tokens_TD: a sample of what it gets.
        groups: see ``Resemblance``.
    """
    experts = layer.experts
    cosines = {
        "router embeddings": cosine(layer.router.expert_embeddings_NK),
        "weights": cosine_of_weights(experts),
        "outputs": cosine_of_outputs(experts, tokens_TD, len(layer.router.expert_embeddings_NK)),
    }
    return [compare(what, cosine_NN, groups) for what, cosine_NN in cosines.items()]


def cosine(rows_NK: Tensor) -> Tensor:
    """Return the cosine of each pair of rows, (N, N); 0 for a row of zeros."""
    unit_NK = F.normalize(rows_NK.detach().float(), dim=-1)
    return (unit_NK @ unit_NK.t()).cpu()


@torch.no_grad()
def cosine_of_weights(experts: Experts) -> Tensor:
    """Return the cosine of the weights of each pair of experts, all their matrices as one vector, (N, N).

    Biases and layer norms stay out: the latter begin as ones in all experts, which are then similar for no reason.
    """
    products = [
        (rows_NK := parameter.flatten(1).float()) @ rows_NK.t()
        for parameter in experts.parameters()
        if parameter.dim() > 2
    ]
    product_NN = torch.stack(products).sum(dim=0)
    norm_N = product_NN.diagonal().sqrt().clamp(min=torch.finfo(torch.float32).tiny)
    return (product_NN / norm_N / norm_N.unsqueeze(1)).cpu()


@torch.no_grad()
def cosine_of_outputs(experts: Experts, tokens_TD: Tensor, num_experts: int) -> Tensor:
    """Return the cosine of what each pair of experts adds to a token, E_i(h) − h, as mean over the tokens, (N, N).

    Every expert computes every token, whatever the router would do. Without tokens, all are 0.
    """
    total_NN = torch.zeros(num_experts, num_experts, device=tokens_TD.device)
    for chunk_AD in tokens_TD.split(CHUNK):
        expert = torch.arange(num_experts, device=chunk_AD.device).repeat_interleave(len(chunk_AD))
        added = experts.residual(chunk_AD.repeat(num_experts, 1), expert).float()
        unit_NAD = F.normalize(added.view(num_experts, *chunk_AD.shape), dim=-1)
        total_NN += torch.einsum("iad,jad->ij", unit_NAD, unit_NAD)
    return (total_NN / max(1, len(tokens_TD))).cpu()


def compare(what: str, cosine_NN: Tensor, groups: ExpertClusters, seed: int = 0) -> Resemblance:
    """Compare similarities inside groups with those between groups.

    Args:
        what: they are of.
        cosine_NN: of each pair of experts.
        groups: of the experts.
        seed: of the random groupings.
    """
    draw = torch.Generator().manual_seed(seed)
    random_GN = torch.rand(GROUPINGS, groups.num_experts, generator=draw).argsort(dim=-1)
    group_GN = groups.cluster_of(torch.cat([torch.arange(groups.num_experts).unsqueeze(0), random_GN]))
    inside_G, between_G = _inside_between(cosine_NN, F.one_hot(group_GN, groups.num_clusters))
    difference, *others = (inside_G - between_G).tolist()
    # 1e-6: the same grouping in another order is summed in another order
    higher = sum(other >= difference - 1e-6 for other in others)
    p_value = math.nan if math.isnan(difference) else (1 + higher) / (1 + GROUPINGS)
    return Resemblance(what, cosine_NN, groups, float(inside_G[0]), float(between_G[0]), p_value)


def _inside_between(cosine_NN: Tensor, members_GNC: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of pairs of different experts inside groups, and between them, (G,); NaN where there are none.

    Args:
        cosine_NN: of each pair.
        members_GNC: for each of several groupings, 1 for the experts of each group.
    """
    members_GNC = members_GNC.double()
    sums_G = (members_GNC * (cosine_NN.double() @ members_GNC)).sum(dim=(-2, -1))  # of all pairs of the same group
    pairs_G = members_GNC.sum(dim=-2).square().sum(dim=-1)
    inside_G = (sums_G - cosine_NN.double().trace()) / (pairs_G - len(cosine_NN))
    between_G = (cosine_NN.double().sum() - sums_G) / (cosine_NN.numel() - pairs_G)
    nothing = torch.full_like(sums_G, torch.nan)  # where rounding leaves something of 0 to be divided by 0
    return inside_G.where(pairs_G > len(cosine_NN), nothing), between_G.where(pairs_G < cosine_NN.numel(), nothing)


class Sample:
    """So many tokens of a stream, each token with the same chance; memory does not grow with the stream.

    Args:
        size: tokens kept.
        seed: of the choice.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size = size
        self._draw = torch.Generator().manual_seed(seed)
        self._lots = torch.empty(0)
        self._tokens: list[Tensor] = []

    def add(self, tokens_TD: Tensor) -> None:
        """Draw a lot for each token, and keep those with the highest of all."""
        lots_T = torch.rand(len(tokens_TD), generator=self._draw)
        if len(self._lots) == self.size:
            chosen_T = (lots_T > self._lots.min()).nonzero().squeeze(1)
            lots_T, tokens_TD = lots_T[chosen_T], tokens_TD[chosen_T.to(tokens_TD.device)]
        lots, kept = torch.cat([self._lots, lots_T]).topk(min(self.size, len(self._lots) + len(lots_T)))
        self._tokens = [torch.cat([*self._tokens, tokens_TD])[kept.to(tokens_TD.device)]]
        self._lots = lots

    @property
    def tokens_TD(self) -> Tensor:
        """Return those that are kept now."""
        return self._tokens[0]
