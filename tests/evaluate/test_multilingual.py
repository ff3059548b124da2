"""Models of several pairs of languages: chosen, told apart, and translated as they were trained."""

import json
import random
import sys
from argparse import ArgumentParser

import pytest
from fairseq.tasks import TASK_REGISTRY
from fairseq_cli import preprocess

from moec_fairseq.__main__ import main
from moec_fairseq.evaluate.generate import Binarised, Search, generate
from moec_fairseq.evaluate.model import model_facts
from moec_fairseq.evaluate.multilingual import TASK, multilingual
from tests.conftest import ADAM, CRITERION, LETTERS, SCHEDULE, TINY

SENTENCES = {"fr": "a b c d e", "pt": "f g h i j"}  # whatever the English is: only the language decides
# as fairseq saves it
SAVED = {
    "_name": TASK, "lang_pairs": ["en-fr", "en-pt", "fr-pt"], "langs": ["pt", "en", "fr"], "lang_dict": None,
    "lang_tok_style": "multilingual", "langtoks_specs": ["main"], "langtoks": {"main": ("src", "tgt")},
    "encoder_langtok": "src", "decoder_langtok": True, "lang_tok_replacing_bos_eos": False, "left_pad_source": True,
    "left_pad_target": False, "extra_data": None, "source_lang": None, "sampling_method": "concat",
}  # fmt: skip
EVIL = "__import__('os').system('touch it-ran')"


def test_one_pair():
    assert multilingual({"_name": "translation"}) is None and multilingual({}) is None


@pytest.mark.parametrize("saved", [
    {},
    {"lang_tok_replacing_bos_eos": True, "enable_lang_ids": True, "left_pad_source": False, "left_pad_target": True},
    {"langs": None, "lang_dict": "a b/langs.txt", "lang_tok_style": "mbart", "encoder_langtok": "tgt"},
    {"langtoks": {"main": ("src.x", None), "mono_dae": ("src.dae", "tgt")}, "langtoks_specs": ["main", "mono_dae"]},
    {"extra_data": {"mono_dae": "it's/here"}, "source_dict": "s.txt", "target_dict": "--user-dir=x"},
    {"fixed_dictionary": EVIL, "decoder_langtok": False, "encoder_langtok": None},
])  # fmt: skip
def test_fairseq_reads_the_options_of_the_training_again(saved):
    task = SAVED | saved
    parser = ArgumentParser()
    parser.add_argument("--task")
    TASK_REGISTRY[TASK].add_args(parser)
    read = vars(parser.parse_args(["data", *multilingual(task).options]))
    read["lang_pairs"] = read["lang_pairs"].split(",")
    for side in ("left_pad_source", "left_pad_target"):
        read[side] = {"True": True, "False": False}[read[side]]
    assert read["task"] == TASK
    assert {name: read[name] for name in task if name != "_name"} == {k: v for k, v in task.items() if k != "_name"}


@pytest.mark.parametrize("saved", [
    {"left_pad_source": EVIL},
    {"langtoks": EVIL},
    {"langtoks": {"main": EVIL}},
    {"langtoks": {"main": ("src", 1)}},
    {"extra_data": {"mono_dae": ("a", "b")}},
    {"decoder_langtok": EVIL},
    {"langs": "pt,en,fr"},
    {"langs": ["pt", "/etc/passwd"]},
    {"lang_pairs": ["/etc/passwd"]},
    {"lang_pairs": ["en"]},
    {"lang_pairs": []},
    {"lang_tok_style": EVIL},
])  # fmt: skip
def test_what_no_training_has_written_is_refused(saved):
    with pytest.raises(ValueError, match=r"^the checkpoint .*use another checkpoint$"):
        multilingual(SAVED | saved)


def test_choosing_a_pair():
    model = multilingual(SAVED)
    assert model.pair("en", "pt") == model.pair("en", "pt") == ("en", "pt")
    assert model.pair("fr", None) == ("fr", "pt") and model.pair(None, "fr") == ("en", "fr")
    assert model.pair("pt", "en") == ("pt", "en")  # it was not trained on that, but knows both
    for given in ((None, None), ("en", None), (None, "pt"), ("pt", None)):
        with pytest.raises(ValueError, match="translates en-fr, en-pt, fr-pt; choose with --source-lang and --target-"):
            model.pair(*given)
    with pytest.raises(ValueError, match="knows no de; its languages are pt, en, fr"):
        model.pair("en", "de")
    assert multilingual(SAVED | {"langs": None, "lang_dict": "x"}).pair("en", "de") == ("en", "de")  # fairseq will see
    assert multilingual(SAVED | {"lang_pairs": ["en-fr"]}).pair(None, None) == ("en", "fr")


@pytest.mark.parametrize("saved, mark", [
    ({}, "__en__"),
    ({"langtoks": {"main": ("tgt", None)}, "lang_tok_style": "mbart"}, "[pt]"),
    ({"langtoks": {"main": (None, "tgt")}}, ""),
    ({"langtoks": {}, "encoder_langtok": "tgt"}, "__pt__"),
])  # fmt: skip
def test_the_word_that_names_a_language(saved, mark):
    assert multilingual(SAVED | saved).source_mark("en", "pt") == mark


@pytest.fixture(scope="module")
def two_pairs(once, fairseq):
    return once("two-pairs", lambda folder: train_two_pairs(folder, fairseq))


def train_two_pairs(folder, fairseq):
    """Train English to French and to Portuguese, on data in two folders; the second has nothing but training data."""
    letters = random.Random(3)
    parser = preprocess.options.get_preprocessing_parser()
    for language, sentence in SENTENCES.items():
        for part, count in (("train", 400), ("valid", 5), ("test", 20)):
            lines = [" ".join(letters.choices(LETTERS, k=5)) for _ in range(count)]
            (folder / f"{part}-{language}.en").write_text("".join(f"{line}\n" for line in lines))
            (folder / f"{part}-{language}.{language}").write_text(f"{sentence}\n" * count)
        dictionary = folder / "bin0" / "dict.en.txt"
        known = ["--srcdict", dictionary, "--tgtdict", dictionary] if dictionary.exists() else ["--joined-dictionary"]
        for place, parts in (("bin0", ("train", "valid", "test")), ("bin1", ("train",))):
            prefixes = [text for part in parts for text in (f"--{part}pref", folder / f"{part}-{language}")]
            known = known if place == "bin0" else ["--srcdict", dictionary, "--tgtdict", dictionary]
            arguments = ["-s", "en", "-t", language, *prefixes, "--destdir", folder / place, *known]
            preprocess.main(parser.parse_args(list(map(str, arguments))))
    fairseq(
        "train", "bin0:bin1", *TINY, *CRITERION, *ADAM, *SCHEDULE, "--task", TASK, "--lang-pairs", "en-fr,en-pt",
        "--langs", "pt,fr,en", "--encoder-langtok", "src", "--decoder-langtok", "--save-dir", "saved",
        "--warmup-updates", 10, "--max-update", 80, "--disable-validation", "--no-epoch-checkpoints", cwd=folder,
    )  # fmt: skip


def test_each_pair_is_evaluated(two_pairs, monkeypatch, capsys):
    def run(*options):
        asked = ["--checkpoints", "saved/checkpoint_last.pt", "--tokenized", "--cpu", "--table", "t.csv", *options]
        monkeypatch.setattr(sys, "argv", ["moec", "evaluate", *asked])
        return main(), capsys.readouterr()

    monkeypatch.chdir(two_pairs)
    code, said = run()
    assert code == 1 and "en-fr, en-pt; choose with --source-lang and --target-lang" in said.err.splitlines()[-1]
    for language, options in {"fr": (), "pt": ("--source-lang", "en", "--data", "bin0:bin1")}.items():
        code, said = run("--target-lang", language, *options)
        assert code == 0, said.err
        folder = two_pairs / f"saved/evaluation/checkpoint_last/test-en-{language}-beam5"
        result = json.loads((folder / "scores.json").read_text())
        assert result["scores"]["BLEU"]["value"] == 100.0 and result["set"] == f"bin0/test en-{language}"
        assert (folder / "source.txt").read_text() == (two_pairs / f"test-{language}.en").read_text()
        assert set((folder / "translations.txt").read_text().splitlines()) == {SENTENCES[language]}
    assert len((two_pairs / "t.csv").read_text().splitlines()) == 3


def test_text_without_translations(two_pairs, tmp_path):
    model = two_pairs / "saved/checkpoint_last.pt"
    facts = model_facts(model)
    for name in ("dict.en.txt", "dict.pt.txt", "test.en-pt.en.bin", "test.en-pt.en.idx"):
        (tmp_path / name).write_bytes((two_pairs / "bin0" / name).read_bytes())
    assert (facts.longest_source, facts.truncates_sources) == (1023, False)  # one position is for the language
    data, log = Binarised(tmp_path, "test", "subword_nmt"), tmp_path / "log"
    assert generate(model, facts, data, "en", "pt", Search(cpu=True), log, sys.stdout) == 20
    assert (tmp_path / "log").read_text().count(f"\t{SENTENCES['pt']}\n") == 2 * 20  # H, and without subwords D
