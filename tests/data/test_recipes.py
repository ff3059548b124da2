from pathlib import Path

import pytest

from moec_fairseq.data.formats.places import Place
from moec_fairseq.data.recipes import read_recipe

DATA = Path(__file__).parents[2] / "data"
NAMES = ["iwslt14_de_en", "multi30k_en_de", "multi30k_en_fr", "wmt14_en_de", "wmt14_en_fr", "wmt16_en_de"]


def test_all_recipes_can_be_read():
    assert sorted(path.stem for path in DATA.glob("*.yaml")) == NAMES
    for name in NAMES:
        recipe = read_recipe(DATA / f"{name}.yaml")
        assert f"{recipe.source}_{recipe.target}" == name[-5:]
        used = {place.file for part in recipe.parts for place in part.texts.values()}
        assert used == set(recipe.archives)
        files = [archive.file_name for archive in recipe.archives.values()]
        assert len(set(files)) == len(files)


def test_the_other_direction():
    recipe = read_recipe(DATA / "wmt14_en_de.yaml", target="en")
    assert (recipe.source, recipe.target) == ("de", "en")
    assert read_recipe(DATA / "wmt14_en_de.yaml", source="en").target == "de"


@pytest.mark.parametrize("source, target, message", [
    ("fr", None, "--source is fr, but wmt14_en_de has en and de"),
    ("de", "de", "both de"),
])  # fmt: skip
def test_languages_it_has_not(source, target, message):
    with pytest.raises(ValueError, match=message):
        read_recipe(DATA / "wmt14_en_de.yaml", source, target)


GOOD = """
source: en
target: de
archives: {a: {url: "http://x/a.tgz", licence: none}}
parts:
- {use: train, texts: {en: "a:x.en", de: "a:x.de"}}
- {use: valid, texts: {en: "a:x.en", de: "a:x.de"}}
- {use: test, texts: {en: "a:x.en", de: "a:x.de"}}
"""


@pytest.mark.parametrize("old, new, message", [
    ("source: en\n", "", "is not a recipe"),
    ("use: valid", "use: dev", "for 'dev', but must be for one of train, valid, test"),
    ('en: "a:x.en"', 'no: "a:x.no"', "has False, de, but must have en and de"),
    ('en: "a:x.en"', 'fr: "a:x.fr"', "has fr, de, but must have en and de"),
    ('"a:x.en"', '"b:x.en"', "in 'b', which is not among the archives"),
    ("use: valid", "use: test", "no part is for valid; add one, or valid_every"),
    ("licence: none", "license: none", "is not a recipe"),
    ("parts:", "parts: [", "is not a recipe"),
    ("target: de", "target: no", "False is not a language; put a code such as no in quotes"),
    ("target: de", "target: en", "source and target are both 'en'"),
    ("parts:", "valid_evry: 23\nparts:", "valid_evry is none of source, target"),
    ("use: valid,", "use: valid, weight: 2,", "weight is none of use, reference, texts"),
    ("use: test,", "use: test, reference: 7,", "reference is 7, but must be text, in quotes"),
    ('"a:x.en", de: "a:x.de"', '"a:x.de.SGM.gz", de: "a:x.en.SGM.gz"', "x.de.SGM.gz is taken for en; exchange"),
    ("url: \"http://x/a.tgz\"", "url: 7", "url of archive a is 7, but must be text, in quotes"),
    ("licence: none}", "licence: none, bytes: \"7\"}", "bytes of archive a is '7', but must be a whole number"),
    ("licence: none}", "licence: none, md5: 12345}", "but must be text, in quotes"),
    ('"a:x.en", de: "a:x.de"', '"a:x.de", de: "a:x.en"', "x.de is taken for en; exchange the two sides"),
    ('"a:x.en", de: "a:x.de"', '"a:s.de.sgm", de: "a:r.en.sgm"', "s.de.sgm is taken for en; exchange"),
    ('"a:x.en", de: "a:x.de"', '"a:x.tsv#1", de: "a:x.tsv#1"', "both sides are a:x.tsv#1, but each must have a column"),
    ('texts: {en: "a:x.en", de: "a:x.de"}', 'opus: X', "opus is X, but must be CORPUS/VERSION, such as Tatoeba/v20"),
    (', texts: {en: "a:x.en", de: "a:x.de"}', "", "a part for train needs one of texts, opus, mtdata"),
    ("parts:", "valid_every: 1\nparts:", "valid_every is 1, but must be a whole number from 2"),
    ("licence: none}}", "licence: none}, b: {url: 'http://y/a.tgz', licence: none}}", "would have the name a.tgz"),
])  # fmt: skip
def test_recipes_that_make_no_sense(tmp_path, old, new, message):
    (tmp_path / "x.yaml").write_text(GOOD)
    read_recipe(tmp_path / "x.yaml")
    (tmp_path / "x.yaml").write_text(GOOD.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        read_recipe(tmp_path / "x.yaml")
    (tmp_path / "x.yaml").write_bytes(b"source: \xff")
    with pytest.raises(ValueError, match=r"x\.yaml is not a recipe \(UnicodeDecodeError"):
        read_recipe(tmp_path / "x.yaml")


@pytest.mark.parametrize("name", ["x.xml", "d/x.en-de.XML", "x.sgm.gz"])
def test_one_file_for_both_sides(tmp_path, name):
    two = 'test, texts: {en: "a:x.en", de: "a:x.de"}'
    assert two in GOOD
    one = f'test, reference: B, texts: {{en: "a:{name}", de: "a:{name}"}}'
    (tmp_path / "x.yaml").write_text(GOOD.replace(two, one))
    part = read_recipe(tmp_path / "x.yaml").parts[-1]
    assert part.texts == {"en": Place("a", name), "de": Place("a", name)} and part.reference == "B"
