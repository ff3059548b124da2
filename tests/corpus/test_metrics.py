import math

import pytest

from moec_fairseq.corpus.metrics import COMPOUND_SPLIT, TOKENISED, metrics, score, split_compounds, tokenised_bleu

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
    scores = tokenised_bleu([hypothesis], [[reference]], "de", tokenized=True)
    found, whole = scores[COMPOUND_SPLIT], scores[TOKENISED]
    # of 12 tokens the seventh is wrong, and with it 2 of 11 pairs, 3 of 10 triples, 4 of 9 quadruples
    assert found.value == pytest.approx(100 * math.prod([11 / 12, 9 / 11, 7 / 10, 5 / 9]) ** 0.25, abs=0.01)
    assert found.signature.endswith("moses:as given|compounds:split")
    # of 10 tokens the fifth is wrong, and with it 2 of 9 pairs, 3 of 8 triples, 4 of 7 quadruples
    assert whole.value == pytest.approx(100 * math.prod([9 / 10, 7 / 9, 5 / 8, 3 / 7]) ** 0.25, abs=0.01)
    assert whole.signature.endswith("moses:as given")


def test_moses_splits_punctuation():
    found = tokenised_bleu(["Das Haus, das ist rot."], [["Das Haus , das ist rot ."]], "de_AT", tokenized=False)
    assert all(score.value == 100.0 and "sacremoses-" in score.signature for score in found.values())


@pytest.mark.parametrize("code", ["zh", "zh_CN", "zh-Hans", "zho_Hans"])
def test_chinese_by_any_code_is_cut_into_characters(code):
    bleu = score(["我喜欢红色的大房子"], [["我喜欢红色的小房子"]], metrics(code, tokenized=False))["BLEU"]
    assert bleu.value > 30 and "tok:zh" in bleu.signature
