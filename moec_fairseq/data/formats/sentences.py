"""Parallel sentences, out of files in any format that people have them in.

Two files are read side by side. A file of several texts, such as a table with a column for each language, is read once
for both sides.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from moec_fairseq.data.formats.compressed import without_ending
from moec_fairseq.data.formats.markup import is_markup, is_tmx
from moec_fairseq.data.formats.segments import check_numbers, read_segments
from moec_fairseq.data.formats.tables import Wanted, read_csv, read_json, read_parquet, read_tmx, read_tsv
from moec_fairseq.data.formats.text import Sentence, raw_lines

# IWSLT's training text: talks begin with lines of metadata; title and description are sentences
_TALKS = "train.tags."
_METADATA = re.compile(r"\s*</?(url|talkid|keywords|speaker|reviewer|translator|doc)\b", re.IGNORECASE)
_SENTENCE_TAGS = re.compile(r"</?(title|description)>", re.IGNORECASE)


@dataclass(frozen=True)
class Side:
    """One side of a parallel text.

    Attributes:
        path: a file.
        language: of the text, checked where the file says it.
        field: what of the file it is: the number of a column, its name, a path such as translation.en, or a language;
            None: the file has one text, or says which is in this language.
        name: of the file, for messages, if not its path.
    """

    path: Path
    language: str
    field: str | None = None
    name: str | None = None

    def __str__(self) -> str:
        """Return it as it is written."""
        return (self.name or str(self.path)) + (f"#{self.field}" if self.field else "")

    @property
    def wanted(self) -> Wanted:
        """Return what is wanted of the file."""
        return Wanted(self.language, self.field)


def parallel_sentences(source: Side, target: Side, reference: str | None = None) -> Iterator[tuple[Sentence, Sentence]]:
    """Yield the sentences of two sides; None stands for what is not one of a pair, such as lines of metadata.

    The name of a file says its format; SGML, XML and TMX are known by their content, too. Other files are tables with
    tabs where a column is named or both sides are in one file, and have a sentence on each line where not.

    Args:
        source: one side.
        target: the other.
        reference: the translator whose text is taken, where a file of SGML or XML has several; None: the first.

    Raises:
        ValueError: the files do not fit each other or their languages, or cannot be read.
    """
    sides = (source, target)
    shared = source.path == target.path
    markup = [_TALKS not in side.path.name and is_markup(side.path) for side in sides]
    for side, is_it in zip(sides, markup, strict=True):
        if is_it and side.field is not None:
            raise ValueError(f"{side.path} is SGML or XML and has no {side.field}; it says its languages: leave it out")
    if reference is not None and not any(markup):
        raise ValueError(f"{source} and {target} are neither SGML nor XML, and have no reference by {reference}")
    if shared and not any(markup):
        for one, other in _reader(source, shared)(source.path, (source.wanted, target.wanted)):
            yield one, other
        return
    segments = [
        read_segments(side.path, side.language, reference) if is_it else None
        for side, is_it in zip(sides, markup, strict=True)
    ]
    if segments[0] is not None and segments[1] is not None:
        check_numbers(segments[0], source.path, segments[1], target.path)
    texts: list[Iterator[Sentence]] = [
        (text for (text,) in _reader(side, shared)(side.path, (side.wanted,)))
        if found is None
        else (segment.text for segment in found)
        for side, found in zip(sides, segments, strict=True)
    ]
    end = object()
    for number, (one, other) in enumerate(zip_longest(*texts, fillvalue=end), start=1):  # type: ignore[assignment]
        if one is end or other is end:
            rest = sum(1 for text in texts for _ in text)
            counts = [number - 1 if text is end else number + rest for text in (one, other)]
            raise ValueError(
                f"{source} has {counts[0]} sentences, but {target} has {counts[1]}; line N of one must be the "
                "translation of line N of the other"
            )
        yield one, other


def _read_lines(path: Path, wanted: Sequence[Wanted]) -> Iterator[tuple[Sentence, ...]]:
    """Yield the lines of a file."""
    if _TALKS not in path.name:
        return ((line,) for line in raw_lines(path))
    return ((None if _METADATA.match(line) else _SENTENCE_TAGS.sub("", line),) for line in raw_lines(path))


Reader = Callable[[Path, Sequence[Wanted]], Iterator[tuple[Sentence, ...]]]
READERS: dict[str, Reader] = {  # by the ending of a name
    "tsv": read_tsv,
    "tab": read_tsv,
    "csv": read_csv,
    "jsonl": read_json,
    "ndjson": read_json,
    "json": read_json,
    "parquet": read_parquet,
}


def _reader(side: Side, shared: bool) -> Reader:
    """Return what reads a file that is not markup."""
    ending = without_ending(side.path.name).lower().rpartition(".")[2]
    if ending in READERS:
        return READERS[ending]
    if is_tmx(side.path):
        return read_tmx
    return read_tsv if shared or side.field else _read_lines
