"""Reading text that others wrote: one line is one line for every tool, and bad bytes are found early."""

import codecs
import re
import shlex
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from moec_fairseq.data.formats.compressed import open_unpacked, unpacking_command
from moec_fairseq.data.scripts import is_right_to_left

Sentence = str | None  # None: not one of a pair

# Python's own white space misses some control characters, and sentencepiece writes a space as U+2581.
_SPACE = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u2581]+")
# They are invisible, and their presence makes equal sentences differ. Joiners (U+200C, U+200D) carry meaning, and stay.
_INVISIBLE = re.compile("[\u00ad\u200b\u2060\ufeff]")
_DIRECTION = re.compile("[\u200e\u200f]")  # which only matters beside what is written from right to left
# Most lines hold nothing of all this, and to see that takes less time than to replace every space by a space.
_IRREGULAR = re.compile("[^\\S ]|  |[\x00-\x1f\x7f-\x9f\u2581\u00ad\u200b\u200e\u200f\u2060\ufeff]")

# Byte order marks that are no part of UTF-8; one of UTF-32 begins with one of UTF-16.
_OTHER_MARKS = {
    "utf-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    "utf-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}
_HEAD = 4096  # bytes that show whether a file is text
LONGEST = 10_000_000  # bytes of a line, or characters of a sentence; the parser of XML has the same limit
_FROM_MAC = "tr '\\r' '\\n' <"
_BINARY = re.compile(rb"[\x00-\x08\x0e-\x19]")


def normalise_space(text: str) -> str:
    """Return `text` as one line: a run of white space (U+2028, form feed, ...) is one space, none outside."""
    if _IRREGULAR.search(text) is None:
        return text.strip(" ")
    return _SPACE.sub(" ", without_invisible(text)).strip(" ")


def on_one_line(text: str) -> str:
    """Return `text` with a space for each run of white space and none outside, and nothing else changed."""
    return " ".join(text.split())


def without_invisible(text: str) -> str:
    """Return `text` without characters that nobody sees, such as the soft hyphen."""
    text = _INVISIBLE.sub("", text)
    return text if is_right_to_left(text) else _DIRECTION.sub("", text)


def check_file(path: Path) -> None:
    """Raise ValueError unless `path` is a file that holds something."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; check the name")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty; it needs at least one line")


def raw_lines(path: Path) -> Iterator[str]:
    r"""Yield the lines of a UTF-8 file, with or without byte order mark; only \n and \r\n end a line.

    A file compressed by gzip, bzip2, xz or zstd is read as what it holds.

    Raises ValueError that names the line when a file is missing, empty or not UTF-8, or a line is endless.
    """
    check_file(path)
    with open_unpacked(path) as file:
        head = file.peek(_HEAD)[:_HEAD]
        _check_head(path, head)
        for number, line in enumerate(iter(partial(file.readline, LONGEST + 1), b""), start=1):
            if len(line) > LONGEST:
                raise too_long(path, f"line {number}")
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
                if b"\r" in line.rstrip(b"\r\n") and not file.peek(1):
                    raise ValueError(
                        f"{path}, line 1: all lines are one, because they end in \\r alone, as on old Macs; convert "
                        f"the file (for example: {_conversion(path, _FROM_MAC)})"
                    )
            try:
                yield line.decode("utf-8").removesuffix("\n").removesuffix("\r")
            except UnicodeDecodeError as error:
                if _BINARY.search(head + line):
                    raise _no_text(path) from None
                raise not_utf8(path, number, error.start + 1) from None


def too_long(path: Path, where: str) -> ValueError:
    """Return what to raise for text that cannot be a sentence."""
    return ValueError(f"{path}, {where}: longer than {LONGEST:,} bytes, which no sentence is; are line ends missing?")


def not_utf8(path: Path, line: int, byte: int) -> ValueError:
    """Return what to raise for a byte of a line that belongs to no character."""
    return ValueError(
        f"{path}, line {line}: byte {byte} is not valid UTF-8;"
        f" convert the file (for example: {_conversion(path, _to_utf8('latin1'))})"
    )


def _check_head(path: Path, head: bytes) -> None:
    """Raise ValueError for the beginning of what is not text, though it may well be valid UTF-8."""
    if not head:
        raise ValueError(f"{path}: the file is empty; it needs at least one line")
    for encoding, marks in _OTHER_MARKS.items():
        if head.startswith(marks):
            command = _conversion(path, _to_utf8(encoding))
            raise ValueError(f"{path} is in {encoding.upper()}; convert it to UTF-8: {command}")
    if head[257:262] == b"ustar":
        raise ValueError(f"{path} is a tar archive, not text; unpack it: tar -xf {shlex.quote(path.name)}")
    if head.count(0) > len(head) / 10:
        raise _no_text(path)


def _no_text(path: Path) -> ValueError:
    return ValueError(f"{path} is not text but a binary file; check the name")


def _to_utf8(encoding: str) -> str:
    return f"iconv -f {encoding} -t utf-8"


def _conversion(path: Path, command: str) -> str:
    """Return a command that converts what a file holds."""
    unpack = unpacking_command(path)
    return f"{unpack} | {command.removesuffix(' <')}" if unpack else f"{command} {shlex.quote(path.name)}"


def lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file with normalised white space; errors as in `raw_lines`."""
    return map(normalise_space, raw_lines(path))
