"""Corpora by their names: those of OPUS, and those of mtdata, of which a small one of our own stands here."""

import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from moec_fairseq.data import catalogues
from moec_fairseq.data.catalogues import from_mtdata, from_opus
from moec_fairseq.data.formats import archives
from moec_fairseq.data.published import write_published
from moec_fairseq.data.recipes import read_recipe

from .formats.test_formats import PAIRS
from .formats.test_places import OPUS, zipped


@pytest.mark.parametrize("name, languages, url", [
    ("Tatoeba/v2023-04-12", ("en", "de"), "OPUS-Tatoeba/v2023-04-12/moses/de-en.txt.zip"),
    ("OpenSubtitles/v2018", ("zh_CN", "en"), "OPUS-OpenSubtitles/v2018/moses/en-zh_CN.txt.zip"),
    ("OpenSubtitles/v2018/en-pt_br", ("en", "pt-BR"), "OPUS-OpenSubtitles/v2018/moses/en-pt_br.txt.zip"),
])  # fmt: skip
def test_archives_of_opus(name, languages, url):
    found, (texts,) = from_opus(name, *languages)
    ((key, archive),) = found.items()
    assert archive.url == f"https://object.pouta.csc.fi/{url}"
    assert archive.file_name == re.sub(r"OPUS-|/moses", "", url).replace("/", "-")  # each file has its own
    assert list(texts) == list(languages) and {str(place) for place in texts.values()} == {key}


RECIPE = """
source: en
target: de
parts:
- {use: train, opus: X/v1}
- {use: valid, opus: X/v2}
- {use: test, opus: X/v2}
"""


def test_a_recipe_of_names_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogues, "OPUS", "http://127.0.0.1:9/{corpus}/{version}/{pair}.txt.zip")
    monkeypatch.setattr(archives, "PAUSE", 0.0)
    (tmp_path / "x.yaml").write_text(RECIPE)
    recipe = read_recipe(tmp_path / "x.yaml", "de")
    raw, out = tmp_path / "raw", tmp_path / "out/text"
    raw.mkdir()
    zipped(raw / "X-v1-de-en.txt.zip", OPUS)
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(ValueError, match=r"X/v2/de-en.txt.zip cannot be downloaded .* as X-v2-de-en.txt.zip"):
            write_published(recipe, raw, out, pool, 1)
        zipped(raw / "X-v2-de-en.txt.zip", {"x.en": b"a\n", "x.de": b"A\n"})
        write_published(recipe, raw, out, pool, 1)
    assert (out / "train.de").read_text().splitlines()[-1] == PAIRS[-1][1] and (out / "test.en").read_text() == "a\n"


# id -> languages of the corpus, URLs, ending, and what else mtdata says
INDEX = {
    "zip": ("deu eng", "http://x/a.zip", "zip", {"in_ext": "txt", "in_paths": ["*.de", "*.en"]}),
    "tsv": ("deu eng", "http://x/a.tsv.gz", "tsv.gz", {}),
    "columns": ("eng deu", "http://x/a.tgz", "tgz", {"in_ext": "tsv", "in_paths": ["a.txt"], "cols": (2, 3)}),
    "tmx": ("eng deu", "http://x/a.zip", "zip", {"in_ext": "tmx", "in_paths": ["a.tmx", "b.tmx"]}),
    "two": ("eng deu", ["http://x/a.en", "http://x/a.de"], "txt", {}),
    "one-column": ("eng deu", ["http://x/a.en", "http://x/a.de"], "txt", {"in_ext": "tsv", "cols": (1,)}),
    "xlsx": ("eng deu", "http://x/a.xlsx", "xlsx", {}),
    "french": ("eng fra", "http://x/a.zip", "zip", {"in_ext": "txt", "in_paths": ["*.en", "*.fr"]}),
}


@pytest.fixture
def mtdata(monkeypatch, tmp_path):
    """Put a package into the place of mtdata that has of it what is asked for."""

    def check_compat_swap(asked, held):
        return set(asked) == set(held), asked[0] != held[0]

    entries = {}
    for name, (languages, url, ext, more) in INDEX.items():
        did = SimpleNamespace(langs=tuple(languages.split()))
        entries[name] = SimpleNamespace(
            **{"in_ext": None, "in_paths": None, "cols": None, **more}, url=url, ext=ext, did=did
        )
    contents = {
        "mtdata": {"cached_index_file": tmp_path},
        "mtdata.entry": {"DatasetId": SimpleNamespace(parse=str)},
        "mtdata.index": {"INDEX": entries},
        "mtdata.iso": {},
        "mtdata.iso.bcp47": {
            "bcp47": {"en": "eng", "de": "deu"}.__getitem__,
            "BCP47Tag": SimpleNamespace(check_compat_swap=check_compat_swap),
        },
    }
    for name, content in contents.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("name, files, texts", [
    ("zip", ["zip.zip"], [("a.zip:*.en", "a.zip:*.de")]),
    ("tsv", ["tsv.tsv.gz"], [("a.tsv.gz#2", "a.tsv.gz#1")]),
    ("columns", ["columns.tgz"], [("a.tgz:a.txt#3", "a.tgz:a.txt#4")]),
    ("tmx", ["tmx.zip"], [("a.zip:a.tmx", "a.zip:a.tmx"), ("a.zip:b.tmx", "a.zip:b.tmx")]),
    ("two", ["two.en.txt", "two.de.txt"], [("a.en", "a.de")]),
    ("one-column", ["one-column.en.txt", "one-column.de.txt"], [("a.en#2", "a.de#2")]),
])  # fmt: skip
def test_archives_of_mtdata(mtdata, name, files, texts):
    found, parts = from_mtdata(name, "en", "de")
    assert [archive.file_name for archive in found.values()] == files
    assert {archive.url for archive in found.values()} == {key.removeprefix("mtdata ") for key in found}
    shown = [tuple(str(part[language]).removeprefix("mtdata http://x/") for language in ("en", "de")) for part in parts]
    assert shown == texts


@pytest.mark.parametrize("name, message", [
    ("none", r"mtdata knows no none \(KeyError\); mtdata list -id shows what it knows"),
    ("xlsx", r"xlsx is published in a form \(xlsx\) that is not read here; fetch it with mtdata get"),
    ("french", r"is not in en and de"),
])  # fmt: skip
def test_what_mtdata_does_not_have_is_one_sentence(mtdata, name, message):
    with pytest.raises(ValueError, match=message) as error:
        from_mtdata(name, "en", "de")
    assert "\n" not in str(error.value)


def test_norwegian_is_not_false(tmp_path):
    (tmp_path / "x.yaml").write_text(RECIPE.replace("target: de", "target: no"))
    with pytest.raises(ValueError, match="False is not a language; put a code such as no in quotes"):
        read_recipe(tmp_path / "x.yaml")


def test_a_recipe_with_a_name_of_mtdata(mtdata, tmp_path: Path):
    (tmp_path / "x.yaml").write_text(RECIPE.replace("opus: X/v1", "mtdata: tmx"))
    recipe = read_recipe(tmp_path / "x.yaml")
    assert [part.use for part in recipe.parts] == ["train", "train", "valid", "test"] and len(recipe.archives) == 2


def test_without_mtdata_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "mtdata", None)
    (tmp_path / "x.yaml").write_text(RECIPE.replace("opus: X/v1", "mtdata: some-id"))
    with pytest.raises(ValueError, match=r'some-id is looked up in mtdata, .* pip install "moec-fairseq\[mtdata\]"'):
        read_recipe(tmp_path / "x.yaml")
