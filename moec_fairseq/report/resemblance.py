"""Do the experts of a cluster resemble each other? Similarities inside clusters against those between clusters."""

from collections.abc import Iterable, Iterator
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
        unit_NAD = F.normalize(added.view(num_experts, len(chunk_AD), -1), dim=-1)
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
    inside, between = _inside_between(cosine_NN, torch.arange(groups.num_experts), groups)
    p_value = float("nan")
    if 1 < groups.num_clusters < groups.num_experts:
        draw = torch.Generator().manual_seed(seed)
        orders = (torch.randperm(groups.num_experts, generator=draw) for _ in range(GROUPINGS))
        # 1e-6: the same grouping in another order is summed in another order
        higher = sum(d >= inside - between - 1e-6 for d in _differences(cosine_NN, orders, groups))
        p_value = (1 + higher) / (1 + GROUPINGS)
    return Resemblance(what, cosine_NN, groups, inside, between, p_value)


def _differences(cosine_NN: Tensor, orders: Iterable[Tensor], groups: ExpertClusters) -> Iterator[float]:
    for order_N in orders:
        inside, between = _inside_between(cosine_NN, order_N, groups)
        yield inside - between


def _inside_between(cosine_NN: Tensor, order_N: Tensor, groups: ExpertClusters) -> tuple[float, float]:
    """Return the mean of pairs of different experts inside the groups, and between them; NaN where there are none."""
    group_N = groups.cluster_of(order_N)
    same_NN = group_N.unsqueeze(0) == group_N.unsqueeze(1)
    other_NN = ~torch.eye(len(group_N), dtype=torch.bool)
    return float(cosine_NN[same_NN & other_NN].mean()), float(cosine_NN[~same_NN].mean())


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
