import pytest
from hypothesis import given
from hypothesis import strategies as st

from moec_fairseq.report import words
from moec_fairseq.report.words import BANDS, KINDS, PARTS, POSITIONS, Subwords, TokenClasses, WordCounts
from tests.moe.stubs import quick

FAIRSEQ = ["<s>", "<pad>", "</s>", "<unk>"]


class Gpt2:
    """Spells the numbers of GPT-2's BPE."""

    def __init__(self, *spelled):
        self.encoder = self
        self.spelled = spelled

    def decode(self, numbers):
        return "".join(self.spelled[number] for number in numbers)


def subwords(*symbols, gpt2=None):
    return Subwords([*FAIRSEQ, *symbols], len(FAIRSEQ), gpt2)


@pytest.mark.parametrize("text, expected", [
    ("▁the ▁fi le s ▁of </s>", ["the", "files", "of", "</s>"]),
    ("▁file . </s>", ["file", ".", "</s>"]),
    ("▁( the ▁ x . y", ["(", "the", "x", ".", "y"]),  # marks stand alone, and what follows one begins a word
    ("▁<2de> ▁ the <unk> le", ["<2de>", "the", "<unk>", "le"]),
    ("▁文 件 の 名 前", ["文", "件", "の", "名", "前"]),
    ("▁fi ▁le", ["fi", "le"]),
    ("fi@@ le@@ s the", ["files", "the"]),
    ("fi@@ le . the", ["file", ".", "the"]),
    ("a b a</s>", ["a", "b", "a</s>"]),  # words as they are
])  # fmt: skip
def test_subwords_are_joined(text, expected):
    known = [symbol for symbol in dict.fromkeys(text.split()) if symbol not in FAIRSEQ]
    numbers = {symbol: number for number, symbol in enumerate([*FAIRSEQ, *known])}
    found = subwords(*known)
    assert [found.text(word) for word in found.words([numbers[symbol] for symbol in text.split()])] == expected


def test_subwords_of_gpt2():
    found = subwords("0", "1", "2", "3", "<mask>", gpt2=Gpt2("the", " fi", "le", "."))
    assert [found.text(word) for word in found.words([0, 4, 5, 6, 7, 8, 2])] == [
        "<s>", "the", "file", ".", "<mask>", "</s>",
    ]  # fmt: skip


@pytest.mark.parametrize("text, expected", [
    ("▁well - known ▁( ▁fi le s ) . </s>", "well-known ( files). </s>"),
    ("</s> ▁<2de> ▁fi le", "</s> <2de> file"),
    ("fi@@ le s </s>", "file s </s>"),
    ("a b </s> c", "a b </s> c"),
])  # fmt: skip
def test_sentences_are_shown_as_they_are_written(text, expected):
    known = [symbol for symbol in dict.fromkeys(text.split()) if symbol not in FAIRSEQ]
    numbers = {symbol: number for number, symbol in enumerate([*FAIRSEQ, *known])}
    assert "".join(subwords(*known).shown([numbers[symbol] for symbol in text.split()])) == expected


@quick
@given(st.lists(st.integers(0, 9)))
def test_words_are_all_of_a_sentence(ids):
    found = subwords("▁a", "b", "▁", ".", "▁,", "<2de>")
    assert [subword for word in found.words(ids) for subword in word] == ids


@pytest.mark.parametrize("symbol, kind", [
    ("▁word", "other word"), ("▁2nd", "number"), ("٣", "number"), ("...", "punctuation"), ("▁€", "punctuation"),
    ("▁<2pt-BR>", "special symbol"), ("</s>", "special symbol"), ("▁", "special symbol"), ("▁été", "other word"),
    ("<mask>", "special symbol"), ("<b>", "other word"),
])  # fmt: skip
def test_kinds_of_words(symbol, kind):
    found = subwords(symbol, "▁x")
    assert KINDS[found.kind([FAIRSEQ.index(symbol) if symbol in FAIRSEQ else 4])] == kind


def test_classes_of_tokens_by_hand(monkeypatch):
    monkeypatch.setattr(words, "FREQUENT", 1)
    monkeypatch.setattr(words, "MOST_WORDS", 2)
    found = subwords("▁the", "▁fi", "le", ".", "▁7")
    counts = WordCounts()
    counts.add(["the"] * 9 + ["."] * 20 + ["file"] * 5 + ["7"])
    classes = TokenClasses(found, {"": counts})
    assert classes.listed == [".", "the"]
    names = [[feature.labels[code] for feature, code in zip(classes.features, codes, strict=True)] for codes in
             classes.codes([4, 5, 6, 7, 8, 2])]  # fmt: skip
    assert names == [
        ["frequent word", "1 to 10", "1", "whole word", "", "the"],
        ["other word", "1 to 10", "2", "beginning", "", "all others"],
        ["other word", "1 to 10", "3 to 4", "rest", "", "all others"],
        ["punctuation", "1 to 10", "3 to 4", "whole word", "", "."],
        ["number", "1 to 10", "5 to 8", "whole word", "", "all others"],
        ["special symbol", "special symbol", "5 to 8", "whole word", "", "all others"],
    ]


def test_ranks_and_positions_have_bands():
    symbols = [f"▁w{number:04}".translate(str.maketrans("0123456789", "abcdefghij")) for number in range(1200)]
    counts = WordCounts()
    for number, symbol in enumerate(symbols):
        counts.add([symbol[1:]] * (1200 - number))
    classes = TokenClasses(subwords(*symbols), {"": counts})
    codes = classes.codes(range(4, 1204))
    ends = [[(column == band).sum() for band in range(size)] for column, size in ((codes[:, 1], 5), (codes[:, 2], 7))]
    assert ends == [[10, 90, 900, 200, 0], [1, 1, 2, 4, 8, 16, 1168]]
    assert len(BANDS) == 5 and len(POSITIONS) == 7 and len(PARTS) == 3
    assert (codes[:100, 0] == 0).all() and (codes[100:, 0] == 1).all()  # the 100 most frequent words of letters


def test_each_language_has_frequent_words_of_its_own(monkeypatch):
    monkeypatch.setattr(words, "FREQUENT", 1)
    counts = {"de": WordCounts(), "fr": WordCounts()}
    counts["de"].add(["das"] * 100 + ["le"] * 2)
    counts["fr"].add(["le"] * 3)
    classes = TokenClasses(subwords("▁das", "▁le"), counts)
    assert [KINDS[classes.codes([5], language)[0, 0]] for language in ("de", "fr")] == ["other word", "frequent word"]
    assert classes.codes([5], "fr")[0, 4] == 1


def test_memory_for_words_has_a_limit(monkeypatch):
    monkeypatch.setattr(words, "MOST_COUNTED", 100)
    counts = WordCounts()
    for number in range(1000):
        counts.add(["often", f"once{number}"])
        assert len(counts.counts) <= 100
    assert counts.counts["often"] == 1000
