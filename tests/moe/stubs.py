"""Parts with an answer known by hand, and small builders, shared by the tests of the method."""

import torch
from hypothesis import settings
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from moec_fairseq.moe.clusters import ExpertClusters
from moec_fairseq.moe.dispatch import LocalDispatcher
from moec_fairseq.moe.expert_dropout import ExpertDropout
from moec_fairseq.moe.experts import Experts, ExpertSublayer
from moec_fairseq.moe.layer import MoELayer
from moec_fairseq.moe.router import Router, Routing
from moec_fairseq.moe.routing_records import RoutingRecord
from moec_fairseq.moe.segments import Segments

# No deadline: the first call of a torch kernel is slow, and so is a busy machine.
quick = settings(deadline=None, max_examples=40)


class StubRouter(nn.Module):
    """Sends token t to active expert number ``choices[t mod len(choices)]``, with a constant gate α."""

    def __init__(self, clusters: ExpertClusters, choices: list[int], alpha: float) -> None:
        super().__init__()
        self.clusters, self.choices, self.alpha = clusters, choices, alpha

    def forward(self, tokens_TD: Tensor, active_ids_S: Tensor) -> Routing:
        choice_T = torch.tensor([self.choices[t % len(self.choices)] for t in range(len(tokens_TD))], dtype=torch.long)
        scores_TS = tokens_TD.new_zeros(len(tokens_TD), len(active_ids_S))
        gate_T = tokens_TD.new_full((len(tokens_TD),), self.alpha)
        return Routing(self.clusters, active_ids_S, scores_TS, active_ids_S[choice_T], gate_T)


class MultiplyingExperts(nn.Module):
    """Expert i multiplies its tokens by ``factors[i]``: it adds ``factors[i] − 1`` times the token."""

    def __init__(self, factors: list[float]) -> None:
        super().__init__()
        self.factors_N = torch.tensor(factors)

    def forward(self, tokens_AD: Tensor, segments: Segments) -> Tensor:
        return tokens_AD * (self.factors_N[segments.expert_A] - 1).unsqueeze(-1)


def segments_of(counts: list[int], device: str = "cpu") -> Segments:
    """Return the segments of a batch in which expert i has ``counts[i]`` tokens."""
    counts_N = torch.tensor(counts, dtype=torch.long)
    return Segments(torch.arange(len(counts)).repeat_interleave(counts_N).to(device), len(counts))


def by_plain_autograd(block: ExpertSublayer, tokens_AD: Tensor, segments: Segments, parameters: None = None) -> Tensor:
    """What ``block`` computes, without the hand-written backward pass: its reference."""
    return block.residual(tokens_AD, segments.expert_A)


def grouped_mm_by_loop(a: Tensor, b: Tensor, ends_N: Tensor) -> Tensor:
    """What torch's grouped product computes, for every dtype and size."""
    ends = [0, *ends_N.tolist()]
    groups = [slice(start, end) for start, end in zip(ends, ends[1:], strict=False)]
    if b.dim() == 3:
        return torch.cat([a[group] @ own for group, own in zip(groups, b, strict=True)])
    return torch.stack([a[:, group] @ b[group] for group in groups])


class Kernels(TorchDispatchMode):
    """Records the operations that launch a kernel on a device: all but views, allocations and questions."""

    ALLOCATIONS = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[torch.dtype, ...]]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.split("::")[1]
        is_view = any(a.alias_info is not None and not a.alias_info.is_write for a in function._schema.arguments)
        any_tensor = any("Tensor" in str(r.type) for r in function._schema.returns)
        if not is_view and name not in self.ALLOCATIONS and any_tensor:
            floating = [a for a in args if isinstance(a, Tensor) and a.is_floating_point()]
            self.calls.append((name, tuple(a.dtype for a in floating)))
        return function(*args, **(kwargs or {}))


def stub_layer(choices: list[int], factors: list[float], alpha: float, **options: object) -> MoELayer:
    """Return a layer whose output can be worked out by hand."""
    clusters = ExpertClusters(len(factors), 1)
    return MoELayer(
        StubRouter(clusters, choices, alpha),
        MultiplyingExperts(factors),
        LocalDispatcher(len(factors)),
        **{"dropout": ExpertDropout(), **options},
    )


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Give every parameter random values: new experts are the identity, which hides mistakes."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=source, dtype=parameter.dtype)
            parameter.copy_(0.5 + 0.1 * noise.abs() if name.endswith("temperature") else noise)


def real_layer(
    dim: int = 4, experts: int = 4, clusters: int = 2, score: str = "cosine", reduced_dim: int = 3, **options: object
) -> MoELayer:
    """Return a small layer of the real parts, its parameters random."""
    groups = ExpertClusters(experts, clusters)
    layer = MoELayer(
        Router(dim, groups, score, reduced_dim),
        Experts(experts, dim, 5, sublayers=2, activation=torch.tanh),
        LocalDispatcher(experts),
        **{"dropout": ExpertDropout(), **options},
    )
    randomise(layer)
    return layer


def active_of(ids_S: Tensor, num_experts: int) -> Tensor:
    """Return 1 for the experts that are active, 0 for the others, (N,)."""
    return torch.isin(torch.arange(num_experts), ids_S).float()


def record_of(
    probabilities: list[list[float]],
    chosen: list[int],
    clusters: ExpertClusters,
    active: list[int] | None = None,
    layer: int = 0,
    overflow: int = 0,
) -> RoutingRecord:
    """Return the float64 record of a layer whose p_{t,i} = softmax(s / 0.07) are the given ones."""
    scores_TS = 0.07 * torch.tensor(probabilities, dtype=torch.float64).log()
    active_ids_S = torch.tensor(range(clusters.num_experts) if active is None else active)
    expert_T = torch.tensor(chosen, dtype=torch.long)
    tokens_per_expert_N = torch.bincount(expert_T, minlength=clusters.num_experts)
    routing = Routing(clusters, active_ids_S, scores_TS, expert_T, torch.full((len(chosen),), 0.5))
    active_N = active_of(active_ids_S, clusters.num_experts)
    return RoutingRecord(layer, routing, tokens_per_expert_N, torch.tensor(overflow), active_N)


def random_records(
    clusters: ExpertClusters,
    tokens: list[int],
    rate: float = 0.0,
    scope: str = "cluster",
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> list[RoutingRecord]:
    """Return the records of layers with these numbers of tokens; scores are leaves that want a gradient."""
    source = torch.Generator().manual_seed(1)
    dropout = ExpertDropout(rate, scope=scope)
    records = []
    for layer, num_tokens in enumerate(tokens):
        active_ids_S = torch.tensor(dropout.active_ids(clusters, layer, 0))
        scores_TS = 0.3 * torch.randn(num_tokens, len(active_ids_S), generator=source, dtype=dtype)
        expert_T = active_ids_S[scores_TS.argmax(dim=-1)]
        counts_N = torch.bincount(expert_T, minlength=clusters.num_experts).to(device)
        scores_TS = scores_TS.to(device).requires_grad_()
        routing = Routing(clusters, active_ids_S.to(device), scores_TS, expert_T.to(device), torch.ones(num_tokens))
        overflow = torch.tensor(num_tokens // 10).to(device)
        active_N = active_of(active_ids_S, clusters.num_experts).to(device)
        records.append(RoutingRecord(layer, routing, counts_N, overflow, active_N, dropout.equal_clusters))
    return records
