"""A model that is none, but for its layers with experts: routers that send each token where a table says."""

from types import SimpleNamespace

import torch
from torch import nn

from moec_fairseq.moe.clusters import ExpertClusters
from moec_fairseq.moe.dispatch import LocalDispatcher
from moec_fairseq.moe.expert_dropout import ExpertDropout
from moec_fairseq.moe.experts import Experts
from moec_fairseq.moe.layer import MoELayer
from moec_fairseq.moe.router import Routing
from moec_fairseq.report.collect import Reading
from tests.batches import dictionary_of

PAD, END = 1, 2


class TableRouter(nn.Module):
    """Token number i goes to expert ``table[i]``; the first dimension of a hidden state is the number of its token."""

    def __init__(self, clusters, table):
        super().__init__()
        self.clusters, self.table = clusters, torch.tensor(table)
        self.expert_embeddings_NK = nn.Parameter(torch.eye(clusters.num_experts))

    def forward(self, tokens_TD, active_ids_S):
        expert_T = self.table[tokens_TD[:, 0].long()]
        scores_TS = tokens_TD.new_zeros(len(tokens_TD), len(active_ids_S))
        return Routing(self.clusters, active_ids_S, scores_TS, expert_T, tokens_TD.new_ones(len(tokens_TD)))


class Criterion:
    """Shows a batch to the layers, and logs how many sentences there were."""

    def eval(self):
        return self

    def __call__(self, model, batch):
        for layer in model.layers:
            name = "src_tokens" if layer.stack == "encoder" else "prev_output_tokens"
            ids_LB = batch["net_input"][name].t()
            hidden_LBD = torch.stack([ids_LB, torch.ones_like(ids_LB)], dim=-1).float()
            padding_mask_BL = (ids_LB == PAD).t()
            layer(hidden_LBD, padding_mask_BL if padding_mask_BL.any() else None)
        return None, None, {"nsentences": len(batch["id"])}

    @staticmethod
    def reduce_metrics(logs):
        pass


class MadeModel:
    """What ``ModelOnData`` is to the report.

    Args:
        symbols: of the dictionary of both stacks, numbered from 4.
        table: the expert of each token.
        clusters: of the experts.
        sides: source and translation of each sentence, as numbers of tokens, END and all.
        size: sentences in a batch.
        stacks: that have a layer with experts.
    """

    def __init__(self, symbols, table, clusters, sides, size=2, stacks=("encoder", "decoder")):
        self.layers = {f"{stack}.layers.2.moe": self._layer(stack, table, clusters) for stack in stacks}
        self.model = SimpleNamespace(
            stack=lambda _: SimpleNamespace(dictionary=dictionary_of(symbols)), layers=list(self.layers.values())
        )
        self.sides, self.size = sides, size

    def _layer(self, stack, table, clusters):
        experts = Experts(clusters.num_experts, 2, 3)
        router, dispatcher = TableRouter(clusters, table), LocalDispatcher(clusters.num_experts)
        return MoELayer(router, experts, dispatcher, ExpertDropout(), stack=stack).eval()

    def criterion(self):
        return Criterion()

    def batches(self, subset, title=""):
        for start in range(0, len(self.sides), self.size):
            sides = self.sides[start : start + self.size]
            sources, translations = ([torch.tensor(side[i]) for side in sides] for i in range(2))
            before = [torch.cat([t[-1:], t[:-1]]) for t in translations]
            yield {
                "id": torch.arange(start, start + len(sides)),
                "net_input": {"src_tokens": padded(sources, left=True), "prev_output_tokens": padded(before)},
                "target": padded(translations),
            }


def padded(rows, left=False):
    ids_BL = torch.full((len(rows), max(map(len, rows))), PAD)
    for ids_L, row in zip(ids_BL, rows, strict=True):
        ids_L[-len(row) :] = row if left else ids_L[-len(row) :]
        if not left:
            ids_L[: len(row)] = row
    return ids_BL


def reading(*arguments, language="", **options):
    """Return a reading of a made model."""
    made = MadeModel(*arguments, **options)
    return Reading(language, "test", lambda: made)


TWO_PAIRS = ExpertClusters(4, 2)
