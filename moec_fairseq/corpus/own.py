"""Take the user's own text: check it, normalise its white space, and hold out what the user did not."""

import sys
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from moec_fairseq.corpus.cleaning import Pair
from moec_fairseq.corpus.compressed import found_as
from moec_fairseq.corpus.languages import check_languages
from moec_fairseq.corpus.output import complete_files, parallel_paths
from moec_fairseq.corpus.splits import Splitter, fingerprint, share_for, write_corpus
from moec_fairseq.corpus.text import check_file, parallel_lines


def own(
    train_prefix: str, valid_prefix: str | None, test_prefix: str | None, source: str, target: str, out: Path
) -> None:
    """Write {train,valid,test}.{source,target} and report.json into `out` from files PREFIX.{source,target}.

    Files may be compressed by gzip, bzip2 or xz, under these names or with .gz, .bz2 or .xz after them.
    Valid and test are used as they are when given, and split off train otherwise. Text is streamed: memory holds the
    fingerprints of held-out sentences only.
    """
    check_languages(source, target)
    given = {split: prefix for split, prefix in (("valid", valid_prefix), ("test", test_prefix)) if prefix}
    train = _sides(train_prefix, source, target)
    held_out = {split: _sides(prefix, source, target) for split, prefix in given.items()}
    for path in (path for pair in (train, *held_out.values()) for path in pair):
        check_file(path)
        if path.resolve().parent == out.resolve():
            raise ValueError(f"{path} lies in the folder for the results; give --out another folder")

    sources: dict[str, list[int]] = {}
    for split, sides in held_out.items():
        sources[split] = _copy(split, sides, parallel_paths(out, split, source, target))
    total = _count_and_compare(train, sources)
    splitter = Splitter(share_for(total), [split for split in ("valid", "test") if split not in given])
    splitter.sizes.update({split: len(fingerprints) for split, fingerprints in sources.items()})
    about = {"train": train_prefix, **given, "pairs": total}
    write_corpus(lambda: _pairs(train, "split train"), splitter, source, target, out, about)


def _sides(prefix: str, source: str, target: str) -> tuple[Path, Path]:
    return found_as(Path(f"{prefix}.{source}")), found_as(Path(f"{prefix}.{target}"))


def _pairs(sides: tuple[Path, Path], what: str) -> Iterator[Pair]:
    """Yield the pairs of two files that have text on both sides."""
    for source, target in tqdm(parallel_lines(*sides), desc=what, unit=" lines", unit_scale=True):
        if source and target:
            yield Pair(source, target)


def _copy(split: str, sides: tuple[Path, Path], copies: tuple[Path, Path]) -> list[int]:
    """Copy a held-out split that the user gave; return the fingerprints of its sources."""
    sources = []
    with complete_files(list(copies)) as (source_file, target_file):
        for source, target in parallel_lines(*sides):
            source_file.write(source + "\n")
            target_file.write(target + "\n")
            sources.append(fingerprint(source))
    print(f"{split}: {sides[0]} and {sides[1]}, as they are")
    return sources


def _count_and_compare(train: tuple[Path, Path], held_out: dict[str, list[int]]) -> int:
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
