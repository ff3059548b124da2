from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moec_fairseq.data.languages import check_languages, language_pairs, same_language


def names(folder: Path, source: str, target: str, *languages: str) -> Path:
    folder.mkdir(exist_ok=True)
    for split, language in product(("train", "valid"), languages or (source, target)):
        for ending in ("idx", "bin"):
            (folder / f"{split}.{source}-{target}.{language}.{ending}").touch()
    for language in (source, target):
        (folder / f"dict.{language}.txt").touch()
    return folder


@pytest.mark.parametrize("source, target", [
    ("en", "de"), ("en", "pt-BR"), ("pt-BR", "en"), ("zh-Hant-TW", "sr-Latn"), ("en", "zh_CN"), ("en", "en-GB"),
    ("en-GB", "en"), ("a-b", "b"), ("b", "a-b"),
])  # fmt: skip
def test_codes_with_hyphens_in_names(tmp_path, source, target):
    assert language_pairs(names(tmp_path, source, target)) == [(source, target)]


@pytest.mark.parametrize("side", [0, 1])
def test_one_side_tells_both_languages(tmp_path, side):
    assert language_pairs(names(tmp_path, "en", "pt-BR", ("en", "pt-BR")[side])) == [("en", "pt-BR")]


CODES = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("-".join)


@given(CODES, CODES)
def test_the_pair_is_always_among_those_that_the_names_allow(tmp_path_factory, source, target):
    found = language_pairs(names(tmp_path_factory.mktemp("data"), source, target))
    assert (source, target) in found
    assert all("-".join(pair) == f"{source}-{target}" and {*pair} == {source, target} for pair in found)


def test_several_pairs(tmp_path):
    names(tmp_path, "en", "pt-BR")
    assert language_pairs(names(tmp_path, "pt-BR", "en")) == [("en", "pt-BR"), ("pt-BR", "en")]
    assert language_pairs(names(tmp_path / "other", "zh", "zh-zh")) == [("zh", "zh-zh"), ("zh-zh", "zh")]


@pytest.mark.parametrize("one, other, same", [
    ("pt", "pt-BR", True), ("pt_BR", "pt-br", True), ("pt-PT", "pt-BR", False), ("zho", "zh_CN", True),
    ("zh-Hant", "zh-Hans", False), ("en", "de", False), ("EN", "en", True),
])  # fmt: skip
def test_languages_and_varieties(one, other, same):
    assert same_language(one, other) == same_language(other, one) == same


@pytest.mark.parametrize("code", ["", "-x", "../x", "sr@latin", "a b", "a.b"])
def test_what_is_no_code(code):
    with pytest.raises(ValueError, match="is not a language code; give one such as en, de, pt-BR or zh_CN"):
        check_languages("en", code)
