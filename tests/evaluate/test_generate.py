import sys
from dataclasses import replace
from pathlib import Path

import pytest

from moec_fairseq.evaluate.generate import Binarised, Search, dataset, generate, read_hypotheses, read_sentences
from moec_fairseq.evaluate.model import ModelFacts

LOG = [
    "2026-11-23 | INFO | fairseq_cli.generate | loaded",
    "S-1\ttwo",
    "H-1\t-0.5\t▁zw ei",
    "D-1\t-0.5\tzwei",
    "D-1\t-0.9\tsecond best",
    "S-0\tone",
    "D-0\t-0.1\teins da",
    "Generate test with beam=5: BLEU4 = 1.0",
]


def texts(log, count):
    return [[hypothesis.text for hypothesis in found] for found in read_hypotheses(log, count)]


def test_translations_come_in_order_the_best_first():
    assert texts(LOG, 2) == [["eins da"], ["zwei", "second best"]]
    assert [found.score for found in read_hypotheses(LOG, 2)[1]] == [-0.5, -0.9]
    assert read_sentences(LOG, "S") == {0: "one", 1: "two"} and read_sentences(LOG, "T") == {}


def test_missing_translations():
    with pytest.raises(ValueError, match="1 of 3 translations are missing, the first is that of sentence 3"):
        read_hypotheses(LOG, 3)
    with pytest.raises(ValueError, match="1 of 2 translations are missing, the first is that of sentence 1"):
        read_hypotheses(["D-1\t-0.5\tzwei"], 2)


def test_an_empty_translation():
    assert texts(["D-0\t-0.1\t", "D-1\t-0.1\tja"], 2) == [[""], ["ja"]]


def test_text_that_is_still_segmented():
    with pytest.raises(ValueError, match="still segmented by sentencepiece; give --remove-bpe sentencepiece"):
        read_hypotheses(["D-0\t-0.1\t▁zw ei"], 1)


def test_data_may_be_named_in_the_other_direction(reversal_data):
    test = Binarised(reversal_data, "test", "subword_nmt")
    forth, back = dataset(test, "src", "tgt"), dataset(test, "tgt", "src")
    assert len(forth) == len(back) == 200
    assert back[0][:-1].tolist() == forth[0][:-1].tolist()[::-1]
    with pytest.raises(ValueError, match="has no test for en to de; give --subset or --data"):
        dataset(test, "en", "de")


def test_a_line_that_is_too_long_is_named(reversal_data, tmp_path):
    data, facts = Binarised(reversal_data, "test", "subword_nmt"), ModelFacts(Path(), "src", "tgt", 6, False, 0, {})
    first = next(n for n in range(200) if len(dataset(data, "src", "tgt")[n]) > 6)
    with pytest.raises(ValueError, match=f"line {first + 1} has 7 subwords, but the model takes at most 6; divide it"):
        generate(tmp_path, facts, data, "src", "tgt", Search(), tmp_path / "log", sys.stdout)
    with pytest.raises(ValueError, match=f"line {2 * first + 5} has 7 subwords"):
        apart = replace(data, lines=range(5, 405, 2))
        generate(tmp_path, facts, apart, "src", "tgt", Search(), tmp_path / "log", sys.stdout)


@pytest.mark.parametrize("sizes, sentence", [
    ({"beam": 0}, "--beam is 0, but must be 1 or more"),
    ({"max_tokens": 0}, "--max-tokens is 0"),
    ({"batch_size": 0}, "--batch-size is 0"),
    ({"beam": 2, "n_best": 3}, "--n-best is 3, but --beam only 2; give a beam of that size"),
])  # fmt: skip
def test_impossible_sizes(sizes, sentence):
    with pytest.raises(ValueError, match=sentence):
        Search(**sizes)
