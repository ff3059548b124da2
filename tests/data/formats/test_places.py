"""Where texts are: files, members of archives and columns, as recipes and the command line name them."""

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moec_fairseq.data.corpora import choose_corpus
from moec_fairseq.data.formats.compressed import zstd
from moec_fairseq.data.formats.places import Part, Place, located, own_place, read_place
from moec_fairseq.data.formats.sentences import parallel_sentences
from moec_fairseq.data.languages import SPLITS
from moec_fairseq.data.splits import own_files, own_parts, write_own
from tests.python import python_m

from .test_formats import PAIRS, tmx, tsv

ENGLISH, GERMAN = ("".join(f"{side}\n" for side in sides).encode() for sides in zip(*PAIRS, strict=True))
ABOUT = {"README": b"read me\n", "LICENSE": b"free\n", "docs/about.md": b"# x\n", "__MACOSX/._x.en": b"x"}


def zipped(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def tarred(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def tarred_by_zstd(path, members):
    path.write_bytes(zstd.compress(gzip.decompress(tarred(path, members).read_bytes())))
    return path


OPUS = {"x.de-en.de": GERMAN, "x.de-en.en": ENGLISH, "x.de-en.xml": b"<linkGrp/>", **ABOUT}


def pairs_of(given, folder, languages=("en", "de")):
    """Return the pairs of what a user gives as --train."""
    parts = own_parts({}, {"train": list(map(str, given))}, *languages)
    with located(parts, own_files(parts), folder / "extracted") as (sides,):
        return list(parallel_sentences(*(sides[language] for language in languages)))


@pytest.mark.parametrize("text, place", [
    ("news", Place("news")),
    ("news:a/b.en", Place("news", "a/b.en")),
    ("news:*.en", Place("news", "*.en")),
    ("news#2", Place("news", None, "2")),
    ("news:a:b.tsv#translation.en", Place("news", "a:b.tsv", "translation.en")),
])  # fmt: skip
def test_places_of_recipes(text, place):
    assert read_place(text) == place and str(place) == text


def test_places_of_files_whatever_their_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.zip", "a#1", "b:c.zip", "d"):
        Path(name).touch()
    found = {
        "a.zip": Place("a.zip"), "a.zip#2": Place("a.zip", None, "2"), "a.zip:x.tsv": Place("a.zip", "x.tsv"),
        "a.zip:x.tsv#2": Place("a.zip", "x.tsv", "2"), "a#1": Place("a#1"), "a#1#en": Place("a#1", None, "en"),
        "b:c.zip:x:y": Place("b:c.zip", "x:y"), "d:x#y": Place("d", "x", "y"), "none:x#y": Place("none:x#y"),
    }  # fmt: skip
    assert {text: own_place(text) for text in found} == found


names = st.text("abc.:#", min_size=1, max_size=8).filter(lambda name: name not in (".", ".."))


@given(names)
def test_a_file_of_this_name_wins(tmp_path_factory, name):
    path = tmp_path_factory.mktemp("places") / name
    path.touch()
    assert own_place(str(path)) == Place(str(path))


@pytest.mark.parametrize("make", [zipped, tarred, tarred_by_zstd])
def test_the_two_files_of_an_archive_are_found_by_language(tmp_path, make):
    archive = make(tmp_path / "de-en.txt.zip", OPUS)
    assert pairs_of([archive], tmp_path) == PAIRS
    assert pairs_of([archive], tmp_path, ("de", "en")) == [pair[::-1] for pair in PAIRS]
    assert pairs_of([f"{archive}:x.de-en.en", f"{archive}:*.de"], tmp_path) == PAIRS
    assert [path for path in tmp_path.iterdir()] == [archive]  # nothing of it stays


@pytest.mark.parametrize("member, content", [
    ("x.tsv", tsv([("en", "de"), *PAIRS])),
    ("d/memory.tmx", tmx([{"en-GB": one, "de": other} for one, other in PAIRS])),
    ("x.jsonl.gz", gzip.compress(b"".join(json.dumps({"en": a, "de": b}).encode() + b"\n" for a, b in PAIRS), mtime=0)),
])  # fmt: skip
def test_the_one_file_of_an_archive_has_both(tmp_path, member, content):
    assert pairs_of([zipped(tmp_path / "x.zip", {member: content, **ABOUT})], tmp_path) == PAIRS


def test_members_of_varieties_and_of_other_endings(tmp_path):
    members = {"x.pt_br.txt": ENGLISH, "zh-Hant.txt.gz": gzip.compress(GERMAN)}
    assert pairs_of([zipped(tmp_path / "x.zip", members)], tmp_path, ("pt-BR", "zh-Hant")) == PAIRS
    one, other = zipped(tmp_path / "a.zip", {"a": ENGLISH}), zipped(tmp_path / "b.zip", {"b": GERMAN})
    assert pairs_of([one, other], tmp_path) == PAIRS


def test_columns_of_two_files(tmp_path):
    path = tmp_path / "x.tsv"
    path.write_bytes(tsv(PAIRS))
    assert pairs_of([f"{path}#1", f"{path}#2"], tmp_path) == PAIRS
    assert pairs_of([f"{path}#2", f"{path}#1"], tmp_path) == [pair[::-1] for pair in PAIRS]


def test_one_archive_for_many_parts_is_unpacked_for_all(tmp_path):
    archive = zipped(tmp_path / "x.zip", OPUS | {"dev.en": b"a\n", "dev.de": b"A\n"})
    whole = {"en": Place("a", "x.*.en"), "de": Place("a", "x.de-en.de")}
    parts = [
        Part("train", whole),
        Part("valid", {language: Place("a", f"dev.{language}") for language in ("en", "de")}),
    ]
    with located(parts, {"a": archive}, tmp_path / "out") as (train, valid):
        assert list(parallel_sentences(train["en"], train["de"])) == PAIRS
        assert list(parallel_sentences(valid["en"], valid["de"])) == [("a", "A")]


@pytest.mark.parametrize("members, given, message", [
    ({"a.en": b"a\n", "b.en": b"a\n", "a.de": b"A\n"}, [""],
     r"x\.zip: the text in en may be any of a\.en, b\.en; say which, as .*x\.zip:a\.en"),
    ({"a.txt": b"a\n", "b.txt": b"A\n"}, [""], r"the text in en may be any of a\.txt, b\.txt; say which"),
    ({"a.tsv": b"a\tA\n"}, [""], r"x\.zip:a\.tsv: the first line .*; say which column it is, as .*x\.zip:a\.tsv#1"),
    ({"a.tsv": b"a\tA\nb\n"}, [":a.tsv#1", ":a.tsv#2"], r"x\.zip:a\.tsv, line 2: has 1 column, but column 2 is wanted"),
    ({"a.tsv": b"a\tA\n"}, [":b.tsv"], r"x\.zip has no b\.tsv; it has a\.tsv"),
    ({"a.en": b"a\n", "b.en": b"b\n", "a.de": b"A\n"}, [":*.en", ":a.de"], r"\*\.en means any of a\.en, b\.en"),
    ({"a.en": b"a\n"}, [":*.tsv"], r"x\.zip has no \*\.tsv; it has a\.en, …"),
    (ABOUT, [""], r"x\.zip has no text; it has README"),
    ({"a.en": b"a\n", "a.de": b"A\n"}, [":a.de", ":a.en"], "a.de is taken for en; exchange the two sides"),
    ({"a.en": b"a\n", "a.de": b"A\nB\n"}, [""], r"x\.zip:a\.en has 1 sentences, but .*x\.zip:a\.de has 2"),
])  # fmt: skip
def test_what_is_not_clear_is_one_sentence(tmp_path, members, given, message):
    archive = zipped(tmp_path / "x.zip", members)
    with pytest.raises(ValueError, match=message) as error:
        pairs_of([f"{archive}{more}" for more in given], tmp_path)
    assert "\n" not in str(error.value) and "extracted" not in str(error.value)
    assert list(tmp_path.iterdir()) == [archive]


@pytest.mark.parametrize("prefixes, files, message", [
    ({"train": "x"}, {"train": ["y"]}, "--train and --train-prefix were both given; give one of them"),
    ({}, {"train": ["a", "b", "c"]}, "--train names 3 files, but a text is one file, or source and target"),
    ({}, {"valid": ["none.tsv#1"]}, r"none\.tsv#1: no such file; check the name"),
    ({}, {"train": ["x.de", "x.en"]}, r"--train: .*x\.de is taken for en; exchange the two sides"),
    ({}, {"train": ["x.tsv#1"]}, r"--train: both sides are x\.tsv#1, but each must have a column of its own"),
])  # fmt: skip
def test_own_texts_that_make_no_sense(tmp_path, monkeypatch, prefixes, files, message):
    monkeypatch.chdir(tmp_path)
    for name in ("x.en", "x.de", "x.tsv"):
        Path(name).write_text("a\n")
    with pytest.raises(ValueError, match=message):
        own_parts(prefixes, files, "en", "de")


def test_spreadsheets_are_zip_archives_but_not_of_texts(tmp_path):
    with pytest.raises(ValueError, match=r"x\.xlsx is a spreadsheet, which is not read; save it as CSV in UTF-8"):
        pairs_of([zipped(tmp_path / "x.xlsx", {"xl/sheet1.xml": b"<x/>"})], tmp_path)


def test_pairs_without_a_side_are_left_out_of_own_text(tmp_path):
    letters = "abcdefghijklmnopqrstuvwxyz"
    units = [{"en": f"say {a}{b}", "de": f"sag {a}{b}"} for a in letters for b in letters[:12]]
    (tmp_path / "x.tmx").write_bytes(tmx([*units, {"en": "alone"}, {"de": "allein"}, {"en": " ", "de": "leer"}]))
    texts = written(tmp_path, {}, {"train": [str(tmp_path / "x.tmx")]})
    assert sorted(line for split in SPLITS for line in texts[f"{split}.de"].splitlines()) == sorted(
        unit["de"] for unit in units
    )


def own_pairs(count):
    words = ["open", "close", "move", "copy", "file", "window", "red", "green", "now", "later"]
    numbers = [[int(digit) for digit in f"{n * 7919 % 100_000:05}"] for n in range(count)]
    return [(" ".join(words[n] for n in row), " ".join(words[n][::-1] for n in row)) for row in numbers]


def written(folder, prefixes, files, languages=("en", "de")):
    """Return the texts that are made of a user's own."""
    parts = own_parts(prefixes, files, *languages)
    with located(parts, own_files(parts), folder / "extracted") as texts:
        sides = {
            part.use: tuple(text[language] for language in languages) for part, text in zip(parts, texts, strict=True)
        }
        write_own(sides, *languages, folder / "out")
    return {path.name: path.read_text() for path in (folder / "out").glob("*.??")}


def test_own_text_in_any_format_is_split_alike(tmp_path):
    """A zip as OPUS has it and a table with a header, by a real command line, are what two files of lines are.

    Files of the user stay, even in the folder for results, whose name may have signs that fairseq takes for its own.
    """
    pairs = own_pairs(400)
    sides = {"en": "".join(f"{one}\n" for one, _ in pairs), "de": "".join(f"{other}\n" for _, other in pairs)}
    for language, text in sides.items():
        (tmp_path / f"plain.{language}").write_text(text)
    zipped(tmp_path / "de-en.txt.zip", {f"x.de-en.{language}": text for language, text in sides.items()} | ABOUT)
    (tmp_path / "dev.tsv.gz").write_bytes(gzip.compress(tsv([("de", "en"), *(pair[::-1] for pair in pairs[:9])])))
    files = {"train": [f"{tmp_path}/plain.en", f"{tmp_path}/plain.de"]}
    expected = written(tmp_path, {"train": f"{tmp_path}/plain"}, {})
    assert written(tmp_path, {}, files) == expected and len(expected) == 6
    expected = written(tmp_path, {}, files | {"valid": [f"{tmp_path}/dev.tsv.gz"]})
    assert expected["valid.de"].splitlines() == [other for _, other in pairs[:9]]

    out = tmp_path / "en,de:1"
    (out / "extracted").mkdir(parents=True)
    dev = (tmp_path / "dev.tsv.gz").rename(out / "extracted/dev.tsv.gz")
    options = ["--train", "de-en.txt.zip", "--valid", dev, "--vocab-size", 50, "--out", out.name]
    done = python_m("moec_fairseq", "prepare", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {path.name: path.read_text() for path in (out / "text").glob("*.??")} == expected
    assert (out / "binary/train.en-de.en.bin").stat().st_size
    assert dev.exists() and not (out / ".extracted").exists()


def chosen(files, **languages):
    nothing = dict.fromkeys(("corpus", "source", "target", "sources", "targets"))
    options = {"recipes": Path(), "prefixes": {}, "tier": "small", "distinct": False, "sampling_temperature": 1.0}
    return choose_corpus(**nothing | languages, **options, files={"train": files})


def test_the_same_columns_in_other_languages_are_another_text(tmp_path):
    (tmp_path / "x.tsv").write_bytes(tsv(own_pairs(3)))
    columns = [f"{tmp_path}/x.tsv#1", f"{tmp_path}/x.tsv#2"]
    one, again, exchanged = (
        chosen(columns, source=source, target=target).settings
        for source, target in (("en", "de"), ("en", "de"), ("de", "en"))
    )
    assert one == again != exchanged


def of_many(files):
    return chosen(files, targets="de,fr")


def test_one_file_for_many_languages(tmp_path):
    path = tmp_path / "x.jsonl"
    texts = [{"en": one, "de": other, "fr": f"{other} x"} for one, other in own_pairs(400)]
    path.write_text("".join(json.dumps({"translation": text}) + "\n" for text in texts))
    of_many([str(path)]).write(tmp_path, tmp_path / "text", None, 1)
    for language in ("de", "fr"):
        found = set()
        for split in SPLITS:
            sides = [tmp_path / f"text/{language}/{split}.{side}" for side in ("en", language)]
            found |= set(zip(*(side.read_text().splitlines() for side in sides), strict=True))
        assert len(found) > 300 and found <= {(text["en"], text[language]) for text in texts}
    with pytest.raises(ValueError, match="--train names several files, but .* one file must hold all languages; or"):
        of_many([str(path), str(path)])
