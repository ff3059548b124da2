"""Compressed files, read as what they hold: recognised by their first bytes, and never more of it than fits."""

import bz2
import gzip
import io
import lzma
import re
import shlex
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from backports import zstd

# The names are those of the commands, too.
_KINDS: dict[str, tuple[bytes, Callable[[IO[bytes]], Any]]] = {
    "gzip": (rb"\x1f\x8b\x08", gzip.open),
    "bzip2": (rb"BZh[1-9](1AY&SY|\x17\x72\x45\x38\x50\x90)", bz2.open),
    "xz": (rb"\xfd7zXZ\x00", lzma.open),
    "zstd": (rb"\x28\xb5\x2f\xfd", zstd.open),
}
_UNREADABLE = {
    "a file compressed by compress": (rb"\x1f\x9d", "uncompress"),
    "a file compressed by lz4": (rb"\x04\x22\x4d\x18", "lz4 -d"),
    "a zip archive": (rb"PK(\x03\x04|\x05\x06)", "unzip"),
    "a 7z archive": (rb"7z\xbc\xaf\x27\x1c", "7z x"),
}
ENDINGS = ("gz", "bz2", "xz", "zst")  # of names
_ENDING = re.compile(rf"\.({'|'.join(ENDINGS)})$", re.IGNORECASE)
_BROKEN = (EOFError, zlib.error, lzma.LZMAError, zstd.ZstdError, OSError)
_HEAD = 16  # bytes that tell what a file is
_ROOM = 1 << 28  # bytes that anything may unpack to
_RATIO = 100  # above that: times its own size; text shrinks to a fifth, and seldom to a fiftieth


def without_ending(name: str) -> str:
    """Return the name that a file has once it is unpacked."""
    return _ENDING.sub("", name)


def found_as(path: Path) -> Path:
    """Return the file of this name, or where there is none but a compressed one, NAME.gz or the like, that one."""
    others = (path.with_name(f"{path.name}.{ending}") for ending in ENDINGS)
    return path if path.exists() else next(filter(Path.exists, others), path)


def most_bytes(size: int) -> int:
    """Return to how many bytes a file of ``size`` bytes may unpack; decompression bombs come to 1 000 times as many."""
    return max(_ROOM, _RATIO * size)


def broken(path: Path, error: object) -> ValueError:
    """Return what to raise for a file that cannot be unpacked."""
    return ValueError(
        f"{path} is broken ({error}); remove it and start again with a whole copy (a recipe downloads it)"
    )


def open_unpacked(path: Path) -> io.BufferedReader:
    """Open a file for reading; what gzip, bzip2, xz or zstd have compressed is unpacked on the way.

    Raises:
        ValueError: it is compressed or archived in a way that is not read; says what to do. Reading raises it, too,
            where the file is broken or unpacks to more than ``most_bytes``.
    """
    file = path.open("rb")
    try:
        return unpacked(file, path)
    except BaseException:
        file.close()
        raise


def unpacking_command(path: Path) -> str | None:
    """Return the command that shows what a compressed file holds; None for a file that is none."""
    with path.open("rb") as file:
        kind = _kind(file.read(_HEAD))
    return f"{kind} -dc {shlex.quote(path.name)}" if kind else None


def unpacked(file: io.BufferedReader, path: Path) -> io.BufferedReader:
    """Do the same for a file that is open, which is closed with what is returned."""
    head = file.read(_HEAD)
    file.seek(0)
    kind = _kind(head)
    if kind is None:
        for what, (magic, command) in _UNREADABLE.items():
            if re.match(magic, head):
                way_out = f"{command} {shlex.quote(path.name)}"
                raise ValueError(f"{path} is {what}, which cannot be read here; unpack it first: {way_out}")
        return file
    content: io.BufferedReader = io.BufferedReader(_Unpacked(path, _KINDS[kind][1](file), file))
    inside = content.peek(_HEAD)
    if _kind(inside) or any(re.match(magic, inside) for magic, _ in _UNREADABLE.values()):
        way_out = f"{kind} -d {shlex.quote(path.name)}"
        raise ValueError(f"{path} holds a file that is compressed again; unpack it first: {way_out}")
    return content


def _kind(head: bytes) -> str | None:
    """Return what has compressed a file, by its first bytes."""
    return next((kind for kind, (magic, _) in _KINDS.items() if re.match(magic, head)), None)


class _Unpacked(io.RawIOBase):
    """What a compressed file holds."""

    def __init__(self, path: Path, content: IO[bytes], file: IO[bytes]) -> None:
        self._path, self._content, self._file = path, content, file
        self._left = most_bytes(path.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._content.read(len(buffer))
        except _BROKEN as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of the system
            raise broken(self._path, error) from error
        self._left -= len(data)
        if self._left < 0:
            raise ValueError(
                f"{self._path} unpacks to more than {most_bytes(self._path.stat().st_size):,} bytes, and no text "
                f"shrinks to less than 1/{_RATIO}; if it is what you want, unpack it yourself"
            )
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._content.close()
        self._file.close()
        super().close()
