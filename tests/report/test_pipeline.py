"""The command, on trained models: its numbers are those of fairseq's logs; and what it reads."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from fairseq.data import Dictionary, data_utils

from moec_fairseq.__main__ import main
from moec_fairseq.data.multilingual import Languages
from moec_fairseq.data.subwords import train_model
from moec_fairseq.evaluate.generate import Search
from moec_fairseq.evaluate.model import DataOfModel, ModelFacts
from moec_fairseq.evaluate.sets import TextSet, Wanted
from moec_fairseq.report import pipeline
from tests.conftest import USER_DIR
from tests.python import python_m
from tests.texts import MASKED_LM, SPARSE, write_text
from tests.whole_trainings import train, write_corpus

QUICK = ("--max-tokens", 100, "--moe-expert-count", 4, "--moec-expert-dropout", 0, "--log-format", "json")
PLAIN = ("--moec-cluster-count", 1, "--moec-variance", "none")
SIMPLE_LOG = """\
2026 | INFO | train_inner | epoch 001:      2 / 30 loss=7.1, nll_loss=7, moe_balance=1.5, num_updates=2, wall=5
2026 | INFO | valid | epoch 001 | valid on 'valid' subset | loss 6.5 | moe_load_max 40 | num_updates 3 | best_loss 6.5
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with a corpus, MoEC trained on it, with a log, plain MoE, and a masked language model."""
    folder = tmp_path_factory.mktemp("models")
    corpus = write_corpus(folder / "corpus", 60)
    train(corpus, folder / "moec", *QUICK, "--log-file", folder / "fairseq.log", max_update=3)
    validations = [line for line in (folder / "fairseq.log").read_text().splitlines() if '"valid_loss"' in line]
    (folder / "validated.json").write_text(validations[-1])  # the file will have the logs of the others, too
    train(corpus, folder / "moe", *QUICK, *PLAIN, max_update=1)
    train(write_text(folder / "text"), folder / "lm", *MASKED_LM, *QUICK[2:], max_update=1, base=SPARSE)
    (folder / "simple.log").write_text(SIMPLE_LOG)
    return folder


def report(monkeypatch, folder, *words):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["moec", "report", *map(str, words), "--cpu"])
    return main()


@pytest.fixture(scope="module")
def tables(models):
    """The tables of both models."""
    done = python_m(
        "moec_fairseq", "report", "moec", "--against", "moe", "--subset", "valid", "--max-tokens", 100, "--log",
        "simple.log", "--sentences", 2, "--cpu", "--out", "out", cwd=models,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Following the tokens through" in done.stdout and "out: report.html, report.json" in done.stdout
    assert "Warning" not in done.stderr
    return json.loads((models / "out" / "report.json").read_text(encoding="utf-8"))["tables"]


def test_numbers_are_those_of_the_validation_in_training(models, tables):
    logged = json.loads((models / "validated.json").read_text())
    row = tables["models"][0]
    names = (
        "loss",
        "nll_loss",
        "ppl",
        *(f"moe_{name}" for name in ("balance", "variance", "spread", "gap", "entropy")),
    )
    assert {name: row[name] for name in names} == {name: float(logged[f"valid_{name}"]) for name in names}
    assert (row["set"], row["sentences"], row["experts"], row["clusters"]) == ("corpus/valid", 20, 4, 2)


def test_numbers_are_those_of_fairseq_validate(models, tables):
    done = python_m(
        "fairseq_cli.validate", models / "corpus", "--user-dir", USER_DIR, "--cpu", "--task", "translation", "--path",
        models / "moec" / "checkpoint_best.pt", "--max-tokens", 100, "--log-format", "simple",
    )  # fmt: skip
    (line,) = re.findall(r"valid on 'valid' subset \| (loss .*)", done.stdout + done.stderr)
    logged = {key: float(value) for key, _, value in (pair.rpartition(" ") for pair in line.split(" | "))}
    routing = {name: value for name, value in logged.items() if name.startswith("moe_")}
    row = tables["models"][0]
    assert len(routing) == 9 and {name: row[name] for name in routing} == routing
    layers = [layer for layer in tables["layers"] if layer["model"] == row["model"]]
    for name, column in (("moe_load_max", "busiest expert %"), ("moe_load_min", "idlest expert %")):
        assert sum(layer[column] for layer in layers) / len(layers) == pytest.approx(routing[name], abs=6e-4)
    assert sum(layer["unused experts"] for layer in layers) == routing["moe_unused"]


def test_plain_moe_is_the_control(tables):
    first, second = dict.fromkeys(row["model"] for row in tables["models"])
    assert first.endswith("/moec/checkpoint_best") and second.endswith("/moe/checkpoint_best")
    groups = {(row["model"], row["groups"], row["the groups are"]) for row in tables["resemblance"]}
    assert groups == {(first, 2, "clusters"), (second, 2, "by number, for comparison")}
    assert len(tables["resemblance"]) == 2 * 2 * 3 and all(row["inside"] is not None for row in tables["resemblance"])
    assert {row["from the"] for row in tables["information"] if row["model"] == second} == {"expert"}


def test_curves_are_those_of_the_log(tables):
    found = {(row["when"], row["update"], row["measure"]): row["value"] for row in tables["curves"]}
    assert found[("training", 2, "loss")] == 7.1 and found[("training", 2, "moe_balance")] == 1.5
    assert found[("validation", 3, "loss")] == 6.5 and found[("validation", 3, "moe_load_max")] == 40


def test_a_masked_language_model(models, monkeypatch):
    assert report(monkeypatch, models, "lm", "--sentences", 1) == 0
    out = models / "lm" / "report" / "checkpoint_best-test"
    found = json.loads((out / "report.json").read_text(encoding="utf-8"))["tables"]
    assert found["models"][0]["set"] == "text/valid" and {row["layer"] for row in found["layers"]} == {"encoder 1"}
    assert any(row["word"] == "<mask>" for row in found["words"]) or found["words"] == []


@pytest.mark.parametrize("words, sentence", [
    (["none"], "there is neither none.pt nor none-rank-0.pt"),
    (["moec"], "Dataset not found: test"),
    (["moec", "--subset", "valid", "--max-tokens", "3"], "--max-tokens is 3, but valid has longer sentences"),
    (["moec", "--subset", "valid", "--against", "moec"], "--against moec is the model itself; give another one"),
    (["moec", "--subset", "valid", "--against", "lm"], "would read different sentences; give --data, or the text"),
    (["lm", "--input", "x"], "lm/checkpoint_best.pt does not translate; give a part of its data with --subset"),
    (["moec", "--references", "x"], "--references are the translations of --input; give both"),
    (["moec", "--sentences", "-1"], "--sentences is -1; give 0 or more"),
    (["moec", "--log", "nowhere.log"], "there is no log nowhere.log; give the rank-0.log of the training"),
    (["moec", "--log", "simple.log", "simple.log"], "--log names 2 logs, but there are 1 models"),
    (["moec", "--input", "simple.log"], "only be translated with the spm.model of moec prepare"),
])  # fmt: skip
def test_a_mistake_is_one_sentence(models, monkeypatch, capsys, words, sentence):
    assert report(monkeypatch, models, *words, "--out", "wrong") == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and sentence in error
    assert not (models / "wrong").exists()


@pytest.fixture
def prepared(tmp_path):
    """What ``moec prepare --targets de,fr`` makes, but for the binary data."""
    text = tmp_path / "text.txt"
    text.write_text("ab ba abba\nba abba ab\nabba\n" * 5)
    train_model([text], 12, "bpe", 1.0, tmp_path / "spm.model", ["<2de>", "<2fr>"])
    (tmp_path / "binary").mkdir()
    for language in ("en", "mul"):
        dictionary = Dictionary()
        for symbol in ("▁<2de>", "▁<2fr>", "▁ab", "ba", "▁", "▁ba", "▁abba", "a", "b"):
            dictionary.add_symbol(symbol)
        dictionary.save(str(tmp_path / "binary" / f"dict.{language}.txt"))
    about = {"source": "en", "target": "mul", "normalised": False, "many": ["de", "fr"]}
    (tmp_path / "prepared.json").write_text(json.dumps(about))
    return tmp_path


def test_text_is_read_with_its_translation(prepared, tmp_path):
    facts = ModelFacts(prepared / "binary", "en", "mul", 1024, False, 0, {})
    place = DataOfModel(prepared, facts, None, "fr")
    binary = place.binarise(["ab", "ba"], tmp_path / "made", ["ba ba", "ab"])
    dictionary = Dictionary.load(str(binary / "dict.en.txt"))
    sides = [data_utils.load_indexed_dataset(str(binary / f"test.en-fr.{side}")) for side in ("en", "fr")]
    source, translation = ([dictionary.string(ids, "sentencepiece") for ids in side] for side in sides)
    assert source == ["<2fr> ab", "<2fr> ba"] and translation == ["ba ba", "ab"]


@pytest.mark.parametrize("languages, expected", [
    (None, ("valid", ("en", "de"))),
    (Languages("en", "mul", ("de", "fr")), ("valid-de", ("en", "mul"))),
    (Languages("mul", "de", ("en", "fr")), ("valid-en", ("mul", "de"))),
])  # fmt: skip
def test_parts_of_data_of_many_languages(languages, expected):
    place = SimpleNamespace(many=languages, source="en", target="de", binary=Path("binary"))
    assert pipeline._part_of_data(place, "valid") == (Path("binary"), *expected)


@pytest.mark.parametrize(
    "references, translations", [([], ["eins", "zwei"]), ([["uno", "due"], ["x", "y"]], ["uno", "due"])]
)
def test_a_decoder_sees_the_references_or_what_the_model_makes(tmp_path, monkeypatch, references, translations):
    made = []

    def binarise(sentences, out, translations):
        made.append((sentences, translations))
        return tmp_path / "binary"

    def generate(model, facts, data, source, target, search, log, screen):
        log.parent.mkdir()
        log.write_text("D-1\t-0.5\tzwei\nD-0\t-0.1\teins\n")
        return 2

    place = SimpleNamespace(source="en", target="de", chosen="", name="data", binarise=binarise)
    chosen = TextSet("talk", ["one", "two"], references)
    monkeypatch.setattr(TextSet, "binarised", lambda *_: None)
    monkeypatch.setattr(pipeline, "choose", lambda *_: chosen)
    monkeypatch.setattr(pipeline, "generate", generate)
    monkeypatch.setattr(pipeline, "data_of_directions", lambda *_: [place])
    wanted = Wanted(None, None, Path("talk"), [], None)
    facts = ModelFacts(tmp_path, "en", "de", 1024, False, 0, {})
    given = pipeline.for_translation(tmp_path, facts, None, wanted, Search(), tmp_path)
    (reading,) = given.readings
    assert made == [(["one", "two"], translations)]
    assert (reading.language, reading.subset, given.name) == ("", "test", "talk")
