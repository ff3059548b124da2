"""Every format in which people have parallel text, well and badly made; what the files say is known by hand."""

import bz2
import csv
import gzip
import io
import json
import lzma
import random
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moec_fairseq.data.formats.compressed import zstd
from moec_fairseq.data.formats.sentences import Side, parallel_sentences
from moec_fairseq.data.formats.text import LONGEST

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
PAIRS = [('One, "two"; three', "Eins, „zwei“; drei"), ("a\u2028b", "ä\u00adb"), ("", "leer"), ("last", "letzte")]
COMPRESSED = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd.compress}


def tsv(rows):
    return "".join("\t".join(row) + "\n" for row in rows).encode()


def comma(rows, delimiter=","):
    csv.writer(file := io.StringIO(), delimiter=delimiter).writerows(rows)
    return file.getvalue().encode()


def json_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet_file(rows):
    parquet.write_table(pyarrow.Table.from_pylist(rows), file := io.BytesIO(), row_group_size=1000)
    return file.getvalue()


def tmx(units, head='<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE tmx SYSTEM "tmx14.dtd">\n'):
    """Return a translation memory of units, each a dictionary of segments, which are XML, by language."""
    body = "".join(
        "<tu>" + "".join(f'<tuv xml:lang="{code}"><seg>{text}</seg></tuv>' for code, text in unit.items()) + "</tu>\n"
        for unit in units
    )
    return f'{head}<tmx version="1.4"><header srclang="en"/>\n<body>\n{body}</body>\n</tmx>\n'.encode()


def read(path, source=None, target=None, languages=("en", "de"), other=None):
    """Return the pairs of a file, or two."""
    return list(parallel_sentences(Side(path, languages[0], source), Side(other or path, languages[1], target)))


def written(path, content):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


OBJECTS = [{"id": n, "en": one, "de": other} for n, (one, other) in enumerate(PAIRS)]
NESTED = [{"id": "x", "translation": {"de": other, "en": one}} for one, other in PAIRS]
NAMED = [{"source": one, "target": other, "meta": {"source.lang": "en"}} for one, other in PAIRS]
UNITS = [{"en": one, "de": other, "fr": "rien"} for one, other in PAIRS]
FORMATS = {  # name -> content, fields that name the sides
    "numbers.tsv": (tsv((one, "0.9", other) for one, other in PAIRS), ("1", "3")),
    "header.tsv": (tsv([("score", "de", "en"), *(("1", other, one) for one, other in PAIRS)]), (None, None)),
    "names.tsv": (tsv([("Quelle", "Ziel"), *PAIRS]), ("Quelle", "Ziel")),
    "paracrawl.txt": (tsv(PAIRS), ("1", "2")),
    "variety.tsv": (tsv([("en-US", "de_AT"), *PAIRS]), (None, None)),
    "comma.csv": (comma([("en", "de"), *PAIRS]), (None, None)),
    "semicolon.csv": (comma(PAIRS, ";"), ("1", "2")),
    "tab.csv": (comma([("x", "en", "de"), *(("", *pair) for pair in PAIRS)], "\t"), (None, None)),
    "objects.jsonl": (json_lines(OBJECTS), (None, None)),
    "nested.jsonl": (json_lines(NESTED), (None, None)),
    "named-nested.ndjson": (json_lines(NESTED), ("translation.en", "translation.de")),
    "group.json": (json_lines(NESTED), ("translation", "translation")),
    "named.jsonl": (json_lines(NAMED), ("source", "target")),
    "objects.parquet": (parquet_file(OBJECTS), (None, None)),
    "nested.parquet": (parquet_file(NESTED), (None, None)),
    "named.parquet": (parquet_file(NAMED), ("source", "target")),
    "memory.tmx": (tmx(UNITS), (None, None)),
    "named.tmx": (tmx({"EN-us": a, "de-DE": b, "de-AT": "na"} for a, b in PAIRS), ("en-US", "de-DE")),
    "content.xml": (tmx(UNITS), (None, None)),
    "no-ending": (tmx(UNITS), (None, None)),
    "utf-16.tmx": (tmx(UNITS, "<?xml version='1.0' encoding='UTF-16'?>").decode().encode("utf-16"), (None, None)),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_says_the_same(tmp_path, name):
    content, fields = FORMATS[name]
    path = written(tmp_path / name, content)
    assert read(path, *fields) == PAIRS
    assert read(path, *fields[::-1], ("de", "en")) == [pair[::-1] for pair in PAIRS]
    lines = written(tmp_path / "plain.de", "".join(f"{n}\n" for n in range(len(PAIRS))))
    alone = read(path, fields[0], None, other=lines)  # one side of it, beside another file
    assert alone == [(one, str(n)) for n, (one, _) in enumerate(PAIRS)]


@pytest.mark.parametrize("ending", COMPRESSED)
@pytest.mark.parametrize("name", ["header.tsv", "comma.csv", "nested.jsonl", "memory.tmx", "content.xml"])
def test_formats_may_be_compressed(tmp_path, name, ending):
    assert read(written(tmp_path / (name + ending), COMPRESSED[ending](FORMATS[name][0]))) == PAIRS


cells = st.text(st.characters(exclude_characters="\r\n\t\0", exclude_categories=["Cs", "Cc"]))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=5))
def test_whatever_text_it_is(tmp_path_factory, pairs):
    folder = tmp_path_factory.mktemp("formats")
    objects = [{"en": one, "de": other} for one, other in pairs]
    contents = {
        "x.tsv": tsv([("en", "de"), *pairs]), "x.csv": comma([("en", "de"), *pairs]), "x.jsonl": json_lines(objects),
        "x.parquet": parquet_file(objects),
    }  # fmt: skip
    assert {name: read(written(folder / name, content)) for name, content in contents.items()} == {
        name: pairs for name in contents
    }


@pytest.mark.parametrize("segment, text", [
    ('Press <bpt i="1">&lt;b&gt;</bpt>OK<ept i="1">&lt;/b&gt;</ept> &amp; go.', "Press OK & go."),
    ('a <hi>bold <ph x="1">{1}</ph>word</hi> <it pos="begin">x</it>end', "a bold word end"),
    ("<![CDATA[a < b]]><!-- c --> d", "a < b d"),
    ("", ""),
])  # fmt: skip
def test_segments_of_tmx_are_without_the_codes_of_formats(tmp_path, segment, text):
    assert read(written(tmp_path / "x.tmx", tmx([{"en": segment, "de": "b"}]))) == [(text, "b")]


def test_units_of_tmx_that_lack_a_language_are_no_pairs(tmp_path):
    units = [{"en-GB": "a", "de": "A"}, {"de": "B"}, {"en-US": "c", "en-GB": "C", "de": "C"}, {"en": "d", "en-US": "D"}]
    path = written(tmp_path / "x.tmx", tmx(units))
    assert read(path) == [("a", "A"), (None, "B"), ("c", "C"), ("d", None)]
    assert read(path, "en-US") == [(None, "A"), (None, "B"), ("c", "C"), ("D", None)]


def test_missing_fields_are_no_pairs_and_empty_lines_are_nothing(tmp_path):
    rows = [{"en": "a", "de": "A"}, {"en": "b"}, {"en": "c", "de": None}]
    assert read(written(tmp_path / "x.jsonl", json_lines(rows))) == [("a", "A"), ("b", None), ("c", None)]
    assert read(written(tmp_path / "x.parquet", parquet_file(rows))) == [("a", "A"), ("b", None), ("c", None)]
    assert read(written(tmp_path / "y.jsonl", json_lines(rows[:1]) + b"\n")) == [("a", "A")]
    assert read(written(tmp_path / "x.tsv", "a\tA\n\nb\tB\n"), "1", "2") == [("a", "A"), ("", ""), ("b", "B")]


GOOD = {
    "lines": ("x.en", "a\n", None),
    "tsv": ("x.tsv", "a\tA\n", "1"),
    "csv": ("x.csv", "a,A\n", "1"),
    "json": ("x.jsonl", '{"en": "a"}\n', "en"),
}


@pytest.mark.parametrize("name, row, field", GOOD.values(), ids=GOOD)
class TestEveryReaderOfLines:
    """What is about bytes and line ends is the same for all formats that have lines."""

    def read(self, path, content, field):
        written(path, content)
        if field is None:
            return [one for one, _ in read(path, None, None, other=written(path.with_name("copy"), content))]
        return [one for one, _ in read(path, field, "2" if field == "1" else field, ("en", "en"))]

    def test_windows_line_ends_and_byte_order_mark(self, tmp_path, name, row, field):
        content = b"\xef\xbb\xbf" + (row * 2).replace("\n", "\r\n").encode()
        assert self.read(tmp_path / name, content, field) == ["a", "a"]

    def test_line_ends_of_old_macs(self, tmp_path, name, row, field):
        with pytest.raises(ValueError, match=r"line 1: all lines are one, because they end in \\r alone, .*tr '"):
            self.read(tmp_path / name, (row * 3).replace("\n", "\r"), field)

    def test_utf_16(self, tmp_path, name, row, field):
        with pytest.raises(ValueError, match=rf"{name} is in UTF-16; convert it to UTF-8: iconv -f utf-16"):
            self.read(tmp_path / name, row.encode("utf-16"), field)

    def test_other_encodings(self, tmp_path, name, row, field):
        with pytest.raises(ValueError, match=rf"{name}, line 2: byte \d+ is not valid UTF-8; convert the file"):
            self.read(tmp_path / name, row.encode() + row.replace("a", "ä").encode("latin1"), field)

    def test_nul_is_white_space(self, tmp_path, name, row, field):
        content = (row * 99 + row.replace("a", "a\0b", 1)).encode()
        assert self.read(tmp_path / name, content, field)[-1] in ("a\0b", "a b")

    def test_endless_lines(self, tmp_path, name, row, field):
        content = row + row.replace("a", "a" * LONGEST, 1)
        with pytest.raises(ValueError, match=rf"{name}, line 2: longer than 10,000,000 bytes, which no sentence is"):
            self.read(tmp_path / name, content, field)


@pytest.mark.parametrize("content, message", [
    (tmx([{"en": "a", "de": "A"}, {"en": "b\0", "de": "B"}]), r"x\.tmx, line 6: is not XML \(.*mend the file"),
    (tmx([{"en": "a", "de": "A\ufffe"}]), r"x\.tmx, line 5: is not XML"),
    (tmx([{"en": "a", "de": "A" * (LONGEST + 1)}]), r"x\.tmx, line 5: is not XML \(.*(long|huge)"),
    (tmx([{"en": "a", "de": "A"}])[:-30], r"x\.tmx, line \d: is not XML \("),
    (tmx([{"en": "ä", "de": "A"}]).decode().encode("latin1"), r"x\.tmx, line 5: is not XML \("),
    (tmx([{"en": "a", "fr-FR": "A"}, {"fr-FR": "B"}]), r"nothing in de, but fr-FR \(2\), en \(1\); name a"),
    (tmx([]), "has nothing in en, but no text"),
    (b"<tmx><!-- no unit --></tmx>", "has nothing in en, but no text"),
])  # fmt: skip
def test_what_is_wrong_with_tmx_is_one_sentence(tmp_path, content, message):
    with pytest.raises(ValueError, match=message) as error:
        read(written(tmp_path / "x.tmx", content))
    assert "\n" not in str(error.value)


def test_entities_of_tmx_are_not_read(tmp_path):
    secret = written(tmp_path / "secret", "secret")
    head = f'<!DOCTYPE tmx [<!ENTITY x SYSTEM "{secret.as_uri()}">]>'
    path = written(tmp_path / "x.tmx", tmx([{"en": "a&x;b", "de": "A"}], head))
    assert "secret" not in str(read(path))


@pytest.mark.parametrize("name, content, fields, message", [
    ("x.tsv", "a\tA\n", (None, None), r"x\.tsv: the first line has 2 columns, 1 \(a\), 2 \(A\), and does not name"),
    ("x.tsv", "a\tA\n", ("Quelle", "2"), r"and does not name Quelle; say which column it is, as .*x\.tsv#1"),
    ("x.tsv", "en\ten\tde\n", (None, None), "does not name the text in en"),
    ("x.tsv", "a\tA\nb\n", ("1", "2"), r"x\.tsv, line 2: has 1 column, but column 2 is wanted"),
    ("x.tsv", "a\tA\n", ("1", "3"), r"x\.tsv, line 1: has 2 columns, but column 3 is wanted"),
    ("x.tsv", "a\tA\n", ("0", "1"), "has 2 columns, but column 0 is wanted"),
    ("x.en", "a\nb\n", (None, None), r"x\.en has one text, without columns; give a file for the other language, too"),
    ("x.csv", 'en,de\na,"A\nb,B\n', (None, None), r"x\.csv, line 3: unexpected end of data; is a quotation mark"),
    ("x.csv", 'en,de\n"a" b,A\n', (None, None), r"x\.csv, line 2: .*; is a quotation mark missing, or"),
    ("x.csv", "en,de\na\n", (None, None), r"x\.csv, line 2: has 1 column, but column 2"),
    ("x.jsonl", '{"en": "a", "de": "A"}\n{"en": "b"\n', (None, None), r"x\.jsonl, line 2: is not JSON \("),
    ("x.jsonl", '[{"en": "a"}]', (None, None), r"x\.jsonl is one JSON array; .*: jq -c '\.\[\]' x\.jsonl"),
    ("x.jsonl", '{"id": 1, "t": {"en": "a"}}', (None, None), r"has the fields id, t\.en, .* the text in en; name it"),
    ("x.jsonl", '{"en": "a", "de": 7}', (None, None), r"x\.jsonl, line 1: de is 7, not text; name another field"),
    ("x.jsonl", '{"en": "a", "de": "A"}', ("x", "de"), "does not say which is x; name it"),
    ("x.jsonl", '{"en": "a", "de": "\\ud83d"}', (None, None), r"line 1: has half a character, such as \\ud83d alone"),
    ("x.jsonl", '"a"', (None, None), r"the first line is \"a\", not an object"),
    ("x.jsonl", "\n", (None, None), "has no object"),
    ("x.parquet", b"PAR1 not", (None, None), r"x\.parquet cannot be read as Parquet \("),
    ("x.parquet", gzip.compress(b"PAR1", mtime=0), (None, None), r"is read only as it is; unpack it first: gzip -dc x"),
    ("x.parquet", parquet_file([{"en": "a", "de": [1]}]), (None, None), r"x\.parquet, row 1: de is \[1\], not text"),
    ("x.parquet", parquet_file([{"a": "a", "b": "A"}]), (None, None), "has the fields a, b, and does not say which"),
    ("x.parquet", parquet_file([{"en": "a", "de": "A" * (LONGEST + 1)}]), (None, None), "row 1: longer than 10,0"),
    ("x.xml", "<srcset><seg>a</seg></srcset>", ("en", "de"), r"x\.xml is SGML or XML and has no en; it says"),
    ("x.tsv", b"", ("1", "2"), "the file is empty"),
    ("x.parquet", b"", (None, None), "the file is empty"),
])  # fmt: skip
def test_what_cannot_be_read_is_one_sentence(tmp_path, name, content, fields, message):
    with pytest.raises(ValueError, match=message) as error:
        read(written(tmp_path / name, content), *fields)
    assert "\n" not in str(error.value)


def test_without_pyarrow_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r'x\.parquet is read by pyarrow, .* pip install "moec-fairseq\[parquet\]"'):
        read(written(tmp_path / "x.parquet", b"PAR1"))


@pytest.mark.parametrize("source, target, counts", [("a\nb\nc\n", "A\n", (3, 1)), ("a\n", "A\nB", (1, 2))])
def test_different_numbers_of_sentences_are_both_said(tmp_path, source, target, counts):
    one, other = written(tmp_path / "t.en", source), written(tmp_path / "t.de", target)
    with pytest.raises(ValueError, match=rf"t\.en has {counts[0]} sentences, but .*t\.de has {counts[1]}; line N"):
        read(one, other=other)


def many(name, count):
    chance = random.Random(1)  # so that nothing becomes small by compression
    words = [" ".join(str(chance.random()) for _ in range(3)) for _ in range(count)]
    pairs = ((f"sentence {word} about this and that", f"Satz {word} über dies und das") for word in words)
    objects = ({"en": one, "de": other} for one, other in pairs)
    if name == "x.parquet":
        return parquet_file(list(objects))
    if name == "x.tmx":
        return tmx(objects)
    rows = ((row["en"], row["de"]) for row in objects)
    return json_lines(objects) if name == "x.jsonl" else (comma if name == "x.csv" else tsv)([("en", "de"), *rows])


@pytest.mark.parametrize("name", ["x.tsv", "x.csv", "x.jsonl", "x.parquet", "x.tmx"])
def test_memory_does_not_grow_with_the_file(tmp_path, name):
    path: Path = written(tmp_path / name, many(name, 20_000))
    size = path.stat().st_size
    before = pyarrow.total_allocated_bytes()  # which Python does not see
    outside = 0
    tracemalloc.start()
    for number, _ in enumerate(parallel_sentences(Side(path, "en"), Side(path, "de")), start=1):
        outside = max(outside, pyarrow.total_allocated_bytes() - before if number % 1000 == 1 else 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert number == 20_000 and size > 3 << 19
    assert peak + outside < 3 << 19, f"{peak} and {outside} bytes for a file of {size}"
