"""SGML and XML as a tree, from files that nobody here has written: nothing is read but the file, and nothing expanded.

What campaigns call SGML, and often XML, is none: & and < stand for themselves, ends of tags are missing, names are in
any case. It is mended first, and then read by the same parser.
"""

import codecs
import html
import re
from html.entities import html5
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from lxml import etree

from moec_fairseq.data.formats.compressed import open_unpacked, without_ending
from moec_fairseq.data.formats.text import check_file, not_utf8

SETS, SIDES = ("srcset", "refset", "tstset"), ("src", "ref", "hyp")  # around documents, or in them
_NAMED = re.compile(r"\.(sgml?|xml)$", re.IGNORECASE)
_BEFORE = r"(?:\s|<!--(?:(?!-->).)*-->|<\?(?:(?!\?>).)*\?>)*"  # comments and the like, each in one way only
_BEGINS = re.compile(
    rf"{_BEFORE}(?:<!DOCTYPE[^>]*>{_BEFORE})?<(srcset|refset|tstset|mteval|dataset)\b", re.DOTALL | re.IGNORECASE
)
_TMX = re.compile(rf"{_BEFORE}(?:<!DOCTYPE[^>]*>{_BEFORE})?<tmx\b", re.DOTALL | re.IGNORECASE)
_HEAD = 4096  # bytes that show whether a file is markup
_LARGEST = 1 << 27  # bytes of a file, which is read as a whole
_DECLARATIONS = re.compile(rf"""{_BEFORE}<!DOCTYPE(?:[^>\["']|"[^"]*"|'[^']*')*\[""", re.DOTALL | re.IGNORECASE)
_XML = re.compile(r"\A\s*<\?xml\b.*?\?>", re.DOTALL | re.IGNORECASE)
_ENCODING = re.compile(rb"\s*<\?xml[^>]*?\bencoding\s*=\s*[\"']([\w.:-]+)", re.IGNORECASE)
_MARKS = {  # how files in other encodings begin
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    "<?".encode("utf-16-le"): "utf-16-le",
    "<?".encode("utf-16-be"): "utf-16-be",
}
_REFERENCE = re.compile(r"&(#\d+|#x[0-9a-f]+|\w+);", re.IGNORECASE)
_NO_CHARACTER = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # of XML
_PARAGRAPH = re.compile(r"</?(?:p|hl)(?![\w.-])[^<>]*>", re.IGNORECASE)  # after a segment without end
_ATTRIBUTE = re.compile(r"""([\w.-]+)\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""")
_ATTRIBUTES = {"setid", "srclang", "trglang", "lang", "docid", "sysid", "refid", "translator", "testsuite", "id"}


def is_named_as_markup(name: str) -> bool:
    """Tell whether a file is SGML or XML by its name."""
    return _NAMED.search(without_ending(name)) is not None


def is_markup(path: Path) -> bool:
    """Tell whether a file is SGML or XML of a campaign by its name, or by how it begins."""
    head = _head(path)
    return _TMX.match(head) is None and (is_named_as_markup(path.name) or _BEGINS.match(head) is not None)


def is_tmx(path: Path) -> bool:
    """Tell whether a file is a translation memory by its name, or by how it begins."""
    return without_ending(path.name).lower().endswith(".tmx") or _TMX.match(_head(path)) is not None


def _head(path: Path) -> str:
    """Return how a file begins."""
    check_file(path)
    with open_unpacked(path) as file:
        head = file.peek(_HEAD)[:_HEAD]
    encoding = next((name for mark, name in _MARKS.items() if head.startswith(mark)), "utf-8")
    return head.decode(encoding, "replace")


def read_markup(path: Path) -> Any:
    """Return the root of a file, as lxml has it, but names of tags and attributes in lower case.

    Raises:
        ValueError: the file declares entities, is too large, or not in the encoding that it says.
    """
    root = _tree(path)
    for element in root.iter(etree.Element):
        element.tag = etree.QName(element).localname.lower()
        attributes = {etree.QName(name).localname.lower(): value for name, value in element.attrib.items()}
        element.attrib.clear()
        element.attrib.update(attributes)
    return root


def _tree(path: Path) -> Any:
    text = _decoded(path)
    if _DECLARATIONS.match(text):
        raise ValueError(
            f"{path} has declarations of its own in <!DOCTYPE ... [...]>, such as entities, which are not read; remove "
            "them, and write what they stand for"
        )
    parser = etree.XMLParser(
        resolve_entities=False, load_dtd=False, no_network=True, remove_comments=True, remove_pis=True
    )
    try:
        root = etree.fromstring(text, parser)
        if next(root.iter(etree.Entity), None) is None:
            return root
    except etree.XMLSyntaxError:
        pass  # as it is with most files that are not made by a library
    return etree.fromstring(_mended(text), parser)


def _decoded(path: Path) -> str:
    """Return the text of a file without its XML declaration, which says the encoding.

    Raises:
        ValueError: it is too large, or not in the encoding that it says.
    """
    with open_unpacked(path) as file:
        content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise ValueError(f"{path} holds more than {_LARGEST:,} bytes, too many for SGML or XML; give plain text")
    declared = _ENCODING.match(content.removeprefix(codecs.BOM_UTF8))
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), None)
    if encoding is None and declared and not declared[1].lower().startswith((b"utf", b"ucs", b"iso-10646")):
        encoding = declared[1].decode()  # in UTF-16, we could not have read this
    try:
        return _XML.sub("", content.decode(encoding or "utf-8"), count=1)
    except LookupError:
        raise ValueError(
            f"{path} says that it is in {encoding}, which is not a known encoding; convert it to UTF-8"
        ) from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        if encoding in (None, "utf-8-sig"):
            raise not_utf8(path, line, error.start - content.rfind(b"\n", 0, error.start)) from None
        raise ValueError(
            f"{path} says that it is in {encoding}, but line {line} is not; correct its first line"
        ) from None


def _mended(text: str) -> str:
    """Return as XML what campaigns call SGML or XML; only tags of sets, sides, documents and segments are tags.

    All other < and & are text, unless they stand for a character, as &amp; does; any of these tags ends a segment.
    """
    kinds = SETS if re.search(r"<(src|ref|tst)set\b", text, re.IGNORECASE) else SIDES
    tags = "|".join([*kinds, "doc", "seg"])
    attributes = r"""(?:[^'"<>]|"[^"<]*"|'[^'<]*')*|[^<>]*"""
    mark = re.compile(
        r"<!--((?!<!--).)*?-->|<!\[CDATA\[(?P<verbatim>((?!<!\[CDATA\[).)*?)\]\]>|"
        rf"<(?P<end>/?)(?P<tag>{tags})(?![\w.-])(?P<attributes>{attributes})>",
        re.DOTALL | re.IGNORECASE,
    )
    clean = ["<all>"]
    inside: list[str] = []

    def end(*ended: str) -> None:
        while any(tag in inside for tag in ended):
            clean.append(f"</{inside.pop()}>")

    def add(words: str, whole: bool) -> None:
        if "seg" in inside:
            clean.append(_escaped(words if whole else _PARAGRAPH.split(words)[0]))

    position = 0
    for found in mark.finditer(text):
        tag = (found["tag"] or "").lower()
        add(text[position : found.start()], whole=not tag or bool(tag == "seg" and found["end"]))
        position = found.end()
        if not tag and "seg" in inside:
            clean.append(escape(_NO_CHARACTER.sub(" ", found["verbatim"] or "")))
        if tag:
            end("seg", *(kinds if tag in kinds else [tag]))
        if tag and not found["end"]:
            values = {key.lower(): "".join(value) for key, *value in _ATTRIBUTE.findall(found["attributes"])}
            known = {key: _NO_CHARACTER.sub(" ", values[key]) for key in values if key in _ATTRIBUTES}
            clean.append(f"<{tag}{''.join(f' {key}={quoteattr(value)}' for key, value in known.items())}>")
            inside.append(tag)
            if found["attributes"].endswith("/"):
                end(tag)
    add(text[position:], whole=False)
    end(*inside)
    return "".join([*clean, "</all>"])


def _escaped(text: str) -> str:
    return escape(_NO_CHARACTER.sub(" ", with_characters(text)))


def with_characters(text: str) -> str:
    """Return text with the characters that references stand for, such as &lt; and &#60;; every other & stays."""
    return _REFERENCE.sub(lambda found: _character(found[0]), text)


def _character(reference: str) -> str:
    return html.unescape(reference) if reference[1] == "#" else html5.get(reference[1:], reference)
