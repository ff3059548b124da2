"""What each expert of a model is worth on a part of its data: by its load, by what it alone can do, by the loss."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from moec_fairseq.evaluate.routing import ModelOnData, noted_routers
from moec_fairseq.moe.layer import MoELayer
from moec_fairseq.moe.router import Router, Routing
from moec_fairseq.report.resemblance import Sample, cosine_of_outputs
from moec_fairseq.util.progress import progress_bar

COMPARED = 2048  # tokens of each layer whose outputs of all experts are compared


def loads(run: ModelOnData, subset: str) -> dict[str, Tensor]:
    """Return the share of the tokens of each layer that each expert gets, (N,)."""
    return {name: counts_N / counts_N.sum().clamp(min=1) for name, counts_N in run.loads(subset).items()}


def similarities(run: ModelOnData, subset: str) -> dict[str, Tensor]:
    """Return how similar the outputs of the experts of each layer are, (N, N): see ``cosine_of_outputs``.

    All experts compute the same tokens: a sample of those that the layer gets, whichever expert they are routed to.
    """
    samples = {name: Sample(COMPARED) for name in run.layers}
    with noted_routers(run.layers) as routed:
        for _ in run.routing(subset, "tokens to compare experts on"):
            for name, (tokens_TD, _) in routed.items():
                samples[name].add(tokens_TD)
    return {
        name: cosine_of_outputs(layer.experts, samples[name].tokens_TD, run.num_experts)
        for name, layer in run.layers.items()
    }


def losses_without(run: ModelOnData, subset: str) -> dict[str, Tensor]:
    """Return by how much the loss, in bits per token, increases without each expert of each layer alone, (N,).

    The tokens of an expert that is left out go to that of the other experts of the layer whose score is highest;
    everything else is as before. That takes one pass over the data for each expert of each layer, and one more.
    """
    whole = run.loss(subset, "all experts")
    increases = {name: torch.zeros(run.num_experts, dtype=torch.float64) for name in run.layers}
    with progress_bar(len(run.layers) * run.num_experts, "passes over the data", sys.stdout) as bar:
        for name, layer in run.layers.items():
            for expert in range(run.num_experts):
                with leaving_out(layer, [expert]):
                    increases[name][expert] = run.loss(subset, title=None) - whole
                bar.update()
    return increases


def inheritances(run: ModelOnData, subset: str, kept: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Return how many tokens of each expert of a layer would go to each of those that are kept, (N, K), int64.

    All layers are as they are; the tokens of an expert that is kept stay with it.

    Args:
        run: the model and its data.
        subset: part of the data.
        kept: experts by the name of the layer, each in order.
    """
    totals = {name: torch.zeros(run.num_experts, len(experts), dtype=torch.long) for name, experts in kept.items()}
    for _, records in run.routing(subset, "tokens of experts that go"):
        for name, record in records.items():
            experts = torch.tensor(kept[name], device=record.routing.scores_TS.device)
            heir_T = record.routing.scores_TS[:, experts].argmax(dim=-1)
            pair_T = record.routing.expert_T * len(experts) + heir_T
            totals[name] += torch.bincount(pair_T, minlength=totals[name].numel()).view_as(totals[name]).cpu()
    return totals


@contextmanager
def leaving_out(layer: MoELayer, experts: Sequence[int]) -> Iterator[None]:
    """Let a layer, in this context and at evaluation, send the tokens of some experts to the best of the others.

    Args:
        layer: has others.
        experts: their numbers.
    """
    gone = torch.tensor(experts)
    others = torch.tensor([number for number in range(layer.router.clusters.num_experts) if number not in experts])

    def reroute(router: Router, inputs: tuple[Tensor, Tensor], routing: Routing) -> Routing:
        tokens_TD = inputs[0]
        _, expert_T, gate_T = router.assign(tokens_TD, others.to(tokens_TD.device))
        stays_T = ~torch.isin(routing.expert_T, gone.to(tokens_TD.device))
        expert_T = torch.where(stays_T, routing.expert_T, expert_T)
        return replace(routing, expert_T=expert_T, gate_T=torch.where(stays_T, routing.gate_T, gate_T))

    hook = layer.router.register_forward_hook(reroute)
    try:
        yield
    finally:
        hook.remove()
