"""Sentences out of the layouts in which evaluation campaigns publish them.

Three are known: one sentence on each line; SGML or XML that has documents in a <srcset> or <refset>, mostly in a file
for each side (WMT until 2020, IWSLT, NIST); and XML that has the sides in each document, a <src> and the <ref> of each
translator (WMT since 2021).
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from moec_fairseq.data.languages import language_of, same_language
from moec_fairseq.data.markup import SETS, SIDES, is_markup, read_markup
from moec_fairseq.data.text import raw_lines

SOURCE, REFERENCE, SYSTEM = "source", "reference", "translation by a system"
_KINDS = dict(zip((*SETS, *SIDES), (SOURCE, REFERENCE, SYSTEM) * 2, strict=True))
# IWSLT's training text: talks begin with lines of metadata; title and description are sentences
_METADATA = re.compile(r"\s*</?(url|talkid|keywords|speaker|reviewer|translator|doc)\b", re.IGNORECASE)
_SENTENCE_TAGS = re.compile(r"</?(title|description)>", re.IGNORECASE)

Sentence = str | None  # None: not one of a pair


def parallel_sentences(
    source: Path, source_language: str, target: Path, target_language: str, reference: str | None = None
) -> Iterator[tuple[Sentence, Sentence]]:
    """Yield the sentences of two files side by side; one file may hold both.

    Files are SGML or XML by name (.sgm, .sgml, .xml) or content, IWSLT's train.tags, or have a sentence on each line.
    None stands for lines of metadata, and for sentences that a file with both sides has no translation of.

    Args:
        source: a file.
        source_language: of the file, checked where the file says it.
        target: a file.
        target_language: likewise.
        reference: the translator whose text is taken where there are several; None: the first.

    Raises:
        ValueError: the files do not fit each other or their languages, or cannot be read.
    """
    segments = [
        _segments(path, language, reference) if "train.tags." not in path.name and is_markup(path) else None
        for path, language in ((source, source_language), (target, target_language))
    ]
    if reference is not None and segments == [None, None]:
        raise ValueError(f"{source} and {target} have a sentence on each line, and no reference by {reference}")
    if segments[0] is not None and segments[1] is not None:
        _check_numbers(segments[0], source, segments[1], target)
    sides: list[Iterable[Sentence]] = [
        _lines(path) if found is None else (segment.text for segment in found)
        for path, found in zip((source, target), segments, strict=True)
    ]
    end = object()
    for number, (one, other) in enumerate(zip_longest(*sides, fillvalue=end)):
        if one is end or other is end:
            shorter, longer = (source, target) if one is end else (target, source)
            raise ValueError(
                f"{shorter} has {number} sentences, but {longer} has more; line N of one must be the translation of "
                "line N of the other"
            )
        yield one, other  # type: ignore[misc]


def _lines(path: Path) -> Iterator[Sentence]:
    if "train.tags." not in path.name:
        return raw_lines(path)
    return (None if _METADATA.match(line) else _SENTENCE_TAGS.sub("", line) for line in raw_lines(path))


class _Segment(NamedTuple):
    """A sentence: the document that it is in, its number there, if it has one, and its text."""

    document: Any
    number: str | None
    text: Sentence


class _Side(NamedTuple):
    """What segments are of: source, reference or translation by a system; their language, if known; who wrote them."""

    kind: str
    language: str | None
    by: str


def _segments(path: Path, language: str, reference: str | None) -> list[_Segment]:
    """Return the segments of the side of a file that is in this language.

    Raises:
        ValueError: there is none, or it is not clear which.
    """
    sides = _sides(path)
    usable = [side for side in sides if side.kind != SYSTEM]
    fitting = [side for side in usable if _fits(side.language, language)] or [
        side for side in usable if _fits(side.language, language) is None
    ]
    if not fitting:
        held = " and ".join(dict.fromkeys(f"a {side.kind} in {side.language or 'some language'}" for side in sides))
        raise ValueError(
            f"{path} has {held}, but is taken for the text in {language}; exchange the two sides, or name another file"
        )
    if any(side.kind == SOURCE for side in fitting):
        if len(fitting) > 1:
            raise ValueError(
                f"{path} has {len(fitting)} texts, and does not say which is in {language}; write each into a file"
            )
        return sides[fitting[0]]
    by = [side.by for side in fitting]
    if reference is not None and reference not in by:
        raise ValueError(f"{path} has no reference by {reference}; it has {', '.join(by)}")
    chosen = fitting[by.index(reference) if reference else 0]
    if reference is None and len(by) > 1:
        print(
            f"{path.name} has references by {', '.join(by)}: that by {by[0]} is taken; "
            f"reference: {by[1]} in this part of the recipe takes another",
            flush=True,
        )
    source = next((sides[side] for side in usable if side.kind == SOURCE), [])
    return _beside(source, sides[chosen], path)


def _fits(said: str | None, language: str) -> bool | None:
    """Tell whether a file that says it is in one language can be in another; None: it says nothing that is a code.

    Some say "any", and some spell the language out, as german.
    """
    if not said or said.lower() == "any" or len(language_of(said)) != len(language_of(language)):
        return None
    return same_language(said, language)


def _beside(source: Sequence[_Segment], reference: list[_Segment], path: Path) -> list[_Segment]:
    """Return the reference of each segment of the source where they share documents; None where there is none."""
    by_document: dict[Any, list[_Segment]] = defaultdict(list)
    for segment in reference:
        by_document[segment.document].append(segment)
    if not any(segment.document in by_document for segment in source):
        return reference  # which is in documents of its own
    found = []
    for document, group in groupby(source, lambda segment: segment.document):
        wanted, translated = list(group), by_document[document]
        numbers, others = ([segment.number for segment in segments] for segments in (wanted, translated))
        if _all_differ(numbers) and _all_differ(others):
            texts = {segment.number: segment.text for segment in translated}
            beside = [texts.get(number) for number in numbers]
        elif len(wanted) == len(translated):
            beside = [segment.text for segment in translated]
        else:
            raise ValueError(
                f"{path} has a document of {len(wanted)} segments with {len(translated)} translations, and their ids "
                "do not tell which belong together"
            )
        found += [_Segment(document, number, text or None) for number, text in zip(numbers, beside, strict=True)]
    return found


def _all_differ(numbers: list[str | None]) -> bool:
    return None not in numbers and len(set(numbers)) == len(numbers)


def _check_numbers(one: list[_Segment], path: Path, other: list[_Segment], other_path: Path) -> None:
    """Raise ValueError where two files number their segments differently, of which one may be missing."""
    if len(one) != len(other):
        return  # which is said anyway
    for place, (segment, beside) in enumerate(zip(one, other, strict=True), start=1):
        if None not in (segment.number, beside.number) and segment.number != beside.number:
            raise ValueError(
                f"segment {place} has the id {segment.number} in {path}, but {beside.number} in {other_path}; is one "
                "missing?"
            )


def _sides(path: Path) -> dict[_Side, list[_Segment]]:
    """Return the segments of each side of a file, the sides in the order of the file."""
    root = read_markup(path)
    if next(root.iter("tuv"), None) is not None:
        raise ValueError(f"{path} is a translation memory (TMX), which is not read; write each language into a file")
    sides: dict[_Side, list[_Segment]] = defaultdict(list)
    times: Counter[Any] = Counter()
    for part in [*root.iter(*SETS)] or [*root.iter(*SIDES)] or [root]:
        kind = _KINDS.get(part.tag, SOURCE)
        language = part.get("lang") or part.get("srclang" if kind == SOURCE else "trglang")
        ids = [document.get("docid") for document in part.iter("doc")]
        versions = len(set(ids)) < len(ids)  # NIST has all translations of a document one after the other
        # where nobody is named: the first, second ... of a document or set
        where = (part.get("setid"), *ids[:1]) if part.tag in SETS else next(part.iterancestors("doc"), None)
        name = part.get("translator") or part.get("refid") or ""
        times[kind, language, where, name] += 1
        number = times[kind, language, where, name]
        for segment in part.iter("seg"):
            document = next(segment.iterancestors("doc"), root)
            if "testsuite" in document.attrib:
                continue  # no part of the test set, as for sacreBLEU
            by = name or (versions and document.get("sysid")) or ""
            side = _Side(kind, language, f"{by}{number}" if number > 1 or not by else by)
            sides[side].append(_Segment(document, segment.get("id"), "".join(segment.itertext())))
    if not sides:
        raise ValueError(f"{path} has no <seg>; is it the right file?")
    return sides
