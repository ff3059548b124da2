"""One pass over a data set: sums of all that the report shows, so that memory does not grow with the data.

The letters are those of ``docs/design.md``; **K** counts the classes of a feature, **F** features, **X** the classes of
all features in a row.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moec_fairseq.criterions.router_losses import SUMS, on_host
from moec_fairseq.data.gpt2_bpe import Gpt2Model
from moec_fairseq.evaluate.routing import ModelOnData, logged, noted_routers
from moec_fairseq.moe.clusters import ExpertClusters
from moec_fairseq.moe.layer import MoELayer
from moec_fairseq.report.information import Counts
from moec_fairseq.report.resemblance import Resemblance, Sample, resemblances
from moec_fairseq.report.words import CLASS, RANK, WORD, Codes, Feature, Subwords, TokenClasses, WordCounts

COMPARED = 512  # tokens of each layer whose outputs of all experts are compared

# stack -> where fairseq's batch has what it reads, and what it is to say next
READS = {"encoder": ("net_input", "src_tokens"), "decoder": ("net_input", "prev_output_tokens")}
SAYS = {"decoder": ("target",)}
NEXT = "next "  # before the names of features of the token that a decoder is to say
NEXT_FEATURES = (CLASS, RANK, WORD)


@dataclass(frozen=True)
class Reading:
    """What a model reads.

    Attributes:
        language: by which its tokens are told from those of other readings; "" where there is but one.
        subset: part of the data.
        open: returns the model on these data.
        gpt2: spells subwords that are numbers of GPT-2's BPE; None: subwords are text.
    """

    language: str
    subset: str
    open: Callable[[], ModelOnData]
    gpt2: Gpt2Model | None = None


@dataclass(frozen=True)
class Token:
    """A subword of a sentence that is shown.

    Attributes:
        text: as it is spelled, with a blank before it where the text has one.
        experts: where each layer of the stack has sent it.
    """

    text: str
    experts: list[int]


@dataclass
class Sentence:
    """A sentence and its translation; a masked language model has no translations.

    Attributes:
        language: of the reading that it is from.
        stacks: the tokens that each stack with experts reads.
    """

    language: str
    stacks: dict[str, list[Token]] = field(default_factory=dict)


@dataclass(frozen=True)
class Layer:
    """What one layer did.

    Attributes:
        name: such as ``encoder 3``, counted from 1.
        stack: ``encoder`` or ``decoder``.
        clusters: of its experts.
        tokens_N: tokens of each expert.
        classes: by each feature, the names of the classes, and how many tokens of each class each expert got, (N, K).
        resemblances: of its experts.
    """

    name: str
    stack: str
    clusters: ExpertClusters
    tokens_N: Counts
    classes: dict[str, tuple[Sequence[str], Counts]]
    resemblances: list[Resemblance]


@dataclass(frozen=True)
class Survey:
    """What a model did with a data set.

    Attributes:
        layers: with experts.
        sentences: the first ones.
        number: of sentences read.
        logged: what fairseq-validate would log: ``nll_loss``, ``moe_entropy`` and the like.
    """

    layers: list[Layer]
    sentences: list[Sentence]
    number: int
    logged: dict[str, float]


def survey(readings: Sequence[Reading], shown: int, groups: int | None = None) -> Survey:
    """Read all, twice: the first time to learn how frequent each word is.

    Args:
        readings: of one model.
        shown: sentences that are shown of each.
        groups: number of groups that the experts of a model with one cluster are taken to form, in their order, when
            their resemblance is measured; None: one. Others have their clusters.

    Raises:
        ValueError: there are no such data, or no sentence that fits the model.
    """
    counts: dict[str, dict[str, WordCounts]] = {}
    spelling: dict[str, Subwords] = {}
    for reading in readings:
        on = reading.open()
        for stack in _stacks(on):
            dictionary = on.model.stack(stack).dictionary
            spelling[stack] = Subwords(dictionary.symbols, dictionary.nspecial, reading.gpt2)
            counts.setdefault(stack, {})[reading.language] = WordCounts()
        for batch in on.batches(reading.subset, "words"):
            for stack, subwords in spelling.items():
                found = counts[stack][reading.language]
                for ids in _sentences(_part(batch, READS[stack])):
                    found.add(subwords.text(word) for word in subwords.words(ids))
    tokens = {stack: TokenClasses(spelling[stack], counts[stack]) for stack in counts}
    sums = _Sums(tokens, shown)
    for reading in readings:
        on = reading.open()
        sums.read(on, reading)
    return sums.survey(on, groups)


class _Sums:
    """What is kept while a model reads: tables of counts, a sample of tokens, and the first sentences."""

    def __init__(self, tokens: Mapping[str, TokenClasses], shown: int) -> None:
        self.tokens = tokens
        self.shown = shown
        self.features = {stack: _all_features(stack, classes) for stack, classes in tokens.items()}
        # where the classes of each feature begin in a row of all, and how many there are in all
        self.offsets = {
            stack: np.cumsum([0, *(len(feature.labels) for feature in features)])
            for stack, features in self.features.items()
        }
        self.tables: dict[str, Counts] = {}
        self.samples: dict[str, Sample] = {}
        self.sentences: list[Sentence] = []
        self.number = 0
        self.logged: dict[str, float] = {}
        self._sums: dict[str, Any] = {}

    def read(self, on: ModelOnData, reading: Reading) -> None:
        """Take in all that a model does with a part of its data."""
        criterion = on.criterion()
        sentences = [Sentence(reading.language) for _ in range(self.shown)]
        for batch in on.batches(reading.subset, "routing"):
            with torch.no_grad(), noted_routers(on.layers) as routed:
                *_, log = criterion(on.model, batch)
            if SUMS in log:  # of float32, which would round the counts of a large set
                log[SUMS] = log[SUMS].double()
            self._sums = on_host([self._sums, log])
            self.number += len(batch["id"])
            self._take(on, batch, routed, reading.language, sentences)
        self.logged = logged(criterion, self._sums)
        self.sentences += [sentence for sentence in sentences if sentence.stacks]

    def _take(
        self,
        on: ModelOnData,
        batch: Mapping[str, Any],
        routed: Mapping[str, tuple[Tensor, Tensor]],
        language: str,
        sentences: Sequence[Sentence],
    ) -> None:
        for stack, classes in self.tokens.items():
            names = [name for name, layer in on.layers.items() if layer.stack == stack]
            reads = _part(batch, READS[stack])
            codes_TX = self._codes(stack, classes, batch, language)
            experts = {}
            for name in names:
                tokens_TD, expert_T = routed[name]
                experts[name] = expert_T.cpu().numpy()
                assert len(experts[name]) == len(codes_TX), f"{name} has routed other tokens than {stack} reads"
                self._count(name, on.layers[name], codes_TX, experts[name])
                self.samples.setdefault(name, Sample(COMPARED)).add(tokens_TD)
            in_order = _by_sentence(reads, [experts[name] for name in names])
            for number, ids, routes in zip(batch["id"].tolist(), _sentences(reads), in_order, strict=True):
                if number < len(sentences):
                    sentences[number].stacks[stack] = _tokens(classes.subwords, ids, routes)

    def _codes(self, stack: str, classes: TokenClasses, batch: Mapping[str, Any], language: str) -> Codes:
        """Return where each token is counted in a row of the classes of all features, (T, F)."""
        parts = [_classed(classes, _part(batch, READS[stack]), language)]
        if stack in SAYS:
            names = [feature.name for feature in classes.features]
            following = _classed(classes, _part(batch, SAYS[stack]), language)
            parts.append(following[:, [names.index(name) for name in NEXT_FEATURES]])
        return np.concatenate(parts, axis=1) + self.offsets[stack][:-1]

    def _count(self, name: str, layer: MoELayer, codes_TF: Codes, expert_T: Codes) -> None:
        width = int(self.offsets[layer.stack][-1])
        table = self.tables.setdefault(name, np.zeros((layer.router.clusters.num_experts, width), dtype=np.int64))
        places = (expert_T[:, None] * width + codes_TF).reshape(-1)
        table += np.bincount(places, minlength=table.size).reshape(table.shape)

    def survey(self, on: ModelOnData, groups: int | None) -> Survey:
        """Return what has become of it; the model, at its last data, says the rest."""
        layers = []
        for name, layer in on.layers.items():
            clusters = layer.router.clusters
            nominal = clusters
            if clusters.num_clusters == 1 and groups and clusters.num_experts % groups == 0:
                nominal = ExpertClusters(clusters.num_experts, groups)
            starts = self.offsets[layer.stack]
            classes = {
                feature.name: (feature.labels, self.tables[name][:, start:end])
                for feature, start, end in zip(self.features[layer.stack], starts, starts[1:], strict=False)
            }
            layers.append(
                Layer(
                    _layer_name(name, layer),
                    layer.stack,
                    clusters,
                    classes[CLASS][1].sum(axis=1),
                    classes,
                    resemblances(layer, self.samples[name].tokens_TD, nominal),
                )
            )
        return Survey(layers, self.sentences, self.number, self.logged)


def _stacks(on: ModelOnData) -> list[str]:
    """Return the stacks that have experts."""
    return list(dict.fromkeys(layer.stack for layer in on.layers.values()))


def _layer_name(name: str, layer: MoELayer) -> str:
    found = re.search(r"layers\.(\d+)\.", name)
    assert found, f"{name} is in no layer"
    return f"{layer.stack} {int(found[1]) + 1}"


def _all_features(stack: str, classes: TokenClasses) -> list[Feature]:
    """Return the features of what a stack reads, and, for a decoder, of what it is to say."""
    following = [feature for feature in classes.features if feature.name in NEXT_FEATURES] if stack in SAYS else []
    return [*classes.features, *(Feature(NEXT + feature.name, feature.labels) for feature in following)]


def _part(batch: Any, path: Sequence[str]) -> Tensor:
    for key in path:
        batch = batch[key]
    return batch.cpu()


def _classed(classes: TokenClasses, ids_BL: Tensor, language: str) -> Codes:
    """Return the codes of all tokens, in the order in which routers get them: by position, then by sentence."""
    is_token_BL = _is_token(ids_BL)
    codes = np.zeros((*ids_BL.shape, len(classes.features)), dtype=np.int64)
    for row, is_token_L, ids in zip(codes, is_token_BL, _sentences(ids_BL), strict=True):
        row[is_token_L] = classes.codes(ids, language)
    return codes.swapaxes(0, 1)[is_token_BL.T]


def _by_sentence(ids_BL: Tensor, experts: Sequence[Codes]) -> list[Codes]:
    """Return the experts of each sentence's tokens, (tokens, layers), from those in the order of routers."""
    is_token_BL = _is_token(ids_BL)
    routes = np.zeros((*ids_BL.shape, len(experts)), dtype=np.int64)
    for layer, expert_T in enumerate(experts):
        grid_LB = np.zeros(is_token_BL.T.shape, dtype=np.int64)
        grid_LB[is_token_BL.T] = expert_T
        routes[:, :, layer] = grid_LB.T
    return [row[is_token_L] for row, is_token_L in zip(routes, is_token_BL, strict=True)]


def _tokens(subwords: Subwords, ids: Sequence[int], routes: Codes) -> list[Token]:
    """Return the tokens of a sentence for readers."""
    return [Token(text, experts.tolist()) for text, experts in zip(subwords.shown(ids), routes, strict=True)]


PADDING = 1  # fairseq's number of it, in every dictionary


def _is_token(ids_BL: Tensor) -> NDArray[np.bool_]:
    return (ids_BL != PADDING).numpy()


def _sentences(ids_BL: Tensor) -> list[list[int]]:
    """Return the tokens of each sentence, without padding."""
    return [row[row != PADDING].tolist() for row in ids_BL]
