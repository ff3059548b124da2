"""Which pairs are for training, validation and test: decided by a hash of the source, never by chance or place.

Messages are full of copies that differ in case, digits, punctuation or placeholders; a random split would put such
copies on both sides and measure memory. A pair's side depends on the letters of its source only, so copies stay
together, in every run, in every corpus and for every target language.
"""

import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from moec_fairseq.data.cleaning import Pair, without_placeholders
from moec_fairseq.data.formats.compressed import found_as
from moec_fairseq.data.formats.places import Part, Place, check_sides, own_place
from moec_fairseq.data.formats.sentences import Side, parallel_sentences
from moec_fairseq.data.formats.text import check_file, normalise_space
from moec_fairseq.data.languages import SPLITS, parallel_paths
from moec_fairseq.data.scripts import letters
from moec_fairseq.util.files import whole_texts, write_json

Sides = tuple[Side, Side]  # source and target of a text

HELD_OUT = ("valid", "test")
HELD_OUT_SIZE = 1000
MAX_SHARE = 0.05


def normalised(text: str) -> str:
    """Return the letters of `text` in lower case, without accents or placeholders; a text without letters stays."""
    return letters(without_placeholders(text).casefold()) or text


def fingerprint(text: str) -> int:
    """Return 64 bits that are equal for texts that are equal once normalised."""
    return int.from_bytes(hashlib.sha256(normalised(text).encode()).digest()[:8], "big")


def split_of(source: int, share: float, held_out: tuple[str, ...] = HELD_OUT) -> str:
    """Return the split of a source's fingerprint when each of `held_out` gets `share` of all texts."""
    step = int(share * 2**64)
    place = source // step if step else len(held_out)
    return held_out[place] if place < len(held_out) else "train"


def share_for(pairs: int) -> float:
    """Return the share of `pairs` that gives HELD_OUT_SIZE pairs, but at most MAX_SHARE."""
    return min(MAX_SHARE, HELD_OUT_SIZE / max(pairs, 1))


class Splitter:
    """Sends pairs to their splits, so that no sentence and no translation of a held-out pair is on another side.

    It sees all pairs twice: `note` learns the translations of the held-out pairs, `write` then sorts the pairs. Of
    sources that are equal once normalised, valid and test take one: they are small, and each sentence should count
    once. What it keeps in memory are the fingerprints of the held-out pairs.
    """

    def __init__(self, share: float, held_out: Sequence[str] = HELD_OUT) -> None:
        self.share = share
        self.held_out = tuple(held_out)
        self.sizes: Counter[str] = Counter()
        self.drops: Counter[str] = Counter()
        self._targets: dict[str, set[int]] = {split: set() for split in held_out}
        self._sources: set[int] = set()

    def note(self, pairs: Iterable[Pair]) -> None:
        """Learn which translations belong to the held-out pairs."""
        for pair in pairs:
            split = split_of(fingerprint(pair.source), self.share, self.held_out)
            if split in self._targets:
                self._targets[split].add(fingerprint(pair.target))

    def write(self, pairs: Iterable[Pair], files: Mapping[str, tuple[TextIO, TextIO]]) -> None:
        """Write each pair to the two files of its split, or count why it is on no side."""
        for pair in pairs:
            source = fingerprint(pair.source)
            split = split_of(source, self.share, self.held_out)
            if reason := self._reason_to_drop(pair, source, split):
                self.drops[f"{split}: {reason}"] += 1
                continue
            for file, text in zip(files[split], (pair.source, pair.target), strict=True):
                file.write(text + "\n")
            self.sizes[split] += 1

    def _reason_to_drop(self, pair: Pair, source: int, split: str) -> str | None:
        if split != "train":
            if source in self._sources:
                return "a copy of another source there"
            self._sources.add(source)
        # A translation that two splits claim stays in the last of them: test, then valid, then train.
        stronger = [other for other in self.held_out if SPLITS.index(other) > SPLITS.index(split)]
        if any(fingerprint(pair.target) in self._targets[other] for other in stronger):
            return f"the translation is in {' or '.join(stronger)}"
        return None


def write_corpus(
    pairs: Callable[[], Iterable[Pair]],
    splitter: Splitter,
    source: str,
    target: str,
    out: Path,
    about: Mapping[str, Any],
) -> Counter[str]:
    """Write `pairs` (asked for twice) to train and the held-out splits in `out`, with report.json: `about`, sizes.

    Returns:
        pairs by what became of them, ``SPLIT: kept`` or ``SPLIT: why not``.
    """
    splitter.note(pairs())
    splits = ("train", *splitter.held_out)
    paths = [path for split in splits for path in parallel_paths(out, split, source, target)]
    with whole_texts(paths) as files:
        splitter.write(pairs(), dict(zip(splits, zip(files[::2], files[1::2], strict=True), strict=True)))
        if empty := [split for split in splits if not splitter.sizes[split]]:
            raise ValueError(f"too little text: no sentence falls to {' and '.join(empty)}; give more text")
    write_json(out / "report.json", {**about, "splits": splitter.sizes, "left out of splits": splitter.drops})
    return Counter({f"{split}: kept": splitter.sizes[split] for split in splits}) + splitter.drops


def own_parts(
    prefixes: Mapping[str, str | None], files: Mapping[str, Sequence[str] | None], source: str, target: str
) -> list[Part]:
    """Return where the user's own text of each split is.

    Args:
        prefixes: PREFIX of PREFIX.SOURCE and PREFIX.TARGET by split; these files may be compressed, under these names
            or with .gz, .bz2, .xz or .zst after them.
        files: one or two places by split, as ``own_place`` reads them: source and target, or both in one.
        source: language.
        target: language.

    Raises:
        ValueError: a file is missing or empty, or the sides of a text are not clear.
    """
    parts = []
    for split in SPLITS:
        prefix, given = prefixes.get(split), files.get(split)
        if prefix and given:
            raise ValueError(f"--{split} and --{split}-prefix were both given; give one of them")
        if prefix:
            places = [Place(str(found_as(Path(f"{prefix}.{language}")))) for language in (source, target)]
        elif given:
            if len(given) > 2:
                raise ValueError(f"--{split} names {len(given)} files, but a text is one file, or source and target")
            places = [own_place(text) for text in (given[0], given[-1])]
        else:
            continue
        for place in places:
            check_file(Path(place.file))
        texts = dict(zip((source, target), places, strict=True))
        check_sides(texts, {language: place.member or place.file for language, place in texts.items()}, f"--{split}")
        parts.append(Part(split, texts))
    return parts


def own_files(parts: Iterable[Part]) -> dict[str, Path]:
    """Return the files, and archives, in which the user's own text is, by what their places call them."""
    return {place.file: Path(place.file) for part in parts for place in part.texts.values()}


def check_apart(files: Iterable[Path], out: Path) -> None:
    """Raise ValueError if a file is where results are to be written."""
    for path in files:
        if path.resolve().parent == out.resolve():
            raise ValueError(f"{path} is in the folder for the results; give --out another folder")


def common_share(texts: Sequence[Sides]) -> float:
    """Return one share for the texts of several languages, so that a held-out source is held out of all of them."""
    return share_for(sum(1 for sides in texts for _ in _pairs(sides, "count train")) // len(texts))


def write_own(
    texts: Mapping[str, Sides], source: str, target: str, out: Path, share: float | None = None
) -> Counter[str]:
    """Write {train,valid,test}.{source,target} and report.json into `out`; return pairs by what became of them.

    Valid and test are used as they are when given, and split off train otherwise. Text is streamed: memory holds the
    fingerprints of held-out sentences only.

    Args:
        texts: both sides by split.
        source: language.
        target: language.
        out: folder.
        share: of the text that goes to each split that is not given; None: as ``share_for`` says.

    Raises:
        ValueError: two sides have different numbers of sentences, a file cannot be read, or there is too little text.
    """
    check_apart((side.path for sides in texts.values() for side in sides), out)
    held_out = {split: sides for split, sides in texts.items() if split != "train"}
    sources = {
        split: _copy(split, sides, parallel_paths(out, split, source, target)) for split, sides in held_out.items()
    }
    total = _count_and_compare(texts["train"], sources)
    share = share_for(total) if share is None else share
    splitter = Splitter(share, [split for split in HELD_OUT if split not in held_out])
    splitter.sizes.update({split: len(fingerprints) for split, fingerprints in sources.items()})
    about = {**{split: str(sides[0]) for split, sides in texts.items()}, "pairs": total}
    counts = write_corpus(lambda: _pairs(texts["train"], "split train"), splitter, source, target, out, about)
    return counts + Counter({f"{split}: kept": len(fingerprints) for split, fingerprints in sources.items()})


def _pairs(sides: Sides, what: str) -> Iterator[Pair]:
    """Yield the pairs that have text on both sides."""
    for source, target in tqdm(_sentences(sides), desc=what, unit=" lines", unit_scale=True):
        if source and target:
            yield Pair(source, target)


def _sentences(sides: Sides) -> Iterator[tuple[str, str]]:
    """Yield pairs of sentences with normalised white space."""
    for source, target in parallel_sentences(*sides):
        if source is not None and target is not None:
            yield normalise_space(source), normalise_space(target)


def _copy(split: str, sides: Sides, copies: tuple[Path, Path]) -> list[int]:
    """Copy a held-out split that the user gave; return the fingerprints of its sources."""
    sources, left_out = [], 0
    names = " and ".join(dict.fromkeys(map(str, sides)))
    with whole_texts(list(copies)) as (source_file, target_file):
        for source, target in _sentences(sides):
            if not (source and target):  # which would be scored as a wrong translation
                left_out += 1
                continue
            source_file.write(source + "\n")
            target_file.write(target + "\n")
            sources.append(fingerprint(source))
        if not sources:
            raise ValueError(f"{split}: {names} have no pair with text on both sides; give others")
    print(f"{split}: {names}, as they are{f', but for {left_out} pairs without one side' if left_out else ''}")
    return sources


def _count_and_compare(train: Sides, held_out: dict[str, list[int]]) -> int:
    """Return the number of training pairs; warn of those whose source, up to case and punctuation, is also held out."""
    total = 0
    known = {split: set(sources) for split, sources in held_out.items()}
    shared = dict.fromkeys(held_out, 0)
    for pair in _pairs(train, "check train"):
        total += 1
        for split, sources in known.items():
            shared[split] += fingerprint(pair.source) in sources
    for split, count in shared.items():
        if count:
            print(
                f"warning: {count} of {total} training sentences are also in {split}"
                " (up to case, digits and punctuation): its score says little about new sentences",
                file=sys.stderr,
            )
    return total
