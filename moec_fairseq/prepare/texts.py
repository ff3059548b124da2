"""Published files to normalised plain text: {train,valid,test}.{source,target}."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor
from itertools import zip_longest
from pathlib import Path

from tqdm import tqdm

from moec_fairseq.corpus.output import complete_files, parallel_paths
from moec_fairseq.prepare.cleaning import normalise
from moec_fairseq.prepare.markup import sentences
from moec_fairseq.prepare.parallel import chunks, in_order
from moec_fairseq.prepare.recipe import USES, Recipe

CHUNK = 5_000  # pairs

Raw = tuple[str | None, str | None]
Pairs = list[tuple[str, str]]


def write_texts(
    recipe: Recipe, places: list[dict[str, Path]], out: Path, pool: Executor, ahead: int, distinct: bool = False
) -> Counter[str]:
    """Write the text of each use, line N of one side the translation of line N of the other.

    Args:
        recipe: says which parts are for what.
        places: the file of each language, for each part of the recipe.
        out: folder.
        pool: processes that normalise.
        ahead: chunks under way.
        distinct: drop training pairs that have been there before; keeps 8 bytes of each in memory.

    Returns:
        pairs by what became of them: ``USE: read``, ``USE: kept``, and why the others were dropped.

    Raises:
        ValueError: two sides have different numbers of lines, or a file cannot be read.
    """
    counts: Counter[str] = Counter()
    seen: set[int] = set()
    paths = [path for use in USES for path in parallel_paths(out, use, recipe.source, recipe.target)]
    with complete_files(paths) as files:
        sides = {use: files[2 * number : 2 * number + 2] for number, use in enumerate(USES)}
        for part, place in zip(recipe.parts, places, strict=True):
            source, target = place[recipe.source], place[recipe.target]
            raw = _parallel(source, recipe.source, target, recipe.target)
            bar = tqdm(desc=f"read {source.name}", unit=" pairs", unit_scale=True)
            for pairs, read in in_order(pool, _normalised, chunks(raw, CHUNK), ahead):
                bar.update(read)
                counts[f"{part.use}: read"] += read
                counts[f"{part.use}: metadata"] += read - len(pairs)
                for pair in pairs:
                    use = part.use
                    if use != "test" and not all(pair):
                        counts[f"{use}: a side is empty"] += 1
                        continue
                    if distinct and use == "train":
                        if hash(pair) in seen:
                            counts["train: duplicate"] += 1
                            continue
                        seen.add(hash(pair))
                    counts["pairs"] += use == "train"
                    if recipe.valid_every and use == "train" and counts["pairs"] % recipe.valid_every == 0:
                        use = "valid"
                    counts[f"{use}: kept"] += 1
                    for file, side in zip(sides[use], pair, strict=True):
                        file.write(side + "\n")
            bar.close()
    del counts["pairs"]
    return +counts


def _parallel(source: Path, source_language: str, target: Path, target_language: str) -> Iterator[Raw]:
    end = object()
    pairs = zip_longest(sentences(source, source_language), sentences(target, target_language), fillvalue=end)
    for number, (one, other) in enumerate(pairs):
        if one is end or other is end:
            shorter, longer = (source, target) if one is end else (target, source)
            raise ValueError(
                f"{shorter} has {number} sentences, but {longer} has more; line N of one must be the translation of "
                "line N of the other"
            )
        yield one, other  # type: ignore[misc]


def _normalised(raw: list[Raw]) -> tuple[Pairs, int]:
    """Return the pairs of a chunk but those of metadata, and how many pairs it had."""
    pairs = [(normalise(one), normalise(other)) for one, other in raw if one is not None and other is not None]
    return pairs, len(raw)
