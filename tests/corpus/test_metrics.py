import math

import pytest

from moec_fairseq.corpus.metrics import compound_split_bleu, metrics, score, split_compounds

SENTENCE = "the cat sat on the mat today"


def scores(hypothesis, references, tokenized=False):
    return {name: found.value for name, found in score([hypothesis], references, metrics("de", tokenized)).items()}


def test_a_perfect_translation():
    assert scores(SENTENCE, [[SENTENCE]]) == {"BLEU": 100.0, "chrF": 100.0, "TER": 0.0}


def test_one_word_of_seven_is_wrong():
    # the last word: 6/7 words, 5/6 pairs, 4/5 triples, 3/4 quadruples are right; one edit of seven
    found = scores("the cat sat on the mat tomorrow", [[SENTENCE]])
    assert found["BLEU"] == pytest.approx(100 * math.prod([6 / 7, 5 / 6, 4 / 5, 3 / 4]) ** 0.25, abs=0.005)
    assert found["TER"] == pytest.approx(100 / 7, abs=0.005)


def test_the_better_of_two_references_counts():
    assert scores(SENTENCE, [["something else"], [SENTENCE]])["BLEU"] == 100.0


def test_tokenised_text_is_taken_as_it_is():
    assert scores("a b c d .", [["a b c d."]], tokenized=False)["BLEU"] == 100.0
    assert scores("a b c d .", [["a b c d."]], tokenized=True)["BLEU"] < 100.0
    signature = score(["a"], [["a"]], metrics("de", True))["BLEU"].signature
    assert "tok:none" in signature and "version:" in signature


def test_the_tokeniser_of_bleu_follows_the_language():
    assert "tok:zh" in score(["你好"], [["你好"]], metrics("zh", False))["BLEU"].signature


@pytest.mark.parametrize("text, expected", [
    ("ein rot-grünes Haus", "ein rot ##AT##-##AT## grünes Haus"),
    ("a - b", "a - b"),
    ("a-b-c", "a ##AT##-##AT## b-c"),  # as s/(\S)-(\S)/.../g has it
])  # fmt: skip
def test_split_compounds(text, expected):
    assert split_compounds(text) == expected


def test_half_of_a_compound_counts():
    hypothesis, reference = (f"das dort ist ein rot-{x} Haus und steht dort still" for x in ("grünes", "blaues"))
    found = compound_split_bleu([hypothesis], [[reference]], "de", tokenized=True)
    # of 12 tokens the seventh is wrong, and with it 2 of 11 pairs, 3 of 10 triples, 4 of 9 quadruples
    assert found.value == pytest.approx(100 * math.prod([11 / 12, 9 / 11, 7 / 10, 5 / 9]) ** 0.25, abs=0.01)
    assert found.signature.endswith("moses:as given|compounds:split")


def test_moses_splits_punctuation():
    found = compound_split_bleu(["Das Haus, das ist rot."], [["Das Haus , das ist rot ."]], "de", tokenized=False)
    assert found.value == 100.0 and "sacremoses-" in found.signature
