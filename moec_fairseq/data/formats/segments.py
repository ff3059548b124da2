"""Sentences of SGML and XML, as evaluation campaigns publish them.

Two layouts are known: documents in a <srcset> or <refset>, mostly in a file for each side (WMT until 2020, IWSLT,
NIST); and both sides in each document, a <src> and the <ref> of each translator (WMT since 2021).
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from moec_fairseq.data.formats.markup import SETS, SIDES, read_markup
from moec_fairseq.data.formats.text import Sentence
from moec_fairseq.data.languages import language_of, same_language

SOURCE, REFERENCE, SYSTEM = "source", "reference", "translation by a system"
_KINDS = dict(zip((*SETS, *SIDES), (SOURCE, REFERENCE, SYSTEM) * 2, strict=True))


class Segment(NamedTuple):
    """A sentence: the document that it is in, its number there, if it has one, and its text."""

    document: Any
    number: str | None
    text: Sentence


class _Side(NamedTuple):
    """What segments are of: source, reference or translation by a system; their language, if known; who wrote them."""

    kind: str
    language: str | None
    by: str


def read_segments(path: Path, language: str, reference: str | None) -> list[Segment]:
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


def _beside(source: Sequence[Segment], reference: list[Segment], path: Path) -> list[Segment]:
    """Return the reference of each segment of the source where they share documents; None where there is none."""
    by_document: dict[Any, list[Segment]] = defaultdict(list)
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
        found += [Segment(document, number, text or None) for number, text in zip(numbers, beside, strict=True)]
    return found


def _all_differ(numbers: list[str | None]) -> bool:
    return None not in numbers and len(set(numbers)) == len(numbers)


def check_numbers(one: list[Segment], path: Path, other: list[Segment], other_path: Path) -> None:
    """Raise ValueError where two files number their segments differently, of which one may be missing."""
    if len(one) != len(other):
        return  # which is said anyway
    for place, (segment, beside) in enumerate(zip(one, other, strict=True), start=1):
        if None not in (segment.number, beside.number) and segment.number != beside.number:
            raise ValueError(
                f"segment {place} has the id {segment.number} in {path}, but {beside.number} in {other_path}; is one "
                "missing?"
            )


def _sides(path: Path) -> dict[_Side, list[Segment]]:
    """Return the segments of each side of a file, the sides in the order of the file."""
    root = read_markup(path)
    sides: dict[_Side, list[Segment]] = defaultdict(list)
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
            sides[side].append(Segment(document, segment.get("id"), "".join(segment.itertext())))
    if not sides:
        raise ValueError(f"{path} has no <seg>; is it the right file?")
    return sides
