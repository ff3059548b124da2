"""Which pairs are for training, validation and test: decided by a hash of the source, never by chance or place.

Messages are full of copies that differ in case, digits, punctuation or placeholders; a random split would put such
copies on both sides and measure memory. A pair's side depends on the letters of its source only, so copies stay
together, in every run, in every corpus and for every target language.
"""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from moec_fairseq.corpus.cleaning import Pair
from moec_fairseq.corpus.output import complete_files, parallel_paths, write_json
from moec_fairseq.corpus.placeholders import without_placeholders

SPLITS = ("train", "valid", "test")
HELD_OUT = ("valid", "test")
HELD_OUT_SIZE = 1000
MAX_SHARE = 0.05


def normalised(text: str) -> str:
    """Return the letters of `text` in lower case, without accents or placeholders; a text without letters stays."""
    decomposed = unicodedata.normalize("NFKD", without_placeholders(text).casefold())
    return "".join(filter(str.isalpha, decomposed)) or text


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
) -> None:
    """Write `pairs` (asked for twice) to train and the held-out splits in `out`, with report.json: `about`, sizes."""
    splitter.note(pairs())
    splits = ("train", *splitter.held_out)
    paths = [path for split in splits for path in parallel_paths(out, split, source, target)]
    with complete_files(paths) as files:
        splitter.write(pairs(), dict(zip(splits, zip(files[::2], files[1::2], strict=True), strict=True)))
        if empty := [split for split in splits if not splitter.sizes[split]]:
            raise ValueError(f"too little text: no sentence falls to {' and '.join(empty)}; give more text")
    for split in splits:
        print(f"{split}: {splitter.sizes[split]} pairs")
    for reason, count in sorted(splitter.drops.items()):
        print(f"  {count} pairs left out of {reason}")
    report = {**about, "splits": splitter.sizes, "left out of splits": dict(sorted(splitter.drops.items()))}
    write_json(out / "report.json", report)
