"""What is collected where routers are set by hand."""

import pytest

from moec_fairseq.moe.clusters import ExpertClusters
from moec_fairseq.report import collect
from moec_fairseq.report.collect import survey
from moec_fairseq.report.tables import information_of

from .made import END, TWO_PAIRS, reading

SYMBOLS = ("▁a", "▁b", "c", ".")  # 4, 5, 6, 7
TABLE = [9, 9, 3, 9, 0, 1, 1, 2]  # a: expert 0, b and c: 1, full stop: 2, end: 3; 9 would fail
SENTENCES = [
    ([4, 5, 6, END], [5, 7, END]),  # a bc </s> -> b . </s>
    ([4, END], [4, 4, 5, 7, END]),
    ([5, 7, END], [4, END]),
]


@pytest.fixture
def found():
    return survey([reading(SYMBOLS, TABLE, TWO_PAIRS, SENTENCES)], shown=2)


def counts(layer, feature):
    """Return where the tokens of each class went, without classes that no token has."""
    labels, counts_NK = layer.classes[feature]
    return {label: row.tolist() for label, row in zip(labels, counts_NK.T, strict=True) if row.any()}


def test_loads(found):
    encoder, decoder = found.layers
    assert (encoder.name, decoder.name, encoder.clusters, found.number) == ("encoder 3", "decoder 3", TWO_PAIRS, 3)
    assert encoder.tokens_N.tolist() == [2, 3, 1, 3]
    assert decoder.tokens_N.tolist() == [3, 2, 2, 3]


def test_classes_of_tokens(found):
    encoder, decoder = found.layers
    assert counts(encoder, "word") == {
        "a": [2, 0, 0, 0], "bc": [0, 2, 0, 0], "b": [0, 1, 0, 0], ".": [0, 0, 1, 0], "</s>": [0, 0, 0, 3],
    }  # fmt: skip
    assert counts(encoder, "word class") == {
        "frequent word": [2, 3, 0, 0], "punctuation": [0, 0, 1, 0], "special symbol": [0, 0, 0, 3],
    }  # fmt: skip
    assert counts(encoder, "position") == {"1": [2, 1, 0, 0], "2": [0, 1, 1, 1], "3 to 4": [0, 1, 0, 2]}
    assert counts(encoder, "part of the word") == {
        "whole word": [2, 1, 1, 3], "beginning": [0, 1, 0, 0], "rest": [0, 1, 0, 0],
    }  # fmt: skip
    # what the decoder has read when it is to say a word: the end of nothing, then the word before
    assert counts(decoder, "position")["1"] == [0, 0, 0, 3]
    assert counts(decoder, "next word") == {
        "b": [1, 0, 0, 1], ".": [0, 2, 0, 0], "a": [1, 0, 0, 2], "</s>": [1, 0, 2, 0],
    }  # fmt: skip
    assert "next word" not in encoder.classes and "next position" not in decoder.classes


def test_information_that_experts_have(found):
    information = information_of(found)["encoder 3"]
    of_expert, of_cluster = information["word class"]
    # experts 2 and 3 have a class each, 0 and 1 have words: the class is known from the expert, and not all of it from
    # the cluster, which has letters (5 of 9), or punctuation and the end (1 and 3)
    assert [of_expert.bits, of_expert.of_class] == pytest.approx([1.3516] * 2, abs=1e-4)
    assert of_cluster.bits == pytest.approx(0.9911, abs=1e-4)
    assert "language" not in information  # there is one


def test_sentences_that_are_shown(found):
    first, second = found.sentences
    assert [(token.text, token.experts) for token in first.stacks["encoder"]] == [
        ("a", [0]), (" b", [1]), ("c", [1]), (" </s>", [3]),
    ]  # fmt: skip
    assert "".join(token.text for token in second.stacks["decoder"]) == "</s> a a b."
    assert [token.experts for token in second.stacks["decoder"]] == [[3], [0], [0], [1], [2]]


@pytest.mark.parametrize("size", [1, 3])
def test_batches_do_not_matter(found, size):
    other = survey([reading(SYMBOLS, TABLE, TWO_PAIRS, SENTENCES, size=size)], shown=2)
    assert other.sentences == found.sentences
    for one, two in zip(found.layers, other.layers, strict=True):
        assert one.classes.keys() == two.classes.keys()
        assert all(counts(one, feature) == counts(two, feature) for feature in one.classes)


def test_languages_are_told_apart():
    by_language = {"en-de": [9, 9, 0, 9, 0, 1, 1, 0], "en-fr": [9, 9, 2, 9, 2, 3, 3, 2]}
    readings = [reading(SYMBOLS, t, TWO_PAIRS, SENTENCES, language=name) for name, t in by_language.items()]
    found = survey(readings, shown=1)
    assert [sentence.language for sentence in found.sentences] == ["en-de", "en-fr"] and found.number == 6
    encoder = found.layers[0]
    assert counts(encoder, "language") == {"en-de": [6, 3, 0, 0], "en-fr": [0, 0, 6, 3]}
    of_expert, of_cluster = information_of(found)["encoder 3"]["language"]
    assert [of_expert.bits, of_cluster.bits] == pytest.approx([1, 1]) and of_cluster.highest < 0.6


def test_a_model_without_a_decoder():
    found = survey([reading(SYMBOLS, TABLE, TWO_PAIRS, SENTENCES, stacks=("encoder",))], shown=1)
    assert [layer.stack for layer in found.layers] == ["encoder"] and list(found.sentences[0].stacks) == ["encoder"]


@pytest.mark.parametrize("clusters, groups, expected", [
    (1, 2, 2),  # plain MoE beside a model of two clusters: the control
    (1, None, 1),
    (1, 3, 1),  # which 4 experts cannot form
    (4, 2, 4),
])  # fmt: skip
def test_groups_of_plain_moe_are_those_of_the_other_model(clusters, groups, expected):
    made = reading(SYMBOLS, TABLE, ExpertClusters(4, clusters), SENTENCES)
    for layer in survey([made], 0, groups).layers:
        assert {one.groups.num_clusters for one in layer.resemblances} == {expected}
        assert {one.what: one.between for one in layer.resemblances}["router embeddings"] == pytest.approx(
            0 if expected > 1 else float("nan"), nan_ok=True
        )


def test_what_is_kept_does_not_grow_with_the_text(monkeypatch):
    monkeypatch.setattr(collect, "COMPARED", 5)
    seen = []

    class Watched(collect._Sums):
        def read(self, on, reading):
            super().read(on, reading)
            tensors = [sample.tokens_TD.numel() for sample in self.samples.values()]
            tables = [table.size for table in self.tables.values()]
            seen.append((tensors, tables, len(self.sentences), self._sums.keys()))

    monkeypatch.setattr(collect, "_Sums", Watched)
    for times in (1, 20):
        found = survey([reading(SYMBOLS, TABLE, TWO_PAIRS, SENTENCES * times)], shown=2)
        assert found.layers[0].tokens_N.tolist() == [2 * times, 3 * times, times, 3 * times]
    assert seen[0] == seen[1] and seen[0][0] == [10, 10]


def test_routers_are_left_as_they_were():
    made = reading(SYMBOLS, TABLE, TWO_PAIRS, SENTENCES)
    survey([made], 0)
    assert not any(layer.router._forward_hooks for layer in made.open().layers.values())
