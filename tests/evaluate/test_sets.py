import urllib.error

import pytest
from sacrebleu.dataset import DATASETS

from moec_fairseq.evaluate.choose import Wanted, from_files, from_prepared, from_sacrebleu
from moec_fairseq.evaluate.sets import check_lengths


def test_a_set_of_sacrebleu(tmp_path, monkeypatch):
    data = DATASETS["wmt14/full"]
    monkeypatch.setattr(data, "_outdir", str(tmp_path))
    for field in data.fieldnames("en-de"):
        (tmp_path / f"wmt14_full.en-de.{field}").write_text(
            {"src": "a  &amp; b\nc\n", "ref": "A\nC\n"}.get(field, "x\nx\n")
        )
    found = from_sacrebleu("wmt14/full", "en", "de")
    assert (found.source, found.references) == (["a & b", "c"], [["A", "C"]])


def test_sets_that_sacrebleu_has_not():
    with pytest.raises(ValueError, match="sacrebleu has no test set wmt99; for en-de it has: .*wmt14/full"):
        from_sacrebleu("wmt99", "en", "de")
    with pytest.raises(ValueError, match="the model translates ja-fr, which wmt14/full has not; it has cs-en"):
        from_sacrebleu("wmt14/full", "ja", "fr")


def test_no_network(tmp_path, monkeypatch):
    data = DATASETS["wmt14/full"]
    monkeypatch.setattr(data, "_outdir", str(tmp_path))
    monkeypatch.setattr(data, "_rawdir", str(tmp_path / "raw"))

    def refused(*args, **kwargs):
        raise urllib.error.URLError("refused")

    monkeypatch.setattr("urllib.request.urlopen", refused)
    with pytest.raises(ValueError, match=r"cannot get the test set wmt14/full \(refused\); check the network, or give"):
        from_sacrebleu("wmt14/full", "en", "de")


def test_what_sets_are_called_in_the_names_of_folders(tmp_path):
    def name(subset="test", test_set=None, text=None):
        return Wanted(subset, test_set, text, [], None).name

    texts = [tmp_path / place / "test.en" for place in ("a", "b")]
    names = {name(), name("valid"), name(test_set="wmt14/full"), *(name(text=text) for text in texts)}
    assert len(names) == 5 and {"test", "valid", "wmt14/full"} <= names
    assert name(text=texts[0]) == name(text=tmp_path / "b" / ".." / "a" / "test.en") and name(text=texts[0]) in names


def test_text_of_the_user(tmp_path):
    (tmp_path / "a.en").write_text("a\nb\n")
    (tmp_path / "a.de").write_text("A\nB\n")
    found = from_files(tmp_path / "a.en", [tmp_path / "a.de", tmp_path / "a.de"])
    assert (found.source, found.references) == (["a", "b"], [["A", "B"], ["A", "B"]])
    assert found.checksum() != from_files(tmp_path / "a.de", []).checksum()
    (tmp_path / "a.de").write_text("A\n")
    with pytest.raises(ValueError, match=r"different numbers of lines: .*a\.en has 2, .*a\.de has 1"):
        from_files(tmp_path / "a.en", [tmp_path / "a.de"])


def test_the_test_text_is_that_which_was_published(tmp_path):
    (tmp_path / "text").mkdir()
    for name in ("test", "test-as-published", "valid"):
        for language in ("en", "de"):
            (tmp_path / "text" / f"{name}.{language}").write_text(f"{name} {language}\n")
    found = from_prepared(tmp_path, "test", "en", "de")
    assert (found.source, found.references) == (["test-as-published en"], [["test-as-published de"]])
    assert from_prepared(tmp_path, "valid", "en", "de").references == [["valid de"]]
    with pytest.raises(ValueError, match="there is no .*test-as-published.fr; the model translates de to fr"):
        from_prepared(tmp_path, "test", "de", "fr")


def test_lengths():
    check_lengths({"a": ["x"], "b": ["y"]})
    with pytest.raises(ValueError, match="a has 1, b has 2"):
        check_lengths({"a": ["x"], "b": ["y", "z"]})
