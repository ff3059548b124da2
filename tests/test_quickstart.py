"""The quickstart of many languages, its steps in this process; tests/scripts has that of one pair as users start it."""

import json
import random
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from moec_fairseq import quickstart
from moec_fairseq.__main__ import ROOT, main
from moec_fairseq.launch.configuration import configure
from tests.conftest import ADAM, CRITERION, LETTERS, SCHEDULE, TINY
from tests.evaluate.test_multilingual import SENTENCES, in_this_process


def write_texts(folder):
    """Write English that is translated into the same sentence, a different one for each language."""
    letters = random.Random(3)
    english = list(dict.fromkeys(" ".join(letters.choices(LETTERS, k=5)) for _ in range(430)))
    for part, sources in {"valid": english[:5], "test": english[5:20], "train": english[20:]}.items():
        for language, sentence in {"en": None, **SENTENCES}.items():
            (folder / f"{part}.{language}").write_text("".join(f"{sentence or source}\n" for source in sources))


@pytest.fixture
def trainings(monkeypatch):
    """Train a tiny model in the place of the real one; return what was asked for."""
    found = []

    def train_once(config, overrides, save_dir, inputs, max_update, schedule):
        values = configure(ROOT / "configs" / f"{config}.yaml", [*overrides, *schedule]).values
        found.append(values | {"max_update": max_update})
        save_dir.mkdir()
        sides = ("-s", values["task.source_lang"], "-t", values["task.target_lang"])
        in_this_process(
            "train", values["task.data"], *TINY, *CRITERION, *ADAM, *SCHEDULE, *sides, "--save-dir", save_dir,
            "--warmup-updates", 10, "--max-update", 50, "--validate-interval", 100, "--no-epoch-checkpoints",
            log=save_dir / "log",
        )  # fmt: skip

    monkeypatch.setattr(quickstart, "train_once", train_once)
    for place in ("data.subwords.run_fairseq", "evaluate.generate.run_fairseq"):
        monkeypatch.setattr(f"moec_fairseq.{place}", in_this_process)
    monkeypatch.setattr("moec_fairseq.data.pipeline.start_workers", ThreadPoolExecutor)
    return found


def moec(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["moec", *map(str, words)])
    return main(), capsys.readouterr()


def test_from_text_to_scores_and_samples_of_each_language(tmp_path, monkeypatch, capsys, trainings):
    write_texts(tmp_path)
    work = tmp_path / "work"
    prefixes = [word for part in ("train", "valid", "test") for word in (f"--{part}-prefix", tmp_path / part)]
    words = ["quickstart", "--cpu", *prefixes, "--targets", "fr,pt", "--max-update", 16, "--work-dir", work]
    code, said = moec(monkeypatch, capsys, *words)
    assert code == 0, said.err
    (asked,) = trainings
    assert (asked["task.source_lang"], asked["task.target_lang"], asked["max_update"]) == ("en", "mul", 16)
    for language, sentence in SENTENCES.items():
        folder = work / f"moec-seed1/evaluation/best/test-en-{language}-beam5"
        assert set((folder / "translations.txt").read_text().splitlines()) == {sentence}
        assert json.loads((folder / "scores.json").read_text())["scores"]["BLEU"]["value"] == 100.0
        assert said.out.count(f"  translation {sentence}\n") == 4  # eight samples of two languages
    *_, table = said.out.partition("direction")
    assert [line.split()[0] for line in table.splitlines()[2:5]] == ["en-fr", "en-pt", "mean"]
    assert "moec-seed1 --to fr\n" in said.out


@pytest.mark.parametrize("words, options, folder", [
    (["--targets", "de,fr,es,nl"], ["--targets", "de,fr,es,nl"], "quickstart-en-de-fr-es-nl"),
    (["--sources", "de,fr", "--target", "en"], ["--target", "en", "--sources", "de,fr"], "quickstart-de-fr-en"),
    (["--target", "nl"], ["--target", "nl"], "quickstart-en-nl"),
    ([], [], "quickstart-en-de"),
])  # fmt: skip
def test_each_choice_of_languages_has_its_folder_and_vocabulary(words, options, folder, monkeypatch, capsys):
    done = []

    def stop_after_prepare(command):
        done.extend(map(str, command))
        raise ValueError("that is enough")

    monkeypatch.setattr(quickstart, "run", stop_after_prepare)
    assert moec(monkeypatch, capsys, "quickstart", *words)[0] == 1
    languages = folder.count("-")
    assert done[:2] == ["prepare", "quickstart"] and done[2 : done.index("--tier")] == options
    assert done[done.index("--out") + 1 :] == [str(ROOT / folder), "--vocab-size", str(2000 * languages)]


@pytest.mark.parametrize("words", [["--target", "ja"], ["--targets", "de,ja"]])
def test_what_scores_need_is_said_first(words, monkeypatch, capsys):
    monkeypatch.setattr("sacrebleu.tokenizers.tokenizer_ja_mecab.MeCab", None)
    monkeypatch.setattr(quickstart, "run", None)
    code, said = moec(monkeypatch, capsys, "quickstart", "--train-prefix", "x", *words)
    assert code == 1 and said.err.endswith('; pip install "sacrebleu[ja]" gets it\n')


@pytest.mark.parametrize("words, sentence", [
    (["--targets", "de,tlh"], "there are no messages in tlh; choose of de, fr, es, nl, or give --train FILE"),
    (["--targets", "de"], "--targets is de; give two languages or more, such as de,fr, or use --target"),
    (["--targets", "de,fr", "--target", "es"], "--targets and --target were both given; give one of them"),
    (["--sources", "de,fr", "--targets", "de,fr"], "one model has many languages on one side only"),
    (["--target", "tlh"], "there are no messages in tlh; choose of de, fr, es, nl, or give --train FILE"),
    (["--source", "fr"], "--source is fr, but the messages are in English; give en, or --train FILE"),
    (["--max-update", "0"], "--max-update is 0"),
    (["--valid-prefix", "x"], "--valid-prefix is for your own text: give --train or --train-prefix"),
    (["--train-prefix", "/nowhere/text"], "/nowhere/text.en: no such file"),
])  # fmt: skip
def test_a_mistake_is_one_line(words, sentence, monkeypatch, capsys):
    code, said = moec(monkeypatch, capsys, "quickstart", *words)
    assert code == 1 and said.err.count("\n") == 1 and sentence in said.err
