import json
from dataclasses import replace
from pathlib import Path

import pytest

from moec_fairseq.evaluate.model import DataOfModel, ModelFacts, data_of_directions, select
from moec_fairseq.evaluate.multilingual import TASK, multilingual


@pytest.fixture
def binary(tmp_path):
    return make(tmp_path / "corpus" / "binary")


def make(folder, subwords="\u2581a 1\nb 1\n", languages=("en", "de")):
    folder.mkdir(parents=True)
    for language in languages:
        (folder / f"dict.{language}.txt").write_text(subwords)
        (folder / f"test.{'-'.join(languages)}.{language}.idx").touch()
    return folder


def facts(data, source=None, target=None):
    return ModelFacts(Path(data), source, target, 1024, False, 0, {})


def test_data_of_the_training(binary):
    found = DataOfModel(None, facts(binary))
    assert (found.binary, found.prepared, found.source, found.target) == (binary, None, "en", "de")
    assert found.segmentation() == "sentencepiece"
    with pytest.raises(ValueError, match=r"only be translated with the spm\.model"):
        found.subword_model()


def test_data_of_moec_prepare(binary):
    (binary.parent / "spm.model").touch()
    for place in (binary, binary.parent):
        found = DataOfModel(place, facts("gone", "en", "de"))
        assert (found.binary, found.prepared) == (binary, binary.parent)
        assert found.subword_model() == binary.parent / "spm.model"


@pytest.mark.parametrize("languages", [("en", "pt-BR"), ("zh-Hant", "en"), ("en", "zh_CN"), ("sr-Latn", "pt-BR")])
def test_languages_with_hyphens(tmp_path, languages):
    found = DataOfModel(make(tmp_path / "data", languages=languages), facts("gone"))
    assert (found.source, found.target) == languages


def test_segmentation_of_subword_nmt(tmp_path):
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


@pytest.mark.parametrize("about, expected", [(None, "a-b c"), ("true", "a-b c"), ("false", "a–b c")])
def test_text_is_normalised_as_that_of_the_training(binary, tmp_path, monkeypatch, about, expected):
    monkeypatch.setattr("moec_fairseq.evaluate.model.binarise_sentences", lambda sentences, *_: list(sentences))
    (binary.parent / "spm.model").touch()
    if about:
        (binary.parent / "prepared.json").write_text(f'{{"normalised": {about}}}')
    assert DataOfModel(binary, facts("gone", "en", "de")).binarise(["a–b\u00a0c\r"], tmp_path) == [expected]


@pytest.fixture
def many(tmp_path):
    """Return binary data of English into German and French, around which is the folder of moec prepare."""
    folder = make(tmp_path / "many" / "binary", languages=("en", "mul")).parent
    (folder / "spm.model").touch()
    about = {"source": "en", "target": "mul", "normalised": False, "many": ["de", "fr"]}
    (folder / "prepared.json").write_text(json.dumps(about))
    return folder


@pytest.mark.parametrize("recorded", [("en", "mul"), (None, None)])
def test_many_languages(many, tmp_path, monkeypatch, recorded):
    found = data_of_directions(many, facts("gone", *recorded), None, None)
    assert [(place.source, place.target, place.chosen) for place in found] == [
        ("en", "de", "en-de"),
        ("en", "fr", "en-fr"),
    ]
    (french,) = data_of_directions(many / "binary", facts("gone", *recorded), None, "fr")
    assert french.text() == many / "text" / "fr" and french.dictionary("target") == many / "binary" / "dict.mul.txt"
    monkeypatch.setattr("moec_fairseq.evaluate.model.binarise_sentences", lambda sentences, *_: list(sentences))
    assert french.binarise(["a–b"], tmp_path) == ["<2fr> a–b"]
    with pytest.raises(ValueError, match=r"^the model translates en to de, fr; choose with --target-lang$"):
        DataOfModel(many, facts("gone", *recorded))
    with pytest.raises(ValueError, match=r"^the model translates en to de, fr, but not en to es$"):
        DataOfModel(many, facts("gone", *recorded), None, "es")


def test_data_of_many_languages_for_a_model_of_one_pair(many):
    with pytest.raises(ValueError, match=r"translates en to de, but there is no .*dict\.de\.txt"):
        data_of_directions(many, facts("gone", "en", "de"), None, None)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "moec" / "seed1"
    folder.mkdir(parents=True)
    for name in ("checkpoint1-rank-0.pt", "checkpoint1-rank-1.pt", "checkpoint2-rank-0.pt", "checkpoint_best.pt"):
        (folder / name).touch()
    return folder


def test_which_checkpoints(folder):
    one, two = folder / "checkpoint1.pt", folder / "checkpoint2.pt"
    for arguments, name, paths in (
        ((folder, 2, False, None), "last2", [one, two]),
        ((folder, 1, False, "epoch"), "last1", [two]),
        ((folder, None, False, None), "last2", [one, two]),
        ((folder, None, True, None), "best", [folder / "checkpoint_best.pt"]),
        ((two, None, False, None), "checkpoint2", [two]),
    ):
        found = select(*arguments)
        assert (found.name, found.paths, found.system) == (name, paths, "moec/seed1")


@pytest.mark.parametrize("average, best, message", [
    (3, False, r"--average is 3, but .* holds 2 numbered checkpoints; give 2 or less; or give --best$"),
    (3, True, "--average and --by are for several checkpoints"),
])  # fmt: skip
def test_which_is_not_clear(folder, average, best, message):
    with pytest.raises(ValueError, match=message):
        select(folder, average, best, None)


def test_other_files_of_the_same_names(folder):
    before = select(folder, 1, False, None).fingerprint()
    assert select(folder, 1, False, None).fingerprint() == before
    (folder / "checkpoint2-rank-0.pt").write_text("new")
    assert select(folder, 1, False, None).fingerprint() != before
