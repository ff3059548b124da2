from dataclasses import replace
from pathlib import Path

import pytest

from moec_fairseq.evaluate.data import DataOfModel
from moec_fairseq.evaluate.model import ModelFacts
from moec_fairseq.evaluate.multilingual import TASK, multilingual


@pytest.fixture
def binary(tmp_path):
    return make(tmp_path / "corpus" / "binary")


def make(folder, pieces="\u2581a 1\nb 1\n", languages=("en", "de")):
    folder.mkdir(parents=True)
    for language in languages:
        (folder / f"dict.{language}.txt").write_text(pieces)
        (folder / f"test.{'-'.join(languages)}.{language}.idx").touch()
    return folder


def facts(data, source=None, target=None):
    return ModelFacts(Path(data), source, target, 1024, False, 0, {})


def test_data_of_the_training(binary):
    found = DataOfModel(None, facts(binary))
    assert (found.binary, found.prepared, found.source, found.target) == (binary, None, "en", "de")
    assert found.segmentation() == "sentencepiece"
    with pytest.raises(ValueError, match=r"only be translated with the spm\.model"):
        found.pieces_model()


def test_data_of_prepare_data(binary):
    (binary.parent / "spm.model").touch()
    for place in (binary, binary.parent):
        found = DataOfModel(place, facts("gone", "en", "de"))
        assert (found.binary, found.prepared) == (binary, binary.parent)
        assert found.pieces_model() == binary.parent / "spm.model"


@pytest.mark.parametrize("languages", [("en", "pt-BR"), ("zh-Hant", "en"), ("en", "zh_CN"), ("sr-Latn", "pt-BR")])
def test_languages_with_hyphens(tmp_path, languages):
    found = DataOfModel(make(tmp_path / "data", languages=languages), facts("gone"))
    assert (found.source, found.target) == languages


def test_pieces_of_subword_nmt(tmp_path):
    assert DataOfModel(make(tmp_path / "data", "a@@ 1\nb 1\n"), facts("gone")).segmentation() == "subword_nmt"


def test_data_that_do_not_fit(binary, tmp_path):
    with pytest.raises(ValueError, match="there is no folder elsewhere; give --data"):
        DataOfModel(None, facts("elsewhere", "en", "de"))
    with pytest.raises(ValueError, match=r"translates en to fr, but there is no .*dict\.fr\.txt"):
        DataOfModel(binary, facts("gone", "en", "fr"))
    with pytest.raises(ValueError, match=r"is not the dictionary of the training, .*; other text is translated with"):
        DataOfModel(make(tmp_path / "other", "c 1\n"), facts(binary))
    (binary / "test.fr-de.fr.idx").touch()
    with pytest.raises(ValueError, match="does not say between which languages it translates, and .* has 2 pairs"):
        DataOfModel(binary, facts("gone"))


def test_several_folders(binary):
    found = DataOfModel(Path(f"{binary}:elsewhere"), facts("gone"))
    assert (found.binary, found.source, found.target, found.chosen) == (binary, "en", "de", "")
    (binary.parent / "spm.model").touch()
    assert DataOfModel(Path(f"{binary.parent}:elsewhere"), facts("gone")).prepared == binary.parent


def test_languages_that_are_given(binary):
    (binary / "test.fr-de.fr.idx").touch()
    (binary / "dict.fr.txt").touch()
    found = DataOfModel(binary, facts("gone"), "fr", "de")
    assert (found.source, found.target, found.chosen) == ("fr", "de", "fr-de")
    for given in ((None, None), ("en", "de"), ("en", None), (None, "de")):
        found = DataOfModel(binary, facts("gone", "en", "de"), *given)
        assert (found.source, found.target, found.chosen) == ("en", "de", "")
    with pytest.raises(ValueError, match="translates en to de; leave out --source-lang and --target-lang"):
        DataOfModel(binary, facts("gone", "en", "de"), "fr", None)
    with pytest.raises(ValueError, match="go together; give both"):
        DataOfModel(binary, facts("gone"), "fr", None)
    with pytest.raises(ValueError, match="has 2 pairs .*; give --data .*, or --source-lang and --target-lang"):
        DataOfModel(binary, facts("gone"))


def test_dictionaries_of_a_model_of_several_pairs(binary, tmp_path):
    saved = {"_name": TASK, "lang_pairs": ["en-de", "en-fr"], "source_dict": str(tmp_path / "all.txt")}
    several = replace(facts("gone"), several=multilingual(saved))
    with pytest.raises(ValueError, match=r"translates en to de, but there is no .*all\.txt"):
        DataOfModel(binary, several, None, "de")
    (tmp_path / "all.txt").touch()
    found = DataOfModel(binary, several, None, "de")
    assert [found.dictionary(side) for side in ("source", "target")] == [tmp_path / "all.txt", binary / "dict.de.txt"]
    assert found.chosen == "en-de"
