"""Messages and their translations as published wheels hold them: gettext catalogs and Home Assistant's JSON files."""

import json
import lzma
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Container, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import polib

from moec_fairseq.corpus.cleaning import Pair
from moec_fairseq.corpus.compressed import most_bytes

# What zipfile, polib and json raise; RuntimeError for what is encrypted, or nested without end.
_BROKEN = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error,
    EOFError, OSError, RuntimeError, LookupError, ValueError,
)  # fmt: skip


def read_wheel(wheel: Path, target: str) -> Iterator[Pair]:
    """Yield the pairs (English message, its translation into the language `target`) of a wheel, as they are written.

    Raises ValueError where the wheel or a catalog in it is broken, or holds more than it can.
    """
    name = ""
    try:
        with zipfile.ZipFile(wheel) as archive:
            files = {PurePosixPath(info.filename): info for info in archive.infolist()}
            # no more of a file is read than it says here
            if sum(info.file_size for info in archive.infolist()) > (most := most_bytes(wheel.stat().st_size)):
                raise ValueError(f"it unpacks to more than {most:,} bytes, which no wheel of messages does")
            for path in sorted(files, key=str):
                name = f", {path}"
                if _is_catalog(path, target) and not _is_compiled_elsewhere(path, files):
                    yield from _read_catalog(archive.read(files[path]), path.suffix)
                elif _is_json(path, target) and path.with_name("en.json") in files:
                    yield from _read_json(*(archive.read(files[side]) for side in (path.with_name("en.json"), path)))
    except _BROKEN as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the system
        raise ValueError(f"{wheel}{name} cannot be read ({error}); remove the wheel, and fetch it again") from error


def _spellings(target: str) -> set[str]:
    """Return how catalogs call a language as such: gettext's have pt_BR, Home Assistant's pt-BR."""
    return {target.replace("-", "_"), target.replace("_", "-"), f"{target}_{target.upper()}"}


def _is_catalog(name: PurePosixPath, target: str) -> bool:
    """Tell whether `name` is a catalog of the language as such (de, de_DE), not of a variety (de_AT, de_Informal)."""
    return name.suffix in {".mo", ".po"} and not _spellings(target).isdisjoint({*name.parent.parts, name.stem})


def _is_json(name: PurePosixPath, target: str) -> bool:
    return name.suffix == ".json" and name.parent.name == "translations" and name.stem in _spellings(target)


def _is_compiled_elsewhere(name: PurePosixPath, names: Container[PurePosixPath]) -> bool:
    return name.suffix == ".po" and name.with_suffix(".mo") in names


def _read_catalog(content: bytes, suffix: str) -> Iterator[Pair]:
    with tempfile.TemporaryDirectory() as folder:  # given content, polib looks first whether a file has this name
        path = Path(folder, f"catalog{suffix}")
        path.write_bytes(content)
        entries = polib.mofile(str(path)) if suffix == ".mo" else polib.pofile(str(path), encoding="utf-8")
    for entry in entries:
        if entry.obsolete or "fuzzy" in entry.flags:
            continue
        if entry.msgid_plural:
            forms = [form for _, form in sorted(entry.msgstr_plural.items())]
            # The first form is the singular, the last one the general plural ("many", if any, lies between them).
            yield Pair(entry.msgid, forms[0])
            yield Pair(entry.msgid_plural, forms[-1])
        else:
            yield Pair(entry.msgid, entry.msgstr)


def _read_json(source: bytes, target: bytes) -> Iterator[Pair]:
    translations = dict(_leaves(json.loads(target)))
    for key, text in _leaves(json.loads(source)):
        if key in translations:
            yield Pair(text, translations[key])


def _leaves(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield each text of nested dictionaries with the keys that lead to it."""
    if isinstance(node, str):
        yield path, node
    elif isinstance(node, dict):
        for key, child in node.items():
            yield from _leaves(child, (*path, key))
