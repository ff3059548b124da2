"""Models of several pairs of languages: chosen, told apart, and translated as they were trained.

By fairseq's task for them, and by tags in the data of ``moec prepare --targets``.
"""

import csv
import json
import random
import sys
from argparse import ArgumentParser
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from importlib import import_module

import pytest
from fairseq.tasks import TASK_REGISTRY
from fairseq_cli import preprocess

from moec_fairseq.__main__ import main, run
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
    model = tmp_path / "12:30.pt"  # fairseq would read the files 12 and 30.pt
    model.symlink_to(two_pairs / "saved/checkpoint_last.pt")
    facts = model_facts(model)
    for name in ("dict.en.txt", "dict.pt.txt", "test.en-pt.en.bin", "test.en-pt.en.idx"):
        (tmp_path / name).write_bytes((two_pairs / "bin0" / name).read_bytes())
    assert (facts.longest_source, facts.truncates_sources) == (1023, False)  # one position is for the language
    data, log = Binarised(tmp_path, "test", "subword_nmt"), tmp_path / "log"
    assert generate(model, facts, data, "en", "pt", Search(cpu=True), log, sys.stdout) == 20
    assert (tmp_path / "log").read_text().count(f"\t{SENTENCES['pt']}\n") == 2 * 20  # H, and without subwords D


def in_this_process(name, *arguments, log, read=None):
    """Do what ``run_fairseq`` does, without the time that a process takes to start."""
    words = [f"fairseq-{name}", *map(str, arguments)]
    with pytest.MonkeyPatch.context() as patch, log.open("w") as file, redirect_stdout(file):
        patch.setattr(sys, "argv", words)
        import_module(f"fairseq_cli.{name}").cli_main()


@pytest.fixture(scope="module")
def tagged(once):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moec_fairseq.data.subwords.run_fairseq", in_this_process)
        patch.setattr("moec_fairseq.data.pipeline.start_workers", ThreadPoolExecutor)
        return once("tagged", train_tagged)


def train_tagged(folder):
    """Prepare English into French and Portuguese, and train fairseq's task for one pair of languages."""
    letters = random.Random(3)
    english = list(dict.fromkeys(" ".join(letters.choices(LETTERS, k=5)) for _ in range(430)))
    texts = {"valid": english[:5], "test": english[5:20], "train": english[20:]}
    for part, sources in texts.items():
        for language, sentence in {"en": None, **SENTENCES}.items():
            lines = [sentence or source for source in sources]
            if (part, language) == ("train", "fr"):
                lines[::3] = [""] * len(lines[::3])  # which have no translation
            (folder / f"{part}.{language}").write_text("".join(f"{line}\n" for line in lines))
    prefixes = [word for part in texts for word in (f"--{part}-prefix", folder / part)]
    run([
        "prepare", *prefixes, "--targets", "fr,pt", "--sampling-temperature", 1e9, "--vocab-size", 60,
        "--workers", 1, "--out", folder / "data",
    ])  # fmt: skip
    in_this_process(
        "train", folder / "data" / "binary", *TINY, *CRITERION, *ADAM, *SCHEDULE, "--save-dir", folder / "saved",
        "--warmup-updates", 10, "--max-update", 80, "--valid-subset", "valid,valid-fr", "--no-epoch-checkpoints",
        "--validate-interval", 100, log=folder / "log",
    )  # fmt: skip


def test_tags_decide_the_language(tagged, monkeypatch, capsys):
    def moec(*words):
        monkeypatch.setattr(sys, "argv", ["moec", *words, "--cpu"])
        return main(), capsys.readouterr()

    monkeypatch.chdir(tagged)
    monkeypatch.setattr("moec_fairseq.evaluate.generate.run_fairseq", in_this_process)
    kept = {language: sum(map(bool, (tagged / f"train.{language}").read_text().split("\n"))) for language in SENTENCES}
    sources = (tagged / "data/text/train.en").read_text()
    assert kept["fr"] < kept["pt"] == sources.count("<2pt> ") == sources.count("<2fr> ")  # so warm is the sampling
    row = next(row for row in (tagged / "data/cleaning.md").read_text().splitlines() if "fr: repeated" in row)
    assert row.split("|")[2].strip() == str(kept["pt"] - kept["fr"])

    evaluate = ["evaluate", "--checkpoints", "saved/checkpoint_last.pt", "--table", "t.csv", "--beam", "2"]
    code, said = moec(*evaluate)
    assert code == 0, said.err
    for language, sentence in SENTENCES.items():
        folder = tagged / f"saved/evaluation/checkpoint_last/test-en-{language}-beam2"
        assert (folder / "source.txt").read_text() == (tagged / "test.en").read_text()
        assert (folder / "references.txt").read_text() == (tagged / f"test.{language}").read_text()
        assert set((folder / "translations.txt").read_text().splitlines()) == {sentence}
    with (tagged / "t.csv").open() as file:
        rows = {row["set"]: (row["BLEU"], row["chrF"]) for row in csv.DictReader(file)}
    perfect = ("100.00", "100.00")
    assert rows == {"data/test en-fr": perfect, "data/test en-pt": perfect, "data/test mean of en-fr, en-pt": perfect}
    *_, table = said.out.partition("direction")
    assert [line.split()[0] for line in table.splitlines()[2:5]] == ["en-fr", "en-pt", "mean"]
    assert "BLEU of en-fr, en-pt: nrefs:1|" in table and "chrF of en-fr, en-pt: nrefs:1|" in table

    translate = ["translate", "saved", "--input", "test.en", "--output", "new.pt", "--beam", "2"]
    code, said = moec(*translate, "--to", "pt")
    assert code == 0 and (tagged / "new.pt").read_text() == (tagged / "test.pt").read_text()
    stock = ("data/binary", *TINY[:3], "--path", "saved/checkpoint_last.pt", "--gen-subset", "test-fr", "--beam", 2)
    in_this_process("generate", *stock, "--remove-bpe", "sentencepiece", log=tagged / "stock.log")
    assert (tagged / "stock.log").read_text().count(f"\t{SENTENCES['fr']}\n") == 3 * 15  # T, H, and without subwords D
    for words, sentence in (
        (translate, "the model translates en to fr, pt; choose with --target-lang"),
        ([*translate, "--to", "de"], "the model translates en to fr, pt, but not en to de"),
        ([*evaluate, "--against", "test.pt"], "are for one direction, but the model translates en to fr, pt; choose"),
    ):
        code, said = moec(*words)
        assert code == 1 and sentence in said.err.splitlines()[-1]
