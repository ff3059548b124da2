"""Reading text that others wrote: one line is one line for every tool, and bad bytes are found early."""

import codecs
import re
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

# Python's own white space misses some control characters, and sentencepiece writes a space as U+2581.
_SPACE = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u2581]+")
# They are invisible, and their presence makes equal sentences differ. Joiners (U+200C, U+200D) carry meaning, and stay.
_INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u2060\ufeff]")
# Most lines hold nothing of all this, and to see that takes less time than to replace every space by a space.
_IRREGULAR = re.compile("[^\\S ]|  |[\x00-\x1f\x7f-\x9f\u2581\u00ad\u200b\u200e\u200f\u2060\ufeff]")


def normalise_space(text: str) -> str:
    """Return `text` as one line: a run of white space (U+2028, form feed, ...) is one space, none outside."""
    if _IRREGULAR.search(text) is None:
        return text.strip(" ")
    return _SPACE.sub(" ", without_invisible(text)).strip(" ")


def without_invisible(text: str) -> str:
    """Return `text` without characters that nobody sees, such as the soft hyphen."""
    return _INVISIBLE.sub("", text)


def check_file(path: Path) -> None:
    """Raise ValueError unless `path` is a file that holds something."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; check the name")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty; it needs at least one line")


def raw_lines(path: Path) -> Iterator[str]:
    r"""Yield the lines of a UTF-8 file, with or without byte order mark; only \n and \r\n end a line.

    Raises ValueError that names the line when a file is missing, empty or not UTF-8.
    """
    check_file(path)
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            try:
                yield line.decode("utf-8").removesuffix("\n").removesuffix("\r")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}, line {number}: byte {error.start + 1} is not valid UTF-8;"
                    f" convert the file (for example: iconv -f latin1 -t utf-8 {path.name})"
                ) from None


def lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file with normalised white space; errors as in `raw_lines`."""
    return map(normalise_space, raw_lines(path))


def parallel_lines(source: Path, target: Path) -> Iterator[tuple[str, str]]:
    """Yield pairs of lines; raises ValueError, with both counts, where one file ends before the other."""
    check_file(source)
    check_file(target)
    for source_line, target_line in zip_longest(lines(source), lines(target)):
        if source_line is None or target_line is None:
            counts = [sum(1 for _ in raw_lines(path)) for path in (source, target)]
            raise ValueError(
                f"{source} has {counts[0]} lines, but {target} has {counts[1]};"
                " line N of one must be the translation of line N of the other"
            )
        yield source_line, target_line
