"""English into a made-up language of each of six scripts: prepare, a few updates of a tiny model, evaluate."""

import json
import random
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from moec_fairseq.__main__ import main, run
from moec_fairseq.data import pipeline
from moec_fairseq.data.subwords import open_model
from tests.conftest import ADAM, CRITERION, SCHEDULE, TINY
from tests.evaluate.test_multilingual import in_this_process

LINES = 300
UPDATES = 30  # after which translations have about the right length; long ones would take time
NOUNS = "house river garden window letter teacher doctor child horse road".split()
VERBS = "sees finds paints follows forgets".split()
ADJECTIVES = "red small old quiet tall new".split()
# language -> syllables, what is between words, what is at the end
SCRIPTS = {
    "cs": ("ža ří čů ně do ve sta ky mů lou", " ", "."),
    "ru": ("жа рё чу не до ве ста кы мю лой", " ", "."),
    "ar": ("با تُ ثِ جو ح\u200cه دّ ذي را زَ لا", " ", "؟\u200f"),
    "hi": ("का खि गी घु चू जे टै डो थौ क्\u200dष", " ", "।"),
    "th": ("กา ขิ คี งุ จู เช แด โต ไท น้ำ", "", ""),
    "zh": ("我 你 的 红 大 房 河 书 马 路", "", "。”"),
}
TOKENIZERS = {"cs": "13a", "ru": "13a", "ar": "13a", "hi": "13a", "th": "char", "zh": "zh"}


def sentences(language, lines):
    """Yield English sentences and their translations, word by word, with the verb at the end; all differ."""
    chance = random.Random(1)
    syllables, blank, end = SCRIPTS[language]
    words = {}
    for word in [*NOUNS, *VERBS, *ADJECTIVES]:
        while (translated := "".join(chance.choices(syllables.split(), k=3))) in words.values():
            pass
        words[word] = translated
    seen = set()
    while len(seen) < lines:
        first, second = chance.sample(NOUNS, 2)
        verb, *both = chance.choice(VERBS), *chance.choices(ADJECTIVES, k=2)
        english = f"The {both[0]} {first} {verb} the {both[1]} {second}."
        if english not in seen:
            seen.add(english)
            yield english, blank.join(words[word] for word in (both[0], first, both[1], second, verb)) + end


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Do all in this process; return the character coverages that were asked for."""
    coverages = []

    def train_model(texts, size, kind, coverage, *others):
        coverages.append(coverage)
        learn(texts, size, kind, coverage, *others)

    learn = pipeline.train_model
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "train_model", train_model)
    for place in ("data.subwords.run_fairseq", "evaluate.generate.run_fairseq"):
        monkeypatch.setattr(f"moec_fairseq.{place}", in_this_process)
    monkeypatch.setattr("moec_fairseq.data.pipeline.start_workers", ThreadPoolExecutor)
    return coverages


@pytest.mark.parametrize("language", SCRIPTS)
def test_from_text_to_scores(language, here, tmp_path, monkeypatch, capsys):
    pairs = list(sentences(language, LINES))
    for side, code in enumerate(("en", language)):
        (tmp_path / f"mine.{code}").write_text("".join(f"{pair[side]}\n" for pair in pairs))
    run([
        "prepare", "--train-prefix", "mine", "--target", language, "--vocab-size", "auto", "--workers", 1,
        "--out", "data",
    ])  # fmt: skip
    assert here == [0.9995 if language == "zh" else 1.0]
    kept = {}
    for split in ("train", "valid", "test"):
        english, other = ((tmp_path / f"data/text/{split}.{code}").read_text().split("\n") for code in ("en", language))
        kept[split] = list(zip(english[:-1], other[:-1], strict=True))
    assert all(kept.values()) and sorted(sum(kept.values(), [])) == sorted(pairs)  # nothing is a copy, nothing is lost
    processor = open_model(tmp_path / "data/spm.model")
    assert all(processor.decode(processor.encode(text)) == text for pair in pairs for text in pair)

    in_this_process(
        "train", "data/binary", *TINY, *CRITERION, *ADAM, *SCHEDULE, "--save-dir", "saved", "--max-update", UPDATES,
        "--warmup-updates", 10, "--no-epoch-checkpoints", "--disable-validation", log=tmp_path / "log",
    )  # fmt: skip
    words = ["moec", "evaluate", "--checkpoints", "saved/checkpoint_last.pt", "--cpu", "--beam", "1", "--samples", "0"]
    monkeypatch.setattr(sys, "argv", words)
    assert main() == 0, capsys.readouterr().err
    (found,) = tmp_path.glob("saved/evaluation/*/*/scores.json")
    result = json.loads(found.read_text())
    signatures = {name: score["signature"] for name, score in result["scores"].items()}
    assert result["sentences"] == len(kept["test"])
    assert f"|tok:{TOKENIZERS[language]}|" in signatures["BLEU"] and "|nw:2|" in signatures["chrF++"]
    tables = {"13a": {"TER", "BLEU, tokenised", "BLEU, compounds split"}, "zh": {"TER"}, "char": set()}
    assert set(signatures) == {"BLEU", "chrF", "chrF++"} | tables[TOKENIZERS[language]]


@pytest.mark.parametrize("options, asked", [
    (["--target", "zh", "--character-coverage", "0.99"], 0.99),
    (["--target", "ja", "--character-coverage", "1"], 1.0),
    (["--targets", "de,ko"], 0.9995),
    (["--source", "zh_CN", "--target", "th"], 0.9995),
    (["--targets", "th,hi"], 1.0),
])  # fmt: skip
def test_the_coverage_of_characters_that_was_given_wins(options, asked, here, tmp_path):
    for language in ("en", "zh_CN", "zh", "ja", "de", "ko", "th", "hi"):
        for split in ("train", "valid", "test"):
            (tmp_path / f"{split}.{language}").write_text("a b c\n")
    prefixes = [word for split in ("train", "valid", "test") for word in (f"--{split}-prefix", split)]
    with pytest.raises(ValueError, match="vocabulary size 4 is too small: .*; give more, or auto, or a smaller --char"):
        run(["prepare", *prefixes, *options, "--vocab-size", 4, "--workers", 1, "--out", "data"])
    assert here == [asked]


def test_a_size_that_is_none(capsys):
    with pytest.raises(SystemExit):
        run(["prepare", "--train-prefix", "x", "--vocab-size", "some"])
    assert "--vocab-size: 'some' is neither a whole number nor auto" in capsys.readouterr().err
