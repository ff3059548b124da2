"""Published corpora: the archives of a recipe to normalised plain text."""

from collections import Counter
from concurrent.futures import Executor
from functools import partial
from pathlib import Path

from tqdm import tqdm

from moec_fairseq.data.cleaning import normalise
from moec_fairseq.data.formats.archives import EXTRACTED, download_missing
from moec_fairseq.data.formats.places import located
from moec_fairseq.data.formats.sentences import Side, parallel_sentences
from moec_fairseq.data.formats.text import Sentence, on_one_line
from moec_fairseq.data.languages import SPLITS, parallel_paths
from moec_fairseq.data.recipes import Recipe
from moec_fairseq.data.subwords import CHUNK
from moec_fairseq.util.files import whole_texts
from moec_fairseq.util.processes import chunks, in_order

PUBLISHED_TEST = "test-as-published"  # the test text without normalisation, which scores are computed from
TEXTS = (*SPLITS, PUBLISHED_TEST)  # what is written, for each language

Pairs = list[tuple[str, str]]


def write_texts(
    recipe: Recipe, texts: list[dict[str, Side]], out: Path, pool: Executor, ahead: int, distinct: bool = False
) -> Counter[str]:
    """Write the text of each use, line N of one side the translation of line N of the other.

    The test text is also written as it was published (but for white space), because scores are only comparable if
    nobody changes the references.

    Args:
        recipe: says which parts are for what.
        texts: the side of each language, for each part of the recipe.
        out: folder.
        pool: processes that normalise.
        ahead: chunks in progress.
        distinct: drop training pairs that have been there before; keeps a number for each in memory.

    Returns:
        pairs by what became of them: ``USE: read``, ``USE: kept``, and why the others were dropped.

    Raises:
        ValueError: two sides have different numbers of lines, or a file cannot be read.
    """
    counts: Counter[str] = Counter()
    seen: set[int] = set()
    paths = [path for name in TEXTS for path in parallel_paths(out, name, recipe.source, recipe.target)]
    with whole_texts(paths) as files:
        sides = {name: files[2 * number : 2 * number + 2] for number, name in enumerate(TEXTS)}

        def write(name: str, pairs: Pairs) -> None:
            for file, side in zip(sides[name], zip(*pairs, strict=True), strict=False):
                file.write("\n".join(side) + "\n")

        trained = 0
        for part, sides_of in zip(recipe.parts, texts, strict=True):
            source, target = sides_of[recipe.source], sides_of[recipe.target]
            raw = parallel_sentences(source, target, part.reference)
            bar = tqdm(desc=f"read {source.path.name}", unit=" pairs", unit_scale=True)
            step = partial(_normalised, keep=part.use == "test")
            for pairs, originals, read in in_order(pool, step, chunks(raw, CHUNK), ahead):
                bar.update(read)
                write(PUBLISHED_TEST, originals)
                counts[f"{part.use}: read"] += read
                counts[f"{part.use}: metadata or untranslated"] += read - len(pairs)
                if part.use != "test":
                    full = [pair for pair in pairs if all(pair)]
                    pairs = _noting(counts, f"{part.use}: a side is empty", pairs, full)
                if part.use == "train" and distinct:
                    pairs = _noting(counts, "train: duplicate", pairs, _new(pairs, seen))
                if part.use == "train" and recipe.valid_every:
                    first = recipe.valid_every - 1 - trained % recipe.valid_every
                    trained += len(pairs)
                    held_out = pairs[first :: recipe.valid_every]
                    for key in ("train: held out for validation", "valid: read", "valid: kept"):
                        counts[key] += len(held_out)
                    write("valid", held_out)
                    del pairs[first :: recipe.valid_every]
                counts[f"{part.use}: kept"] += len(pairs)
                write(part.use, pairs)
            bar.close()
    return +counts


def _noting(counts: Counter[str], why: str, before: Pairs, after: Pairs) -> Pairs:
    """Count how many pairs were dropped; return those that were not."""
    counts[why] += len(before) - len(after)
    return after


def _new(pairs: Pairs, seen: set[int]) -> Pairs:
    """Return the pairs that are not in ``seen``, and put them there."""
    new = []
    for pair in pairs:
        if (key := hash(pair)) not in seen:
            seen.add(key)
            new.append(pair)
    return new


def _normalised(raw: list[tuple[Sentence, Sentence]], keep: bool) -> tuple[Pairs, Pairs, int]:
    """Return the pairs of a chunk that have both sides, the same as they were if asked for, and how many it had."""
    pairs = [(one, other) for one, other in raw if one is not None and other is not None]
    originals = [(on_one_line(one), on_one_line(other)) for one, other in pairs] if keep else []
    return [(normalise(one), normalise(other)) for one, other in pairs], originals, len(raw)


def write_published(
    recipe: Recipe, raw: Path, out: Path, pool: Executor, ahead: int, distinct: bool = False
) -> Counter[str]:
    """Download what ``raw`` lacks, unpack it beside ``out``, and write the text of each split; see ``write_texts``."""
    archives = dict(zip(recipe.archives, download_missing(recipe.archives.values(), raw), strict=True))
    with located(recipe.parts, archives, out.with_name(EXTRACTED)) as texts:
        return write_texts(recipe, texts, out, pool, ahead, distinct)
