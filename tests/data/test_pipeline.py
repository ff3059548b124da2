"""The whole chain on archives in the published layouts, over HTTP on this machine."""

import bz2
import gzip
import lzma
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from moec_fairseq.data.formats.archives import extract
from moec_fairseq.data.formats.places import located
from moec_fairseq.data.formats.text import raw_lines
from moec_fairseq.data.published import write_texts
from moec_fairseq.data.recipes import read_recipe
from tests.python import python_m

from . import published

ROOT = Path(__file__).parents[2]


def prepare(*arguments, cwd):
    return python_m("moec_fairseq", "prepare", *arguments, cwd=cwd)


def lines(path):
    return path.read_text(encoding="utf-8").splitlines()


def test_from_the_web_to_binary_data(tmp_path, server, local_recipe):
    published.wmt14_en_de(tmp_path / "web")
    recipe, out = local_recipe("wmt14_en_de"), tmp_path / "out"
    server.break_after["/wmt13/training-parallel-europarl-v7.tgz"] = [2000]
    done = prepare(recipe, "--out", out, "--vocab-size", 100, "--workers", 2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert ("/wmt13/training-parallel-europarl-v7.tgz", "bytes=2000-") in server.requests

    english, german = published.pairs(1200, "en", "de")
    assert lines(out / "text/train.en") == [*english[:800], ("word " * 300).strip(), "one", *english[800:]]
    assert lines(out / "text/valid.de") == published.pairs(20, "en", "de", 2)[1]
    assert lines(out / "text/test.en")[-1] == '"R&D" - it\'s <5 ...'
    assert lines(out / "text/test.de")[:-1] == published.pairs(15, "en", "de", 3)[1][:-1]

    subwords = {
        use: (lines(out / f"subwords/{use}.en"), lines(out / f"subwords/{use}.de")) for use in ("train", "test")
    }
    assert len(subwords["train"][0]) == len(subwords["train"][1]) <= 1200
    joined = "".join(subwords["test"][0][-1].split()).replace("\u2581", " ").strip()
    assert joined == "<unk> <unk> it<unk>s <unk> ..."  # training text has no other signs
    assert "R&D" not in (out / "binary/dict.en.txt").read_text()
    for one, other in zip(*subwords["train"], strict=True):
        assert 2 / 3 <= len(one.split()) / len(other.split()) <= 1.5
    rows = {row.split("|")[1].strip(): [c.strip() for c in row.split("|")[2:5]] for row in lines(out / "cleaning.md")}
    assert rows["read"] == ["1,203", "20", "15"] and rows["a side is empty"] == ["1", "0", "0"]
    assert rows["more than 250 subwords"][0] == "1" and rows["kept"][0] == f"{len(subwords['train'][0]):,}"
    for file in ("dict.en.txt", "dict.de.txt", "train.en-de.en.bin", "valid.en-de.de.idx", "test.en-de.en.bin"):
        assert (out / "binary" / file).stat().st_size > 0
    assert (out / "binary/dict.en.txt").read_text() == (out / "binary/dict.de.txt").read_text()

    # once more: nothing is downloaded or made again
    asked, made = len(server.requests), (out / "binary/train.en-de.en.bin").stat().st_mtime_ns
    done = prepare(recipe, "--out", out, "--vocab-size", 100, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.count("done before") == 4
    assert len(server.requests) == asked and (out / "binary/train.en-de.en.bin").stat().st_mtime_ns == made
    # with other limits only what depends on them, from the same raw files in another folder, without network
    server.close()
    done = prepare(
        recipe, "--raw-dir", out / "raw", "--out", tmp_path / "other", "--vocab-size", 90, "--max-length", 20,
        "--source", "de", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert max(len(line.split()) for line in lines(tmp_path / "other/subwords/train.de")) <= 20
    assert (tmp_path / "other/binary/train.de-en.de.bin").exists()


def texts(recipe, raw, out, distinct=False):
    used = {place.file for part in recipe.parts for place in part.texts.values()}
    archives = {name: raw / archive.file_name for name, archive in recipe.archives.items() if name in used}
    with ThreadPoolExecutor(2) as pool, located(recipe.parts, archives, out / "extracted") as found:
        return write_texts(recipe, found, out, pool, 4, distinct)


def test_talks(tmp_path):
    published.iwslt14_de_en(tmp_path)
    (tmp_path / "fairseq/data/iwslt14/de-en.tgz").rename(tmp_path / "iwslt14-de-en.tgz")
    counts = texts(read_recipe(ROOT / "data/iwslt14_de_en.yaml"), tmp_path, tmp_path / "out")
    german, _ = published.pairs(230, "de", "en")
    german[1] = f"TED Talk: {german[1]}"
    assert lines(tmp_path / "out/valid.de") == german[22::23]
    assert lines(tmp_path / "out/train.de") == [line for n, line in enumerate(german, 1) if n % 23]
    test = [line for number in range(5) for line in published.pairs(4, "de", "en", 10 + number)[1]]
    assert lines(tmp_path / "out/test.en") == test
    assert (
        counts["train: read"] == 236 and counts["train: metadata or untranslated"] == 6 and counts["valid: kept"] == 10
    )
    assert counts["train: read"] == sum(
        counts[f"train: {rule}"] for rule in ("metadata or untranslated", "held out for validation", "kept")
    )


@pytest.mark.parametrize("target", ["de", "fr"])
def test_captions(tmp_path, target):
    published.multi30k(tmp_path, target)
    raw = tmp_path / "multi30k/dataset/master/data/task1/raw"
    counts = texts(read_recipe(ROOT / f"data/multi30k_en_{target}.yaml"), raw, tmp_path / "out")
    assert lines(tmp_path / f"out/test.{target}") == published.pairs(10, "en", target, 2)[1]
    assert (counts["train: kept"], counts["valid: kept"], counts["test: kept"]) == (200, 10, 10)


def test_members_that_are_compressed_again(tmp_path):
    published.giga(tmp_path)
    names = {f"giga-fren.release2.fixed.{language}" for language in ("en", "fr")}
    found = extract(tmp_path / "training-giga-fren.tar", names, tmp_path / "out")
    assert list(raw_lines(found["giga-fren.release2.fixed.fr"])) == published.pairs(10, "en", "fr")[1]


RECIPE = """
source: en
target: de
archives:
  en: {url: "http://127.0.0.1:9/x.en", licence: none}
  de: {url: "http://127.0.0.1:9/x.de", licence: none}
parts:
- {use: train, texts: {en: en, de: de}}
- {use: valid, texts: {en: en, de: de}}
- {use: test, texts: {en: en, de: de}}
"""


@pytest.fixture
def small(tmp_path):
    (tmp_path / "small.yaml").write_text(RECIPE)
    return read_recipe(tmp_path / "small.yaml")


SET = """<?xml version="1.0"?>
<dataset id="x"><doc id="1" origlang="en">
<src lang="en"><p><seg id="1">R&amp;D\u00ad: a</seg><seg id="2">b  b</seg><seg id="3">c</seg></p></src>
<ref lang="de" translator="A"><p><seg id="1">„F&amp;E“\u200b: A</seg><seg id="3">C\u2028C</seg></p></ref>
<ref lang="de" translator="B"><p><seg id="1">1</seg><seg id="2">2</seg><seg id="3">3</seg></p></ref>
</doc></dataset>
"""


@pytest.mark.parametrize("names", [("x.en", "x.de"), ("x.xml", "x.xml")])
def test_a_set_with_both_sides_in_one_file(tmp_path, capsys, names):
    for name in {*names}:
        (tmp_path / name).write_text(SET, encoding="utf-8")
    one = '  one: {url: "http://127.0.0.1:9/x.xml", licence: none}\n'
    text = RECIPE.replace("parts:", f"{one}parts:")
    (tmp_path / "set.yaml").write_text(
        text if names[0] == "x.en" else text.replace("{en: en, de: de}", "{en: one, de: one}")
    )
    recipe = read_recipe(tmp_path / "set.yaml")
    counts = texts(recipe, tmp_path, tmp_path / "out")
    assert lines(tmp_path / "out/train.en") == ["R&D: a", "c"]
    assert lines(tmp_path / "out/train.de") == ['"F&E": A', "C C"]
    # as published: not even what nobody sees is gone
    assert lines(tmp_path / "out/test-as-published.en") == ["R&D\u00ad: a", "c"]
    assert lines(tmp_path / "out/test-as-published.de") == ["„F&E“\u200b: A", "C C"]
    assert counts["test: metadata or untranslated"] == 1 and counts["test: kept"] == 2
    assert capsys.readouterr().out.count(f"{names[1]} has references by A, B: that by A is taken") == 3
    other = replace(recipe, parts=[replace(part, reference="B") for part in recipe.parts])
    texts(other, tmp_path, tmp_path / "other")
    assert lines(tmp_path / "other/test-as-published.de") == ["1", "2", "3"]


SGML = """<refset setid="x" srclang="any" trglang="de">
<doc docid="d" sysid="ref">
<seg id="1">so\u00adft a=1&section=2</seg>
<seg id="2"/>
<seg id="3">c  <3</seg>
</doc>
</refset>
"""


@pytest.mark.parametrize("ending", ["sgm", "SGM", "sgm.gz", "xml.xz"])
def test_a_set_in_sgml(tmp_path, ending):
    for language, kind in (("en", "src"), ("de", "ref")):
        content = SGML.replace("ref", kind).encode()
        content = gzip.compress(content) if ending.endswith("gz") else content
        (tmp_path / f"x.{language}.{ending}").write_bytes(lzma.compress(content) if ending.endswith("xz") else content)
    (tmp_path / "set.yaml").write_text(RECIPE.replace('x.en"', f'x.en.{ending}"').replace('x.de"', f'x.de.{ending}"'))
    counts = texts(read_recipe(tmp_path / "set.yaml"), tmp_path, tmp_path / "out")
    assert lines(tmp_path / "out/test-as-published.de") == ["so\u00adft a=1&section=2", "", "c <3"]
    assert lines(tmp_path / "out/train.de") == ["soft a=1&section=2", "c <3"] and counts["test: kept"] == 3


def test_compressed_files_of_a_recipe(tmp_path, small):
    (tmp_path / "x.en").write_bytes(bz2.compress(b"a\nb\n"))
    (tmp_path / "x.de").write_bytes(lzma.compress(b"A\nB\n"))
    texts(small, tmp_path, tmp_path / "out")
    assert lines(tmp_path / "out/train.en") == ["a", "b"] and lines(tmp_path / "out/train.de") == ["A", "B"]
    (tmp_path / "x.de").write_bytes(b"\x04\x22\x4d\x18")
    with pytest.raises(ValueError, match=r"x\.de is a file compressed by lz4, .* lz4 -d x\.de"):
        texts(small, tmp_path, tmp_path / "out")


def test_different_numbers_of_lines(tmp_path, small):
    (tmp_path / "x.en").write_text("a\nb\n")
    (tmp_path / "x.de").write_text("a\n")
    with pytest.raises(ValueError, match=r"x\.en has 2 sentences, but .*x\.de has 1"):
        texts(small, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out/train.en").exists()


def test_duplicates(tmp_path, small):
    (tmp_path / "x.en").write_text("a\nb\na\na\n")
    (tmp_path / "x.de").write_text("A\nB\nA\nC\n")
    counts = texts(small, tmp_path, tmp_path / "out", distinct=True)
    assert lines(tmp_path / "out/train.de") == ["A", "B", "C"] and counts["train: duplicate"] == 1
    assert lines(tmp_path / "out/test.de") == ["A", "B", "A", "C"]


def test_a_truncated_archive(tmp_path):
    published.wmt14_en_de(tmp_path)
    path = tmp_path / "wmt14/test-full.tgz"
    path.write_bytes(path.read_bytes()[:-200])
    source, reference = (f"test-full/newstest2014-deen-{kind}.sgm" for kind in ("src.en", "ref.de"))
    with pytest.raises(
        ValueError, match=r"test-full\.tgz is broken \(.*\); remove it and start again with a whole copy"
    ):
        extract(path, {source, reference}, tmp_path / "out")
    assert not list((tmp_path / "out").rglob(Path(reference).name))


@pytest.mark.parametrize("ending", ["tgz", "tar.bz2", "tar.xz"])
def test_a_wrong_byte_in_an_archive(tmp_path, ending):
    text = bytes(random.Random(1).choices(range(256), k=3000))  # which compression leaves as it is
    path = tmp_path / f"a.{ending}"
    published.tar(path, {"x": text}, {"tgz": "w:gz", "tar.bz2": "w:bz2", "tar.xz": "w:xz"}[ending])
    assert extract(path, {"x"}, tmp_path)["x"].read_bytes() == text
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"is broken \(.*\); remove it"):
        extract(path, {"x"}, tmp_path)


def test_a_member_that_is_not_there(tmp_path):
    published.giga(tmp_path)
    with pytest.raises(ValueError, match=r"has no other\.en; it has giga-fren"):
        extract(tmp_path / "training-giga-fren.tar", {"other.en"}, tmp_path / "out")
