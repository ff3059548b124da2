"""Sentences out of the layouts in which evaluation campaigns publish them."""

import html
import re
from collections.abc import Iterator
from pathlib import Path

from moec_fairseq.corpus.text import raw_lines

_SEGMENT = re.compile(r"<seg[^>]*>(.*?)</seg>", re.DOTALL | re.IGNORECASE)
_TARGET_LANGUAGE = re.compile(r"<refset[^>]*\btrglang=\"(\w+)\"", re.IGNORECASE)
# IWSLT's training text: talks begin with lines of metadata; title and description are sentences
_METADATA = re.compile(r"\s*</?(url|talkid|keywords|speaker|reviewer|translator|doc)\b", re.IGNORECASE)
_SENTENCE_TAGS = re.compile(r"</?(title|description)>", re.IGNORECASE)


def sentences(path: Path, language: str) -> Iterator[str | None]:
    """Yield the sentences of a file: SGML or XML (.sgm, .sgml, .xml), IWSLT's train.tags, or one on each line.

    Lines of metadata yield None, so that files stay parallel.

    Args:
        path: the file, UTF-8.
        language: of the file, checked where the file says it.

    Raises:
        ValueError: a file without segments, not UTF-8, or a reference in another language.
    """
    if path.suffix in (".sgm", ".sgml", ".xml"):
        yield from _segments(path, language)
    elif "train.tags." in path.name:
        for line in raw_lines(path):
            yield None if _METADATA.match(line) else _SENTENCE_TAGS.sub("", line)
    else:
        yield from raw_lines(path)


def _segments(path: Path, language: str) -> Iterator[str]:
    text = "\n".join(raw_lines(path))
    # some sets spell the language out (german), which tells no code
    if (said := _TARGET_LANGUAGE.search(text)) and len(said[1]) == 2 and said[1].lower() != language[:2]:
        raise ValueError(f"{path} is a reference in {said[1]}, but is taken for {language}; exchange the two")
    found = _SEGMENT.findall(text)
    if not found:
        raise ValueError(f"{path} has no <seg>; is it the right file?")
    yield from map(html.unescape, found)
