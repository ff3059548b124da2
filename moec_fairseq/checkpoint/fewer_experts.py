"""A model with fewer experts: which ones stay, and what becomes of the others."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from moec_fairseq.checkpoint.sharded import Checkpoint, assemble
from moec_fairseq.checkpoint.state import EMBEDDINGS, MARK, State, group, leave_out_averages
from moec_fairseq.checkpoint.tools import write_ranks
from moec_fairseq.evaluate.routing import ModelOnData
from moec_fairseq.evaluate.worth import inheritances, loads, losses_without, similarities
from moec_fairseq.moe.clusters import ExpertClusters
from moec_fairseq.moe.expert_dropout import ExpertDropout
from moec_fairseq.moe.losses import INTRA_FORMS

# experts of a layer -> the one that goes first
First = Callable[[list[int]], int]


@dataclass(frozen=True)
class Choice:
    """How experts are chosen.

    Attributes:
        by: ``load``: those with the fewest tokens go; ``loss``: those without which the loss increases least;
            ``similarity``: of the two most similar ones, that with fewer tokens, again and again.
        scope: ``cluster``: equally many of each cluster stay; ``layer``: all of a layer compete, and then form one
            cluster.
        merge: experts that go become part of those that get most of their tokens.
    """

    by: str = "load"
    scope: str = "cluster"
    merge: bool = False

    def sizes(self, clusters: ExpertClusters) -> list[int]:
        """Return how many experts can be kept, in ascending order."""
        count, per = clusters.num_experts, clusters.num_clusters if self.scope == "cluster" else 1
        return [kept for kept in range(1, count + 1) if kept % per == 0 or kept < per]

    def clusters_of(self, clusters: ExpertClusters, keep: int) -> ExpertClusters:
        """Return the clusters of ``keep`` experts; below one for each cluster, each is a cluster of its own."""
        return ExpertClusters(keep, min(keep, clusters.num_clusters) if self.scope == "cluster" else 1)

    def kept(self, clusters: ExpertClusters, keep: int, first: First) -> list[int]:
        """Return the numbers of the experts of a layer that stay, in order.

        Args:
            clusters: of the layer.
            keep: how many; one of ``sizes``.
            first: of some experts, returns the one that goes first.
        """
        size, count = clusters.cluster_size, clusters.num_clusters
        remaining = list(range(clusters.num_experts))
        if self.scope == "cluster":
            members = [remaining[start : start + size] for start in range(0, len(remaining), size)]
            remaining = [expert for own in members for expert in _reduced(own, max(1, keep // count), first)]
        return _reduced(remaining, keep, first)


def _reduced(experts: list[int], size: int, first: First) -> list[int]:
    while len(experts) > size:
        gone = first(experts)
        experts = [expert for expert in experts if expert != gone]
    return experts


def of_least(worth_N: Tensor) -> First:
    """Return what finds the expert of the least worth; of equal ones the last."""
    return lambda experts: min(reversed(experts), key=lambda expert: float(worth_N[expert]))


def of_most_similar(cosine_NN: Tensor, load_N: Tensor) -> First:
    """Return what finds the two most similar experts, and of these the one with fewer tokens, or the last."""

    def first(experts: list[int]) -> int:
        pair = max(combinations(experts, 2), key=lambda pair: float(cosine_NN[pair]))
        return of_least(load_N)(list(pair))

    return first


class Pruning:
    """A model and the data on which its experts are compared; what has to be computed is computed once.

    Args:
        source: the checkpoint.
        choice: how experts are chosen.
        open: a model, one file, with the data; None: that of the checkpoint.
        subset: part of the data.
    """

    def __init__(
        self, source: Checkpoint, choice: Choice, open: Callable[[Path | None], ModelOnData], subset: str
    ) -> None:
        self.source, self.choice, self.subset, self.open = source, choice, subset, open
        options = group(source.load(0), "model")
        self.clusters = ExpertClusters(source.num_experts, int(options.get("moec_cluster_count", 1)))

    @cached_property
    def run(self) -> ModelOnData:
        """The model on its data."""
        return self.open(None)

    @cached_property
    def _firsts(self) -> dict[str, First]:
        """For each layer, what finds the expert that goes first."""
        if self.choice.by == "loss":
            return {name: of_least(worth_N) for name, worth_N in losses_without(self.run, self.subset).items()}
        load = loads(self.run, self.subset)
        if self.choice.by == "load":
            return {name: of_least(load_N) for name, load_N in load.items()}
        cosines = similarities(self.run, self.subset)
        return {name: of_most_similar(cosines[name], load[name]) for name in load}

    def kept(self, keep: int) -> dict[str, list[int]]:
        """Return the experts that stay, by the name of the layer."""
        return {name: self.choice.kept(self.clusters, keep, first) for name, first in self._firsts.items()}

    def pruned(self, keep: int) -> State:
        """Return the checkpoint with so many experts; with all of them, every tensor is as it was."""
        state = assemble(self.source, range(self.source.num_experts))
        leave_out_averages(state)
        if keep == self.source.num_experts and self.choice.scope == "cluster":
            return state
        kept = self.kept(keep) if keep < self.source.num_experts else {}
        taken = inheritances(self.run, self.subset, kept) if self.choice.merge and kept else {}
        for layer, experts in kept.items():
            if layer in taken:
                merge_experts(state["model"], layer, experts, taken[layer])
            take_experts(state["model"], layer, experts)
        _set_options(state, self.choice.clusters_of(self.clusters, keep))
        return state

    def write(self, keep: int, path: Path) -> list[Path]:
        """Write the checkpoint with so many experts as one file; return it."""
        return write_ranks(self.source, path, 1, lambda _: self.pruned(keep))


def take_experts(model: dict[str, Tensor], layer: str, experts: Sequence[int]) -> None:
    """Leave the other experts out of a layer, in place."""
    for name in _of_experts(model, layer):
        model[name] = model[name][list(experts)]


def merge_experts(model: dict[str, Tensor], layer: str, kept: Sequence[int], tokens_NK: Tensor) -> None:
    """Make each expert that is kept the mean of itself and those that it inherits from, weighted by their tokens.

    Those are the experts most of whose tokens go to it. The order of the hidden units of an expert is arbitrary, so
    they are first put into that order in which their weights resemble those of the expert that is kept most.

    Args:
        model: parameters; those of the layer change in place.
        layer: its name.
        kept: experts.
        tokens_NK: see ``inheritances``.
    """
    names = _of_experts(model, layer)
    values = {name: model[name].float().clone() for name in names}
    for column, expert in enumerate(kept):
        weights = {other: int(tokens_NK[other].sum()) for other in range(len(tokens_NK)) if other not in kept}
        others = [other for other, w in weights.items() if w and int(tokens_NK[other].argmax()) == column]
        if not others:
            continue
        own = int(tokens_NK[expert].sum())
        total = own + sum(weights[other] for other in others)
        sums = {name: own * values[name][expert] for name in names}
        for other in others:
            aligned = _aligned({name: values[name][other] for name in names}, {n: values[n][expert] for n in names})
            for name in names:
                sums[name] = sums[name] + weights[other] * aligned[name]
        for name in names:
            # apart from the file, whose tensors may be in memory that is shared with it
            model[name] = model[name].clone()
            model[name][expert] = (sums[name] / total).to(model[name].dtype)


def _aligned(expert: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an expert with the hidden units of each block in the order most like that of another expert."""
    result = dict(expert)
    for w1 in [name for name in expert if name.endswith(".w1_NFD")]:
        b1, w2 = (w1.replace("w1_NFD", other) for other in ("b1_NF", "w2_NDF"))
        likeness_FF = target[w1] @ expert[w1].t() + target[w2].t() @ expert[w2]
        likeness_FF += target[b1].unsqueeze(1) * expert[b1].unsqueeze(0)
        _, order = linear_sum_assignment(likeness_FF.numpy(), maximize=True)
        order_F = torch.as_tensor(order)
        result |= {w1: expert[w1][order_F], b1: expert[b1][order_F], w2: expert[w2][:, order_F]}
    return result


def _of_experts(model: Mapping[str, Tensor], layer: str) -> list[str]:
    """Return the names of the parameters of a layer that are stacked over experts."""
    return [name for name in model if name.startswith(f"{layer}{MARK}") or name == f"{layer}{EMBEDDINGS}"]


def _set_options(state: State, clusters: ExpertClusters) -> None:
    """Say how many experts there are; switch off what clusters of so few do not allow."""
    model, criterion = group(state, "model"), group(state, "criterion")
    model.update(moe_expert_count=clusters.num_experts, moec_cluster_count=clusters.num_clusters)
    if criterion.get("moec_variance") not in INTRA_FORMS:
        return
    dropout = ExpertDropout(
        model.get("moec_expert_dropout", 0.0), scope=model.get("moec_expert_dropout_scope", "cluster")
    )
    if dropout.fewest_active_in_a_cluster(clusters) < 2:
        model["moec_expert_dropout"] = 0.0
    if replace(dropout, rate=0.0).fewest_active_in_a_cluster(clusters) < 2:
        criterion["moec_variance"] = "none"
