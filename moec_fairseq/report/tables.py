"""From what was counted to the numbers that are shown: tables, the same for the page and for CSV files."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moec_fairseq.report.collect import NEXT, Layer, Survey
from moec_fairseq.report.information import Counts, Information, by_cluster, entropy, information
from moec_fairseq.report.words import OTHERS, WORD

Row = dict[str, Any]
FEWEST = 5  # times that an expert has seen a word that is typical of it
WORDS = (WORD, NEXT + WORD)  # features that have a table of their own
TYPICAL = 12  # words shown of each expert


@dataclass(frozen=True)
class Reported:
    """A model that is reported on.

    Attributes:
        name: of the model.
        signature: seed, experts, updates and the like, by name.
        read: what it has read, such as ``en-de/test``.
        survey: what it did.
        information: of experts and clusters about each feature, by layer.
        train: what was logged in training, by update; empty without a log.
        valid: likewise, at validation.
    """

    name: str
    signature: dict[str, Any]
    read: str
    survey: Survey
    information: dict[str, dict[str, Sequence[Information]]]
    train: dict[int, dict[str, float]]
    valid: dict[int, dict[str, float]]


def information_of(survey: Survey) -> dict[str, dict[str, Sequence[Information]]]:
    """Return what experts and clusters say about each feature that has more than one class, by layer and feature."""
    return {
        layer.name: {
            name: information(counts_NK, layer.clusters.num_clusters)
            for name, (_, counts_NK) in layer.classes.items()
            if np.count_nonzero(counts_NK.sum(axis=0)) > 1
        }
        for layer in survey.layers
    }


def tables(models: Sequence[Reported]) -> dict[str, list[Row]]:
    """Return all tables by name, each with a row, by column, for whatever there is of any model."""
    kinds = {
        "models": _model,
        "layers": _layers,
        "loads": _loads,
        "information": _information,
        "classes": _classes,
        "words": _words,
        "resemblance": _resemblance,
        "curves": _curves,
    }
    return {
        name: [{"model": model.name} | row for model in models for row in rows(model)] for name, rows in kinds.items()
    }


def _model(model: Reported) -> Iterator[Row]:
    yield {"set": model.read, "sentences": model.survey.number} | model.signature | model.survey.logged


def _per_cent(part: float, whole: float) -> float:
    return 100 * part / whole if whole else math.nan


def _layers(model: Reported) -> Iterator[Row]:
    for layer in model.survey.layers:
        tokens_N, tokens = layer.tokens_N, int(layer.tokens_N.sum())
        tokens_C = tokens_N.reshape(layer.clusters.num_clusters, -1).sum(axis=1)
        yield {
            "layer": layer.name,
            "experts": len(tokens_N),
            "clusters": len(tokens_C),
            "tokens": tokens,
            "busiest expert %": _per_cent(tokens_N.max(), tokens),
            "idlest expert %": _per_cent(tokens_N.min(), tokens),
            "unused experts": int((tokens_N == 0).sum()),
            "entropy of the load (bits)": entropy(tokens_N),
            "at most": math.log2(len(tokens_N)),
            "busiest cluster %": _per_cent(tokens_C.max(), tokens),
            "idlest cluster %": _per_cent(tokens_C.min(), tokens),
        }


def _loads(model: Reported) -> Iterator[Row]:
    for layer in model.survey.layers:
        for expert, tokens in enumerate(layer.tokens_N.tolist()):
            yield {
                "layer": layer.name,
                "cluster": expert // layer.clusters.cluster_size,
                "expert": expert,
                "tokens": tokens,
                "share %": _per_cent(tokens, layer.tokens_N.sum()),
            }


def _information(model: Reported) -> Iterator[Row]:
    for layer, features in model.information.items():
        for feature, found in features.items():
            for one in found:
                yield {
                    "layer": layer,
                    "about": feature,
                    "from the": one.of,
                    "bits": one.bits,
                    "shuffled": one.shuffled,
                    "highest shuffled": one.highest,
                    "entropy of the classes (bits)": one.of_class,
                    "known beyond chance %": 100 * one.share,
                }


def _groups(layer: Layer, counts_NK: Counts) -> Iterator[tuple[str, Counts]]:
    """Yield clusters, where there are several, and experts, with the tokens of each class that they got."""
    if layer.clusters.num_clusters > 1:
        for cluster, counts_K in enumerate(by_cluster(counts_NK, layer.clusters.num_clusters)):
            yield f"cluster {cluster}", counts_K
    for expert, counts_K in enumerate(counts_NK):
        yield f"expert {expert}", counts_K


def _classes(model: Reported) -> Iterator[Row]:
    for layer in model.survey.layers:
        for feature, (labels, counts_NK) in layer.classes.items():
            if feature in WORDS:
                continue
            total_K = counts_NK.sum(axis=0)
            for group, counts_K in _groups(layer, counts_NK):
                for label, count, total in zip(labels, counts_K.tolist(), total_K.tolist(), strict=True):
                    here, everywhere = _per_cent(count, counts_K.sum()), _per_cent(total, total_K.sum())
                    yield {
                        "layer": layer.name,
                        "of": group,
                        "feature": feature,
                        "class": label,
                        "tokens": count,
                        "share %": here,
                        "of all tokens %": everywhere,
                        "ratio": here / everywhere if everywhere else math.nan,
                    }


def typical(labels: Sequence[str], counts_W: Counts, total_W: Counts) -> list[tuple[str, int, float]]:
    """Return the words that tell a group of experts from others, those first that tell most.

    Args:
        labels: the words; ``OTHERS`` is none.
        counts_W: how many tokens of each the group got.
        total_W: and all experts together.

    Returns:
        words with p(w | group) > p(w), their tokens, and p(w | group) / p(w), in the order of p(w | group) · log p(w |
        group) / p(w), what each adds to the divergence of the group from all.
    """
    here, everywhere = counts_W / max(1, counts_W.sum()), total_W / max(1, total_W.sum())
    ratio = np.divide(here, everywhere, out=np.zeros_like(here), where=everywhere > 0)
    adds = here * np.log(np.maximum(ratio, np.finfo(float).tiny))
    found = [
        (labels[i], int(counts_W[i]), float(ratio[i]))
        for i in np.argsort(-adds, kind="stable")
        if adds[i] > 0 and counts_W[i] >= FEWEST and labels[i] != OTHERS
    ]
    return found[:TYPICAL]


def _words(model: Reported) -> Iterator[Row]:
    for layer in model.survey.layers:
        for feature in WORDS:
            labels, counts_NW = layer.classes.get(feature, ([], np.zeros((0, 0), dtype=np.int64)))
            for group, counts_W in _groups(layer, counts_NW) if len(counts_NW) else ():
                for word, count, ratio in typical(labels, counts_W, counts_NW.sum(axis=0)):
                    yield {
                        "layer": layer.name,
                        "of": group,
                        "feature": feature,
                        "word": word,
                        "tokens": count,
                        "times as frequent": ratio,
                    }


def _resemblance(model: Reported) -> Iterator[Row]:
    for layer in model.survey.layers:
        for one in layer.resemblances:
            yield {
                "layer": layer.name,
                "cosine of": one.what,
                "groups": one.groups.num_clusters,
                "the groups are": "clusters" if one.groups == layer.clusters else "by number, for comparison",
                "inside": one.inside,
                "between": one.between,
                "difference": one.inside - one.between,
                "p": one.p_value,
            }


def _curves(model: Reported) -> Iterator[Row]:
    for when, history in (("training", model.train), ("validation", model.valid)):
        for update, values in sorted(history.items()):
            for name, value in values.items():
                yield {"when": when, "update": update, "measure": name.removeprefix("valid_"), "value": value}


def shown_words(rows: Iterable[Row]) -> list[Row]:
    """Return the table of words with one row for each group of experts, the words in one cell."""
    found: dict[tuple[str, ...], Row] = {}
    for row in rows:
        key = {column: row[column] for column in ("model", "layer", "of", "feature")}
        joined = found.setdefault(tuple(key.values()), key | {"typical words": ""})
        joined["typical words"] += (
            f"{', ' if joined['typical words'] else ''}{row['word']} ({row['times as frequent']:.1f}×)"
        )
    return list(found.values())
