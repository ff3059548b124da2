import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from moec_fairseq.evaluate import pipeline
from moec_fairseq.evaluate.generate import Binarised, Search
from moec_fairseq.evaluate.model import ModelFacts
from moec_fairseq.evaluate.pipeline import keep_texts, translated
from moec_fairseq.evaluate.sets import TextSet

LOG = "S-0\ta b\nD-0\t-0.1\tA  B\n"


class Sentences(TextSet):
    def binarised(self, data, out):
        return Binarised(out, "test", "sentencepiece")


@pytest.fixture
def translate(tmp_path, monkeypatch):
    """Return a function that translates one sentence; what happens meanwhile is its argument."""
    model = tmp_path / "model.pt"
    model.touch()
    data = SimpleNamespace(source="en", target="de", binary=tmp_path, prepared=None)

    def run(meanwhile=lambda model: None, count=1):
        def generate(model, facts, data, source, target, search, log, screen):
            log.write_text(LOG)
            meanwhile(model)
            return count

        monkeypatch.setattr(pipeline, "generate", generate)
        facts = ModelFacts(Path(), "en", "de", 1024, False, model.stat().st_mtime_ns, {})
        return translated(Sentences("x", ["a b"], [["A B"]]), model, ["model"], facts, data, Search(), tmp_path)

    return run


def test_they_are_made_once(translate, tmp_path):
    assert translate().hypotheses == ["A B"]
    (tmp_path / "scores.json").touch()
    assert translate(count=2).hypotheses == ["A B"] and (tmp_path / "scores.json").exists()


def test_another_evaluation_replaces_the_model(translate, tmp_path):
    (tmp_path / "scores.json").touch()
    with pytest.raises(ValueError, match=r"model\.pt was replaced by another evaluation meanwhile"):
        translate(lambda model: os.utime(model, (1, 1)))
    assert not (tmp_path / "translations.txt").exists() and not (tmp_path / "scores.json").exists()
    assert translate().hypotheses == ["A B"]


def test_translations_that_are_missing_at_the_end(translate):
    with pytest.raises(ValueError, match="1 of 2 translations are missing, the first is that of sentence 2"):
        translate(count=2)


def test_texts_of_earlier_scores_go(tmp_path):
    for name in ("references1.txt", "scores.json"):
        (tmp_path / name).touch()
    keep_texts(TextSet("x", ["a"], [["A"]]), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["references.txt", "source.txt"]
