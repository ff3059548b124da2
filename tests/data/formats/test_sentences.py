"""Test sets in the layouts of campaigns, well and badly made; what they say is known by hand."""

import bz2
import gzip
import html
import time
from contextlib import suppress
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.dataset.wmt_xml import WMTXMLDataset

from moec_fairseq.data.formats.sentences import Side, parallel_sentences


def sides(source, target=None, languages=("en", "de"), reference=None):
    """Return both sides of one or two files."""
    pairs = list(parallel_sentences(Side(source, languages[0]), Side(target or source, languages[1]), reference))
    return [one for one, _ in pairs], [other for _, other in pairs]


def written(path, content):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.fixture
def read(tmp_path):
    """Return a function that reads the sentences of one file, beside numbers on the lines of another."""

    def sentences(content, name="ref.sgm", language="de"):
        path = written(tmp_path / name, content)
        for count in range(99):
            numbers = written(tmp_path / "numbers", "".join(f"{n}\n" for n in range(count + 1)))
            try:
                return sides(numbers, path, ("en", language))[1]
            except ValueError as error:
                if "sentences, but" not in str(error):
                    raise
        raise AssertionError("too many sentences")

    return sentences


def sgml(segments, kind="ref"):
    head = f'<{kind}set setid="x" srclang="any" trglang="de">\n<doc docid="d">\n<p>\n'
    return f"{head}{segments}\n</p>\n</doc>\n</{kind}set>\n"


@pytest.mark.parametrize("segments, expected", [
    ('<seg id="1">a=1&section=2&amp;x</seg>', ["a=1&section=2&x"]),
    ('<seg id="1">AT&T, R&D; &copy2 &notit;</seg>', ["AT&T, R&D; &copy2 &notit;"]),
    ('<seg id="1">&amp; &lt; &gt; &quot; &#228; &#xE4; &auml; &nbsp;.</seg>', ['& < > " ä ä ä \u00a0.']),
    ('<seg id="1">&amp;lt; stays</seg>', ["&lt; stays"]),
    ('<seg id="1">1 < 2 <3 << x > y</seg>', ["1 < 2 <3 << x > y"]),
    ('<seg id="1">the tag <b> & <unk></seg>', ["the tag <b> & <unk>"]),
    ('<seg id="1">a</seg><seg id="2"/><seg id="3">c</seg>', ["a", "", "c"]),
    ('<seg id="1">a & b</seg>\n<seg id="2" />\n<seg id="3"></seg>\n<seg id="4">d</seg>', ["a & b", "", "", "d"]),
    ('<seg id="1">a\n<seg id="2">b\n<seg id="3">c', ["a\n", "b\n", "c\n"]),
    ('<SEG ID="1">a</SEG>\n<Seg id="2">b</sEG>', ["a", "b"]),
    ("<seg id=1>a</seg>\n<seg id='2'>b</seg >", ["a", "b"]),
    ('<seg id="1" note="x > y">a</seg>', ["a"]),
    ('<seg id="1" note="x > y">a & b</seg>', ["a & b"]),
    ('<seg id="1>a</seg>\n<seg id="2">b</seg>', ["a", "b"]),
    ('<seg id="1">a\nb\r\n c</seg>', ["a\nb\n c"]),
    ('<seg id="1">a<!-- b <seg id="9">no</seg> --> c</seg>', ["a c"]),
    ('<seg id="1">a<!-- b --> & c</seg>', ["a & c"]),
    ('<!-- <seg id="0">no</seg> --><seg id="1">a & b</seg>', ["a & b"]),
    ('<seg id="1"><![CDATA[a < b &amp; c </seg>]]></seg>', ["a < b &amp; c </seg>"]),
    ('<seg id="1"><![CDATA[a &amp; c]]> & d</seg>', ["a &amp; c & d"]),
    ("<seg>a</seg><seg>b</seg>", ["a", "b"]),
    ('<seg id="1">a</seg><seg id="1">b</seg>', ["a", "b"]),
    ('<hl><seg id="1">a</seg></hl><segment>no</segment><seg id="2">b</seg>', ["a", "b"]),
    ('<seg id="1">a\x0bb & \x00c</seg>', ["a b &  c"]),
    ('<seg id="1">so\u00adft, ze\u200bro, mark\u200e</seg>', ["so\u00adft, ze\u200bro, mark\u200e"]),
])  # fmt: skip
def test_segments(read, segments, expected):
    assert [text.replace("\r", "") for text in read(sgml(segments))] == expected
    assert [text.rstrip() for text in read(segments, "bare.xml")] == [
        text.rstrip() for text in expected
    ]  # no set around


def test_tags_of_text_that_are_tags_of_another_layout(read):
    assert read(sgml('<seg id="1">see <ref>1</ref> & more</seg>')) == ["see <ref>1</ref> & more"]


def test_documents_and_sets_without_ends(read):
    text = '<refset trglang="de"><doc docid="1"><seg>a & b</seg><doc docid="2"><seg>c<seg>d</doc><doc docid="3"><seg>e'
    assert read(text) == ["a & b", "c", "d", "e"]
    many = "".join(f'<doc docid="{n}"><seg id="1">{n} & more' for n in range(90))
    assert read(f'<refset trglang="de">{many}') == [f"{n} & more" for n in range(90)]


@pytest.mark.parametrize("name", ["x.SGM", "x.Sgml", "x.XML", "x.sgm.gz", "x.xml.BZ2", "newstest2014", "newstest.de"])
@pytest.mark.parametrize("compress", [lambda content: content, gzip.compress, bz2.compress])
def test_markup_is_known_by_name_and_content(read, name, compress):
    assert read(compress(sgml('<seg id="1">a</seg>').encode()), name) == ["a"]


@pytest.mark.parametrize("text", ["<b>bold</b>\nplain\n", "<url>x</url>\n", "<?php\n", "see <refset>\n"])
def test_text_that_begins_like_markup(read, text):
    assert read(text, "x.de") == text.splitlines()


@pytest.mark.parametrize("encoding, declared", [
    ("utf-16", "UTF-16"), ("utf-16-le", "UTF-16"), ("utf-16-be", "utf-16"), ("latin-1", "ISO-8859-1"),
    ("cp1252", "windows-1252"), ("utf-8", "UTF-8"), ("utf-8-sig", "utf-8"), ("utf-8", "utf-16"), ("gb18030", "GB18030"),
])  # fmt: skip
@pytest.mark.parametrize("segment", ["Äpfel", "Ä & Ö"])
def test_encodings(read, encoding, declared, segment):
    text = f'<?xml version="1.0" encoding="{declared}"?>\n' + sgml(f'<seg id="1">{segment}</seg>')
    assert read(text.encode(encoding), "x.xml") == [segment]


@pytest.mark.parametrize("content, message", [
    (sgml('<seg id="1">Ä</seg>').encode("latin-1"), r"line 4: byte 13 is not valid UTF-8; convert .* iconv -f latin1"),
    (b'<?xml version="1.0" encoding="klingon"?><seg>a</seg>', "is in klingon, which is not a known encoding"),
    (b'<?xml version="1.0" encoding="ascii"?>\n<seg>\xc3\x84</seg>', "says that it is in ascii, but line 2 is not"),
    (b"<refset></refset>", "has no <seg>; is it the right file"),
    (sgml('<seg id="1">a</seg>').replace('"de"', '"fr"'), "has a reference in fr, but is taken for the text in de"),
    (sgml('<seg id="1">a</seg>', "src").replace("any", "en"), "has a source in en, but is taken for the text in de"),
    (sgml('<seg id="1">a</seg>', "tst"), "has a translation by a system in de, but is taken for the text in de"),
    ('<dataset><doc><hyp system="x" lang="de"><seg>a</seg></hyp></doc></dataset>', "has a translation by a system"),
    (b"", "the file is empty"),
])  # fmt: skip
def test_what_cannot_be_read_is_one_sentence(read, content, message):
    with pytest.raises(ValueError, match=message) as error:
        read(content, "x.xml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("said, language", [
    ("german", "de"), ("any", "de"), ("DE", "de"), ("de-AT", "de"), ("pt", "pt-BR"), ("pt_br", "pt-BR"), ("deu", "de"),
])  # fmt: skip
def test_languages_that_may_be_meant(read, said, language):
    assert read(sgml('<seg id="1">a</seg>').replace('"de"', f'"{said}"'), language=language) == ["a"]


# --- files with both sides


def wmt(docs, languages=("en", "de")):
    """Return the XML of WMT since 2021: documents are lists of (source, {translator: reference})."""
    parts = ['<?xml version="1.0" encoding="utf-8"?>\n<dataset id="newstest">\n<collection id="general">']
    for number, doc in enumerate(docs):
        if number == 1:
            parts.append('</collection>\n<collection id="other">')
        translators = list(dict.fromkeys(name for _, references in doc for name in references))
        parts.append(f'<doc id="doc.{number}" origlang="{languages[0]}">\n<src lang="{languages[0]}">\n<p>')
        parts += [f'<seg id="{n}">{html.escape(text)}</seg>' for n, (text, _) in enumerate(doc, 1)]
        parts.append("</p>\n</src>")
        for name in translators:
            parts.append(f'<ref lang="{languages[1]}" translator="{name}">\n<p>')
            parts += [
                f'<seg id="{n}">{html.escape(references[name])}</seg>'
                for n, (_, references) in enumerate(doc, 1)
                if name in references
            ]
            parts.append("</p>\n</ref>")
        parts.append(f'<hyp system="online" lang="{languages[1]}">')
        parts += [f'<seg id="{n}">no</seg>' for n, _ in enumerate(doc, 1)]
        parts.append("</hyp>\n</doc>")
    return "\n".join([*parts, "</collection>\n</dataset>\n"])


def document(*numbers, by="AB"):
    return [(f"source {n} <&>", {name: f"Ziel {n} <&> {name}" for name in by}) for n in numbers]


TWO = [document(0, 1, 2), document(3, 4)]
SOURCES, TARGETS = ([f"{word} {n} <&>" for n in range(5)] for word in ("source", "Ziel"))


@pytest.mark.parametrize("names", [("x.xml", "x.xml"), ("x.xml", "y.xml"), ("x.en", "y.de")])
@pytest.mark.parametrize("reference, by", [(None, "A"), ("A", "A"), ("B", "B")])
def test_one_file_has_both_sides(tmp_path, capsys, names, reference, by):
    files = [written(tmp_path / name, wmt(TWO)) for name in names]
    for direction in (1, -1):
        found = sides(*files[::direction], ("en", "de")[::direction], reference)
        assert [*found] == [SOURCES, [f"{text} {by}" for text in TARGETS]][::direction]
    said = capsys.readouterr().out
    assert (f"{names[1]} has references by A, B: that by A is taken; reference: B in" in said) == (reference is None)


def test_one_reference_is_taken_without_a_word(tmp_path, capsys):
    path = written(tmp_path / "x.xml", wmt([document(0, 1, by="C")]))
    assert sides(path) == (SOURCES[:2], ["Ziel 0 <&> C", "Ziel 1 <&> C"])
    assert capsys.readouterr().out == ""


def test_a_reference_that_is_not_there(tmp_path):
    path = written(tmp_path / "x.xml", wmt(TWO))
    with pytest.raises(ValueError, match=r"x\.xml has no reference by Z; it has A, B"):
        sides(path, reference="Z")
    text = written(tmp_path / "x.en", "a\n")
    with pytest.raises(ValueError, match="are neither SGML nor XML, and have no reference by A"):
        sides(text, text, reference="A")


def test_what_has_no_reference_is_no_pair(tmp_path):
    docs = [document(0, 1, 2), [("alone", {})], document(3, 4, by="B")]
    del docs[0][1][1]["A"]
    path = written(tmp_path / "x.xml", wmt(docs))
    sources = [*SOURCES[:3], "alone", *SOURCES[3:]]
    assert sides(path) == (sources, ["Ziel 0 <&> A", None, "Ziel 2 <&> A", None, None, None])
    assert sides(path, reference="B")[1] == [f"{t} B" if t else None for t in [*TARGETS[:3], None, *TARGETS[3:]]]


def test_test_suites_are_no_part(tmp_path):
    text = wmt(TWO).replace('<doc id="doc.0"', '<doc id="doc.0" testsuite="gender"')
    assert sides(written(tmp_path / "x.xml", text), reference="A") == (SOURCES[3:], [f"{t} A" for t in TARGETS[3:]])


@pytest.mark.parametrize("change, words", [
    (('"de"', '"cs"'), "has a source in en and a reference in cs and .*, but is taken for the text in de"),
    (('lang="de"', ""), None),
    (('lang="de"', 'lang="en"'), "has 3 texts, and does not say which is in en"),
])  # fmt: skip
def test_languages_of_both_sides(tmp_path, change, words):
    path = written(tmp_path / "x.xml", wmt(TWO).replace(*change))
    if words:
        with pytest.raises(ValueError, match=words):
            sides(path)
    else:
        assert sides(path)[1] == [f"{text} A" for text in TARGETS]


def test_varieties_of_a_language_are_two(tmp_path):
    path = written(tmp_path / "x.xml", wmt(TWO, ("pt-PT", "pt-BR")))
    assert sides(path, languages=("pt_PT", "pt_BR"))[0] == SOURCES
    assert sides(path, languages=("pt_BR", "pt_PT"))[1] == SOURCES


def test_ids_that_are_missing_or_double(tmp_path):
    text = wmt([document(0, 1, 2, by="A")])
    for wrong in ('id="3"', 'id="2" no="2"'):
        assert sides(written(tmp_path / "x.xml", text.replace('id="1"', wrong)))[1] == [f"{t} A" for t in TARGETS[:3]]
    text = text.replace('<seg id="2">Ziel 1 &lt;&amp;&gt; A</seg>', "").replace('id="3"', 'id="1"')
    with pytest.raises(ValueError, match="has a document of 3 segments with 2 translations, and their ids do not tell"):
        sides(written(tmp_path / "x.xml", text))


def test_broken_xml_with_both_sides(tmp_path):
    text = wmt(TWO).replace("source 1 &lt;&amp;&gt;", "AT&T <3").replace("</p>", "", 1)
    found = sides(written(tmp_path / "x.xml", text))
    assert found[0] == [SOURCES[0], "AT&T <3", *SOURCES[2:]] and found[1] == [f"{text} A" for text in TARGETS]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.sets(st.sampled_from("AB"), min_size=1), min_size=1, max_size=4), min_size=1, max_size=4))
def test_sentences_are_those_of_sacrebleu(tmp_path_factory, written_by):
    """They are those of sacrebleu, but for what a translator has left out, which it has as empty lines."""
    docs = [
        [(f"source {d}.{n}", {by: f"Ziel {d}.{n} {by}" for by in sorted(names)}) for n, names in enumerate(doc)]
        for d, doc in enumerate(written_by)
    ]
    path = written(tmp_path_factory.mktemp("wmt") / "x.xml", wmt(docs))
    theirs = WMTXMLDataset._unwrap_wmt21_or_later(str(path))
    for by in {by for doc in written_by for names in doc for by in names}:
        ours = [pair for pair in zip(*sides(path, reference=by), strict=True) if pair[1] is not None]
        assert ours == [pair for pair in zip(theirs["src"], theirs[f"ref:{by}"], strict=True) if pair[1]]


# --- several sets, several documents


def nist(sets):
    """Return one file with sets, each (kind, attributes, documents), a document (attributes, segments)."""
    parts = ['<?xml version="1.0"?>\n<!DOCTYPE mteval SYSTEM "ftp://127.0.0.1:9/mteval-xml-v1.6.dtd">\n<mteval>']
    for kind, attributes, docs in sets:
        parts.append(f'<{kind}set setid="x" {attributes}>')
        for about, segments in docs:
            body = "".join(f'<seg id="{n}"> {text} </seg>\n' for n, text in enumerate(segments, 1))
            parts.append(f"<doc {about}>\n{body}</doc>")
        parts.append(f"</{kind}set>")
    return "\n".join([*parts, "</mteval>"])


SOURCE = ("src", 'srclang="en"', [('docid="1"', ["a", "b"]), ('docid="2"', ["c"])])


def reference(about, by, doc=""):
    docs = [(f'docid="1" {doc}', [f"A {by}", f"B {by}"]), (f'docid="2" {doc}', [f"C {by}"])]
    return ("ref", f'srclang="en" trglang="de" {about}', docs)


@pytest.mark.parametrize("sets, names", [
    ([SOURCE, reference('refid="r1"', "r1"), reference('refid="r2"', "r2")], ["r1", "r2"]),
    ([reference("", "1"), SOURCE, reference("", "2")], ["1", "2"]),
    ([SOURCE, ("ref", 'trglang="de"', [
        *reference("", "x", 'sysid="x"')[2], *reference("", "y", 'sysid="y"')[2],
    ])], ["x", "y"]),
])  # fmt: skip
def test_several_references_in_sets(tmp_path, capsys, sets, names):
    path = written(tmp_path / "x.xml", nist([*sets, ("tst", 'trglang="de"', [('docid="1"', ["no"])])]))
    for chosen in (None, *names):
        by = chosen or names[0]
        found = [[text.strip() for text in side] for side in sides(path, reference=chosen)]
        assert found == [["a", "b", "c"], [f"A {by}", f"B {by}", f"C {by}"]]
    assert f"x.xml has references by {', '.join(names)}: that by {names[0]} is taken" in capsys.readouterr().out


def test_sets_one_after_the_other_are_one(tmp_path):
    text = sgml('<seg id="1">a</seg>') + sgml('<seg id="1">b & c</seg>').replace('"d"', '"e"')
    path = written(tmp_path / "x.sgm", text)
    numbers = written(tmp_path / "x.en", "1\n2\n")
    assert sides(numbers, path)[1] == ["a", "b & c"]


def test_files_with_other_segments_missing(tmp_path):
    source = written(tmp_path / "x.en.sgm", nist([("src", 'srclang="en"', [('docid="1"', list("abc"))])]))
    target = tmp_path / "x.de.sgm"
    written(target, source.read_text().replace("src", "ref"))
    assert sides(source, target, ("en", "de"))[0] == [" a ", " b ", " c "]
    written(target, target.read_text().replace('id="3"', 'id="4"'))
    with pytest.raises(ValueError, match=r"segment 3 has the id 3 in .*en\.sgm, but 4 in .*de\.sgm; is one missing"):
        sides(source, target, ("en", "de"))


# --- files from somebody who means harm

LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))


@pytest.mark.parametrize("declarations", [
    f'<!ENTITY l0 "lol">{LAUGHS}',
    '<!ENTITY l9 SYSTEM "file:///etc/passwd">',
    '<!ENTITY % p SYSTEM "http://127.0.0.1:9/x.dtd"> %p;',
    f'<!ATTLIST seg note CDATA "{"x" * 1000}">',
])  # fmt: skip
@pytest.mark.parametrize("doctype", ["refset", 'refset SYSTEM "x>y.dtd"', "refset PUBLIC '-//x[' \"y\""])
@pytest.mark.parametrize("stray", ["", " & "])
def test_declarations_are_not_read(read, declarations, doctype, stray):
    text = f"<!DOCTYPE {doctype} [{declarations}]>" + sgml(f'<seg id="1">&l9;{stray}</seg>')
    began = time.monotonic()
    with pytest.raises(
        ValueError, match=r"has declarations of its own in <!DOCTYPE \.\.\. \[\.\.\.\]>, such as entities"
    ):
        read(text, "x.xml")
    assert time.monotonic() - began < 5


def test_nothing_is_fetched(read, server):
    (url := f"{server.url}/x.dtd")
    text = f'<!DOCTYPE refset SYSTEM "{url}">' + sgml('<seg id="1">caf&eacute; &unknown; <xi:include href="x"/></seg>')
    assert read(text, "x.xml") == ['café &unknown; <xi:include href="x"/>']
    included = sgml('<seg id="1">a<xi:include xmlns:xi="http://www.w3.org/2001/XInclude" href="numbers"/></seg>')
    assert read(included, "x.xml") == ["a"]
    assert server.requests == []


@pytest.mark.parametrize(
    "pattern",
    [
        "<!--",
        "<!---->",
        "<??>",
        "<?",
        " ",
        "<![CDATA[",
        '<seg id="',
        "<seg ",
        "<!DOCTYPE '",
        "&#",
        "<",
        "<doc>",
        "<seg>",
    ],
)
def test_no_file_takes_for_ever(tmp_path, pattern):
    began = time.monotonic()
    for before, name in product(("", "<refset>"), ("x.sgm", "x.de")):
        path = written(tmp_path / name, before + pattern * 10_000)
        with suppress(ValueError):
            list(parallel_sentences(Side(path, "en"), Side(path, "de")))
    assert time.monotonic() - began < 10


ALPHABET = ["a", " ", "\n", "&", "<", ">", '"', "'", "&amp;", "&sect", "é", "<!--", "-->", "<b>", "</b>", "]]>"]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(st.sampled_from(ALPHABET)).map("".join).filter(lambda text: "<!--" not in text), min_size=1))
def test_segments_are_never_lost_or_joined(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("sgml") / "x.sgm"
    body = "\n".join(f'<seg id="{n}">{text}</seg>' for n, text in enumerate(texts))
    written(path, sgml(body))
    written(path.with_suffix(".en"), "n\n" * len(texts))
    found = sides(path.with_suffix(".en"), path)[1]
    decoded = [text.replace("&amp;", "&") for text in texts]
    well_formed = all(text == decoded[n] for n, text in enumerate(found))
    tags = [text.replace("<b>", "").replace("</b>", "") for text in decoded]
    assert well_formed or found == tags


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"])), min_size=1), st.booleans())
def test_what_is_escaped_comes_back(tmp_path_factory, texts, stray):
    texts = [text.replace("\ufffe", "").replace("\uffff", "") for text in texts]
    segments = [f"<seg>{html.escape(text)}</seg>" for text in texts] + ["<seg> & </seg>"] * stray
    path = written(tmp_path_factory.mktemp("sgml") / "x.sgm", sgml("".join(segments)))
    written(path.with_suffix(".en"), "n\n" * len(segments))
    assert sides(path.with_suffix(".en"), path)[1] == texts + [" & "] * stray
