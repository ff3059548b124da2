import logging
import math

import pytest

from moec_fairseq.data.subwords import train_model
from moec_fairseq.evaluate.scores import (
    COMPOUND_SPLIT,
    TOKENISED,
    Score,
    add_row,
    compare,
    direction_table,
    mean_scores,
    metrics,
    read_metrics,
    read_table,
    score,
    score_table,
    show_samples,
    split_compounds,
    tokenised_bleu,
)
from tests.python import forkserver

SENTENCE = "the cat sat on the mat today"


def scores(hypothesis, references, tokenized=False):
    return {name: found.value for name, found in score([hypothesis], references, metrics("de", tokenized)).items()}


def test_a_perfect_translation():
    assert scores(SENTENCE, [[SENTENCE]]) == {"BLEU": 100.0, "chrF": 100.0, "chrF++": 100.0, "TER": 0.0}


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


def test_words_count_for_chrf_plus_plus():
    found = score(["ab cd"], [["abcd"]], metrics("de", False))  # blanks do not count for chrF
    assert found["chrF"].value == 100.0 > found["chrF++"].value
    assert "|nc:6|nw:0|" in found["chrF"].signature and "|nc:6|nw:2|" in found["chrF++"].signature


# one of five words or letters is another: 4/5, 3/4, 2/3 and 1/2 of the sequences of one to four are right
FOUR_OF_FIVE = 100 * math.prod([4 / 5, 3 / 4, 2 / 3, 1 / 2]) ** 0.25


@pytest.mark.parametrize("language, hypothesis, reference, tokenizer", [
    ("cs", "a b c d e", "a b c d x", "13a"), ("ar", "ا ب ت ث ج", "ا ب ت ث خ", "13a"),
    ("hi", "क ख ग घ ङ", "क ख ग घ च", "13a"), ("ru", "а б в г д", "а б в г е", "13a"),
    ("zh_CN", "我喜欢红色", "我喜欢红书", "zh"), ("yue", "我喜欢红色", "我喜欢红书", "zh"),
    ("tha_Thai", "กขคงจ", "กขคงช", "char"),
    ("km", "កខគឃង", "កខគឃច", "char"), ("lo", "ກຂຄງຈ", "ກຂຄງຊ", "char"), ("my", "ကခဂဃင", "ကခဂဃစ", "char"),
])  # fmt: skip
def test_bleu_by_language(language, hypothesis, reference, tokenizer):
    found = score([hypothesis], [[reference]], metrics(language, False))
    assert found["BLEU"].value == pytest.approx(FOUR_OF_FIVE, abs=0.005)
    assert f"|tok:{tokenizer}|" in found["BLEU"].signature
    assert ("TER" in found) == (tokenizer != "char")
    if "TER" in found:
        assert found["TER"].value == 20.0  # one edit of five
        assert ("|norm:yes|" in found["TER"].signature) == (tokenizer == "zh")


def test_japanese_is_cut_into_words():
    pytest.importorskip("MeCab")
    found = score(["私は本を読む"], [["私は本を読む"]], metrics("ja", False))
    assert "|tok:ja-mecab" in found["BLEU"].signature and found["BLEU"].value == 100.0


@pytest.mark.parametrize("code, module", [("ja-JP", "ja"), ("jpn_Jpan", "ja"), ("ko", "ko")])
def test_a_tokeniser_that_is_not_installed(code, module, monkeypatch):
    monkeypatch.setattr(f"sacrebleu.tokenizers.tokenizer_{module}_mecab.MeCab", None)
    with pytest.raises(ValueError, match=rf'^BLEU of {code} needs .*; pip install "sacrebleu\[{module}\]" gets it$'):
        metrics(code, False)
    assert list(metrics(code, False, ["chrf"])) == ["chrF"] and "BLEU" in metrics(code, True)


def test_bleu_of_subwords(tmp_path, monkeypatch):
    monkeypatch.setattr("sacrebleu.tokenizers.tokenizer_spm.SACREBLEU_DIR", str(tmp_path))
    with pytest.raises(ValueError, match="^sacreBLEU cannot get the subwords of spBLEU .*; check the network"):
        with monkeypatch.context() as patch:
            patch.setattr("urllib.request.urlopen", lambda address: open("/nowhere"))
            metrics("th", False, ["spbleu"])
    (tmp_path / "text").write_text("กขคงจ\n" * 9)
    model = tmp_path / "models" / "flores200sacrebleuspm"
    train_model([tmp_path / "text"], 10, "char", 1.0, model)
    found = score(["กขคงจ"], [["กขคงจ"]], metrics("th", False, ["spbleu"]))
    assert found["spBLEU"].value == 100.0 and "|tok:flores200|" in found["spBLEU"].signature


def test_the_choice_of_metrics():
    assert list(metrics("de", False, read_metrics("chrf++,bleu,comet,bleu"))) == ["chrF++", "BLEU"]
    for names, wrong in (("bleu,rouge", "rouge"), ("bleu,", "empty name")):
        with pytest.raises(ValueError, match=f"--metrics is {names}, but there is no {wrong}; give bleu, chrf, "):
            read_metrics(names)
    with pytest.raises(ValueError, match="TER counts words, but th has no blanks between them; give other --metrics"):
        metrics("th", False, ["ter"])


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


REFERENCES = [f"the {animal} number {n} sat on the old mat" for n in range(20) for animal in ("cat", "dog")]
CHOSEN = {name: make for name, make in metrics("en", False).items() if name != "TER"}


def test_a_system_against_itself(caplog):
    caplog.set_level(logging.ERROR)
    worse = [line.replace("old", "new") for line in REFERENCES]
    found = compare(worse, worse, [REFERENCES], CHOSEN)
    assert list(found) == ["BLEU", "chrF", "chrF++"]
    for comparison in found.values():
        assert comparison.ours == comparison.other and comparison.p_value > 0.9
        assert "bs:1000" in comparison.signature and "seed:12345" in comparison.signature


def test_a_clear_difference():
    worse = [line.replace("old", "new") for line in REFERENCES]
    found = compare(REFERENCES, worse, [REFERENCES], CHOSEN)["BLEU"]
    assert found.ours.score == 100.0 and found.ours.margin == 0.0
    assert found.other.score < 80 and found.p_value < 0.01


def row(system, bleu, model="seed:1|beam:5", name="test"):
    return {"system": system, "set": name, "model": model, "BLEU": bleu}


def test_a_row_takes_the_place_of_its_older_self(tmp_path):
    table = tmp_path / "results.csv"
    add_row(table, row("dense", "20.00"))
    add_row(table, row("moec", "21.00") | {"TER": "50.00"})
    add_row(table, row("dense", "20.50"))
    for other in (row("dense", "19.00", name="valid"), row("dense", "20.60", model="seed:1|beam:4")):
        add_row(table, other)
    assert [found["BLEU"] for found in read_table(table)] == ["20.50", "21.00", "19.00", "20.60"]
    assert [found["TER"] for found in read_table(table)] == ["", "50.00", "", ""]
    add_row(table, row("dense", "20.10") | {"BLEU's signature": "tok:none"})  # another score
    assert [found["BLEU"] for found in read_table(table)][-1] == "20.10"
    markdown = (tmp_path / "results.md").read_text().splitlines()
    assert len(markdown) == 7 and r"seed:1\|beam:5" in markdown[3]


def test_a_score_that_comes_later_joins_its_row(tmp_path):
    table = tmp_path / "results.csv"
    add_row(table, row("dense", "20.00") | {"BLEU's signature": "tok:13a"})
    add_row(table, {key: value for key, value in row("dense", "").items() if key != "BLEU"} | {"COMET": "80.00"})
    assert [(found["BLEU"], found["COMET"]) for found in read_table(table)] == [("20.00", "80.00")]


def test_cells_of_the_user_stay(tmp_path):
    table = tmp_path / "results.csv"
    table.write_text("system,set,model,BLEU,note\ndense,test,seed:1|beam:5,20.00,mine\n")
    add_row(table, row("dense", "20.50"))
    assert read_table(table) == [row("dense", "20.50") | {"note": "mine"}]


def test_a_text_of_the_same_name_stays(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(ValueError, match=r"would write .*README\.md, which is something else"):
        add_row(tmp_path / "README.csv", row("dense", "20.00"))
    assert (tmp_path / "README.md").read_text() == "mine"


def add_twenty(table, system):
    for n in range(20):
        add_row(table, {"system": system, "set": str(n), "model": "x", "BLEU": "1"})


def test_two_commands_fill_one_table(tmp_path):
    table = tmp_path / "results.csv"
    both = [forkserver.Process(target=add_twenty, args=(table, name)) for name in ("dense", "moec")]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert len(read_table(table)) == 40


@pytest.mark.parametrize("content", ["a,b\n1,2\n", "a,b\n", "system,set,model\n1,2,3,4\n"])
def test_a_file_of_something_else_stays(tmp_path, content):
    table = tmp_path / "other.csv"
    table.write_text(content)
    with pytest.raises(ValueError, match="is not a table of results"):
        add_row(table, row("dense", "20.00"))
    assert table.read_text() == content and not table.with_suffix(".md").exists()


def test_a_row_with_fewer_cells(tmp_path):
    table = tmp_path / "results.csv"
    table.write_text("system,set,model,BLEU\ndense,test,x\n")
    add_row(table, row("moec", "21.00"))
    assert [found["BLEU"] for found in read_table(table)] == ["", "21.00"]


def test_the_ending_of_a_table(tmp_path):
    assert read_table(tmp_path / "results.csv") == []
    with pytest.raises(ValueError, match=r"must end in \.csv"):
        read_table(tmp_path / "results.md")


def test_scores_are_shown_with_signatures():
    lines = score_table({"BLEU": Score(12.3, "tok:13a")}).splitlines()
    assert lines[-1].split() == ["BLEU", "12.30", "tok:13a"]


def test_samples(capsys):
    show_samples({"source": ["one", "two"], "reference": ["eins", "zwei"], "translation": ["eins", "drei"]}, 5)
    assert "sentence 2\n  source      two\n  reference   zwei\n  translation drei\n" in capsys.readouterr().out


def test_a_table_of_directions():
    found = {
        f"en-{target}": score(["a b c d e"], [["a b c d e" if target == "de" else "x"]], metrics(target, False))
        for target in ("de", "zh")
    }
    means = mean_scores(list(found.values()))
    table = direction_table(found, means).splitlines()
    assert means["BLEU"] == pytest.approx((100 + found["en-zh"]["BLEU"].value) / 2, abs=0.01)
    assert [line.split()[:2] for line in table[2:5]] == [
        ["en-de", "100.00"], ["en-zh", f"{found['en-zh']['BLEU'].value:.2f}"], ["mean", f"{means['BLEU']:.2f}"],
    ]  # fmt: skip
    assert any(line.startswith("BLEU of en-de: ") and "|tok:13a|" in line for line in table)
    assert any(line.startswith("BLEU of en-zh: ") and "|tok:zh|" in line for line in table)
    for name in ("chrF", "chrF++"):
        assert sum(line.startswith(f"{name} of en-de, en-zh: ") for line in table) == 1
    assert "chrF++" in table[0] and "TER of en-zh" in str(table)
