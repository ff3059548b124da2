"""The quickstart corpus: messages and their translations, out of the wheels of published packages."""

import hashlib
import json
import lzma
import re
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import polib
from tqdm import tqdm

from moec_fairseq.data.cleaning import RULES, Pair, first_broken_rule, tidy
from moec_fairseq.data.formats.compressed import most_bytes
from moec_fairseq.data.formats.text import lines
from moec_fairseq.data.splits import Splitter, fingerprint, share_for, write_corpus

REPEATED = "repeated source"
_FULL_ONLY = "; full tier only"
_PIN = re.compile(
    r"(?P<name>[\w.-]+)==(?P<version>[\w.!+]+) --hash=sha256:(?P<sha256>[0-9a-f]{64})"
    rf" # (?P<licence>[^;]+?)(?P<full_only>{_FULL_ONLY})?"
)


@dataclass(frozen=True)
class Pin:
    """One wheel, named by its hash; `full_only` ones are left out of the small tier."""

    name: str
    version: str
    sha256: str
    licence: str
    full_only: bool

    @property
    def requirement(self) -> str:
        """The line that makes pip accept this wheel and no other."""
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}"


def read_pins(path: Path, tier: str) -> list[Pin]:
    """Return the pins of `tier` in the order of the file, which pip can read as requirements, too."""
    pins = []
    for number, line in enumerate(lines(path), start=1):
        if not line or line.startswith("#"):
            continue
        match = _PIN.fullmatch(line)
        if match is None:
            raise ValueError(
                f"{path}, line {number}: expected 'NAME==VERSION --hash=sha256:HASH  # LICENCE[{_FULL_ONLY}]',"
                f" got {line!r}"
            )
        full_only = match["full_only"] is not None
        pins.append(Pin(match["name"], match["version"], match["sha256"], match["licence"], full_only))
    return [pin for pin in pins if tier == "full" or not pin.full_only]


def find_wheels(folder: Path, pins: Iterable[Pin]) -> dict[Pin, Path]:
    """Return those of `pins` that lie in `folder`, found by hash: a damaged wheel is not found."""
    by_hash = {_sha256(path): path for path in sorted(folder.glob("*.whl"))}
    return {pin: by_hash[pin.sha256] for pin in pins if pin.sha256 in by_hash}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


_NO_NETWORK = re.compile(r"connection|name resolution|timed out|proxy", re.IGNORECASE)


def fetch(pins: Sequence[Pin], out: Path) -> dict[Pin, Path]:
    """Return the wheels in ``out``, where pip downloads those that are not there with the right hash.

    Nothing is installed, and no code in them is run.
    """
    out.mkdir(parents=True, exist_ok=True)
    present = find_wheels(out, pins)
    missing = [pin for pin in pins if pin not in present]
    with tqdm(missing, desc="download", unit="wheel", disable=not missing) as bar:
        for pin in bar:
            bar.set_postfix_str(pin.name)
            _download(pin, out)
    print(f"{len(pins)} wheels in {out}, {len(missing)} of them downloaded now")
    return find_wheels(out, pins)


def _download(pin: Pin, out: Path) -> None:
    with tempfile.TemporaryDirectory(dir=out, prefix=".fetch-") as folder:
        requirements = Path(folder, "requirements.txt")
        requirements.write_text(pin.requirement + "\n", encoding="utf-8")
        # The wheels are only read: which Python they are for does not matter.
        options = "--no-deps --only-binary=:all: --ignore-requires-python --require-hashes --retries 2 --no-input"
        command = [sys.executable, "-m", "pip", "download", *options.split(), "-r", str(requirements), "-d", folder]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise ValueError(_explain(pin, done.stdout + done.stderr))
        for wheel in Path(folder).glob("*.whl"):
            wheel.replace(out / wheel.name)


def _explain(pin: Pin, log: str) -> str:
    """Return one sentence on why pip failed."""
    what = f"cannot fetch {pin.name} {pin.version}"
    if "DO NOT MATCH THE HASHES" in log:
        return f"{what}: the registry's file has another hash than the pinned one; check the index that pip uses"
    if "No module named pip" in log:
        return f"{what}: {sys.executable} has no pip; install it with: {sys.executable} -m ensurepip"
    if _NO_NETWORK.search(log):
        return (
            f"{what}: the package registry does not answer; check the network (or PIP_INDEX_URL) and start again:"
            " what is already fetched is kept"
        )
    errors = [line for line in log.splitlines() if line.startswith("ERROR")] or log.splitlines() or ["no output"]
    return f"{what}: pip says {errors[-1]!r}"


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


def write_messages(wheels: Mapping[Pin, Path], source: str, places: Mapping[str, Path]) -> dict[str, Counter[str]]:
    """Write {train,valid,test}.{source,target} and report.json; the same wheels give the same bytes.

    A source that is held out in one language is held out in all.

    Args:
        wheels: that hold the messages.
        source: their language.
        places: folder for each target language.

    Returns:
        pairs by what became of them, for each language.
    """
    found: dict[str, tuple[list[Pair], dict[str, Counter[str]]]] = {}
    for target in places:
        pairs, counts = found[target] = _collect(wheels, target)
        if not pairs:
            raise ValueError(f"the wheels hold no translations into {target!r}; well covered are de, es, fr and nl")
        _print_counts(counts)
    distinct = sum(len({fingerprint(pair.source) for pair in pairs}) for pairs, _ in found.values())
    share = share_for(distinct // len(places))
    written = {}
    for target, (pairs, counts) in found.items():
        about = {"distinct pairs": len(pairs), "packages": counts}
        written[target] = write_corpus(partial(iter, pairs), Splitter(share), source, target, places[target], about)
    return written


def _collect(wheels: Mapping[Pin, Path], target: str) -> tuple[list[Pair], dict[str, Counter[str]]]:
    """Return the good pairs, distinct by lower-cased source, and for each package what became of its messages."""
    pairs: dict[str, Pair] = {}
    counts: dict[str, Counter[str]] = {}
    with tqdm(wheels.items(), desc="clean", unit="wheel") as bar:
        for pin, wheel in bar:
            bar.set_postfix_str(pin.name)
            count = counts.setdefault(pin.name, Counter())
            for raw in read_wheel(wheel, target):
                pair = Pair(tidy(raw.source), tidy(raw.target))
                rule = first_broken_rule(pair)
                key = pair.source.lower()
                fate = rule.name if rule else REPEATED if key in pairs else "kept"
                count[fate] += 1
                if fate == "kept":
                    pairs[key] = pair
    return list(pairs.values()), counts


def _print_counts(counts: Mapping[str, Counter[str]]) -> None:
    print(f"\n{'package':24}{'messages':>10}{'kept':>10}")
    for name, count in counts.items():
        print(f"{name:24}{count.total():10}{count['kept']:10}")
    total = sum(counts.values(), Counter[str]())
    print(f"{'all':24}{total.total():10}{total['kept']:10}\n\n{'dropped because':24}{'messages':>10}")
    for reason in (*(rule.name for rule in RULES), REPEATED):
        print(f"{reason:24}{total[reason]:10}")
    print()
