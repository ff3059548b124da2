import urllib.error
from pathlib import Path

import pytest
from sacrebleu.dataset import DATASETS

from moec_fairseq.evaluate.sets import BinarySet, Wanted, check_lengths, from_files, from_prepared, from_sacrebleu


def test_a_set_of_sacrebleu(tmp_path, monkeypatch):
    data = DATASETS["wmt14/full"]
    monkeypatch.setattr(data, "_outdir", str(tmp_path))
    for field in data.fieldnames("en-de"):
        (tmp_path / f"wmt14_full.en-de.{field}").write_text(
            {"src": "a  &amp; b\nx=1&section=2\n", "ref": "A\nC\n"}.get(field, "x\nx\n")
        )
    found = from_sacrebleu("wmt14/full", "en", "de")
    assert (found.source, found.references) == (["a & b", "x=1&section=2"], [["A", "C"]])
    assert from_sacrebleu("wmt14/full", "en-US", "de_AT") == found


def test_sets_that_sacrebleu_has_not():
    with pytest.raises(ValueError, match="sacrebleu has no test set wmt99; for en-de it has: .*wmt14/full"):
        from_sacrebleu("wmt99", "en", "de")
    with pytest.raises(ValueError, match="the model translates ja-fr, which wmt14/full does not have; it has cs-en"):
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
    def name(subset=None, test_set=None, text=None):
        return Wanted(subset, test_set, text, [], None).name

    texts = [tmp_path / place / "test.en" for place in ("a", "b")]
    names = {name(), name("valid"), name(test_set="wmt14/full"), *(name(text=text) for text in texts)}
    assert len(names) == 5 and {"test", "valid", "wmt14/full"} <= names
    assert name(text=texts[0]) == name(text=tmp_path / "b" / ".." / "a" / "test.en") and name(text=texts[0]) in names


@pytest.mark.parametrize("wanted, sentence", [
    (("valid", "wmt14/full", None, [], None), "--subset is for the data of the model"),
    ((None, None, Path("x.en"), [], "sentencepiece"), "--remove-bpe is for the data of the model"),
    ((None, "wmt14/full", Path("x.en"), [], None), "were both given; give one"),
    ((None, "wmt14/full", None, [Path("x.de")], None), "wmt14/full has its own; leave them out"),
])  # fmt: skip
def test_what_does_not_go_together(wanted, sentence):
    with pytest.raises(ValueError, match=sentence):
        Wanted(*wanted)


def test_a_torn_set_of_sacrebleu(tmp_path, monkeypatch):
    data = DATASETS["wmt14/full"]
    monkeypatch.setattr(data, "_outdir", str(tmp_path))
    for field in data.fieldnames("en-de"):
        (tmp_path / f"wmt14_full.en-de.{field}").write_text("a\nb\n" if field == "src" else "a\n")
    with pytest.raises(
        ValueError, match=f"different numbers of lines: .*; remove {tmp_path}, and sacrebleu downloads it again"
    ):
        from_sacrebleu("wmt14/full", "en", "de")


LOG = "S-1\tc d\nT-1\tC <<unk>>\nS-0\ta b\nT-0\tA B\n"


def test_references_of_binary_data(tmp_path, capsys):
    (tmp_path / "log").write_text(LOG)
    known = BinarySet("x", tmp_path, "test", "sentencepiece").known(tmp_path / "log")
    assert (known.source, known.references) == (["a b", "c d"], [["A B", "C <<unk>>"]])
    assert "1 of 2 references have words that the data do not know" in capsys.readouterr().out
    texts = [tmp_path / name for name in ("one", "other")]
    for text in texts:
        text.write_text(f"A B\nC {text.name}\n")
    known = BinarySet("x", tmp_path, "test", "sentencepiece", texts).known(tmp_path / "log")
    assert known.references == [["A B", "C one"], ["A B", "C other"]] and not capsys.readouterr().out
    texts[1].write_text("A B\n")
    with pytest.raises(ValueError, match=r"test has 2, .*one has 2, .*other has 1"):
        BinarySet("x", tmp_path, "test", "sentencepiece", texts).known(tmp_path / "log")


def test_text_of_the_user(tmp_path):
    (tmp_path / "a.en").write_text("a\nb\n")
    (tmp_path / "a.de").write_text("A\nB\n")
    found = from_files(tmp_path / "a.en", [tmp_path / "a.de", tmp_path / "a.de"], ("en", "de"))
    assert (found.source, found.references) == (["a", "b"], [["A", "B"], ["A", "B"]])
    assert found.checksum() != from_files(tmp_path / "a.de", [], ("de", "en")).checksum()
    (tmp_path / "a.de").write_text("A\n")
    with pytest.raises(ValueError, match=r"different numbers of lines: .*a\.en has 2, .*a\.de has 1"):
        from_files(tmp_path / "a.en", [tmp_path / "a.de"], ("en", "de"))


def test_the_test_text_is_that_which_was_published(tmp_path):
    (tmp_path / "text").mkdir()
    for name in ("test", "test-as-published", "valid"):
        for language in ("en", "de"):
            (tmp_path / "text" / f"{name}.{language}").write_text(f"{name} {language}\n")
    found = from_prepared(tmp_path / "text", "mine/test", "test", "en", "de")
    assert (found.source, found.references) == (["test-as-published en"], [["test-as-published de"]])
    assert from_prepared(tmp_path / "text", "x", "valid", "en", "de").references == [["valid de"]]
    with pytest.raises(ValueError, match="there is no .*test-as-published.fr; the model translates de to fr"):
        from_prepared(tmp_path / "text", "x", "test", "de", "fr")


def test_lengths():
    check_lengths({"a": ["x"], "b": ["y"]})
    with pytest.raises(ValueError, match="a has 1, b has 2"):
        check_lengths({"a": ["x"], "b": ["y", "z"]})


def test_test_sets_of_campaigns(tmp_path, capsys):
    segments = "".join(f'<seg id="{n}">{{0}} {n}</seg>' for n in (1, 2))
    (tmp_path / "wmt21.xml").write_text(
        '<dataset id="x"><doc origlang="en" id="d">'
        f'<src lang="en"><p>{segments.format("a&amp;b")}<seg id="3">c</seg></p></src>'
        f'<ref lang="de" translator="A"><p>{segments.format("x")}</p></ref></doc></dataset>'
    )
    both = from_files(tmp_path / "wmt21.xml", [tmp_path / "wmt21.xml"], ("en", "de"))
    assert both.source == ["a&b 1", "a&b 2"] and both.references == [["x 1", "x 2"]]
    assert "1 of 3 sentences have no translation" in capsys.readouterr().out
    assert from_files(tmp_path / "wmt21.xml", [], ("en", "de")).source == ["a&b 1", "a&b 2", "c"]
    (tmp_path / "old.SGM").write_text(f'<srcset srclang="en"><doc docid="d">{segments.format("a=1&b")}</doc></srcset>')
    (tmp_path / "old.de").write_text("x\ny\n")
    old = from_files(tmp_path / "old.SGM", [tmp_path / "old.de"], ("en", "de"))
    assert old.source == ["a=1&b 1", "a=1&b 2"] and old.references == [["x", "y"]]
    with pytest.raises(ValueError, match="is taken for the text in fr"):
        from_files(tmp_path / "old.SGM", [], ("fr", "de"))
