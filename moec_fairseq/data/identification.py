"""Pairs a side of which is in another language than it should be, found with py3langid."""

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Executor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from moec_fairseq.data.formats.text import raw_lines
from moec_fairseq.data.languages import CHINESE, language_of, parallel_paths
from moec_fairseq.data.subwords import CHUNK
from moec_fairseq.util.files import whole_texts
from moec_fairseq.util.processes import chunks, in_order

CONFIDENCE = 0.8  # probability from which another language counts; py3langid is the less sure the shorter a sentence is
OTHER = "another language"
# codes that text of one language may get
_VARIETIES = (
    frozenset(("ar", "ary", "arz")),
    CHINESE,
    frozenset(("no", "nb", "nn")),
    frozenset(("ku", "ckb", "sdh")),
)
Pairs = list[tuple[str, str]]
_NO_LANGUAGE = "zxx"  # ISO 639 has this code for what is in no language


@lru_cache(maxsize=1)
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    except (ImportError, AttributeError) as error:  # or it is older
        raise ValueError(
            "--identify-language needs the package py3langid, version 0.4 or later; install it with: "
            'pip install --no-deps "py3langid>=0.4"'
        ) from error


def names_of(code: str) -> frozenset[str]:
    """Return the codes that py3langid may give to text of a language.

    Raises:
        ValueError: it does not know the language, or is not installed.
    """
    language = language_of(code)
    names = next((group for group in _VARIETIES if language in group), frozenset((language,)))
    if names.isdisjoint(_identifier().labels):
        raise ValueError(f"--identify-language cannot be used for {code}, which py3langid does not know; leave it out")
    return names


def is_other(text: str, names: frozenset[str]) -> bool:
    """Tell whether a text is surely in another language than these."""
    language, confidence = _identifier().classify(text)
    return confidence >= CONFIDENCE and language not in names and language != _NO_LANGUAGE


def drop_other_languages(
    text: Path, source: str, target: str, counts: Mapping[str, int], pool: Executor, ahead: int
) -> Counter[str]:
    """Take the pairs out of training and validation text that are in other languages; the test text stays whole.

    Args:
        text: folder with {train,valid}.{source,target}.
        source: language.
        target: language.
        counts: pairs by what became of them, ``SPLIT: kept`` or ``SPLIT: why not``.
        pool: processes that identify languages.
        ahead: chunks in progress.

    Returns:
        the same with what was dropped now.

    Raises:
        ValueError: nothing is left of a text, or the languages cannot be identified.
    """
    found = Counter(counts)
    work = partial(_kept, names_of(source), names_of(target))
    for split in ("train", "valid"):
        paths = parallel_paths(text, split, source, target)
        read = written = 0
        with whole_texts(paths) as files, tqdm(desc=f"identify {split}", unit=" pairs", unit_scale=True) as bar:
            pairs = zip(*map(raw_lines, paths), strict=True)
            for kept, size in in_order(pool, work, chunks(pairs, CHUNK), ahead):
                for pair in kept:
                    for file, side in zip(files, pair, strict=True):
                        file.write(f"{side}\n")
                read, written = read + size, written + len(kept)
                bar.update(size)
            if not written:
                raise ValueError(
                    f"--identify-language leaves nothing of {split}: no pair is in {source} and {target}; are the two "
                    "sides exchanged?"
                )
        found[f"{split}: {OTHER}"] += read - written
        found[f"{split}: kept"] -= read - written
    return found


def _kept(source: frozenset[str], target: frozenset[str], pairs: Pairs) -> tuple[Pairs, int]:
    """Return the pairs of a chunk that are in their languages, and how many it had."""
    return [pair for pair in pairs if not is_other(pair[0], source) and not is_other(pair[1], target)], len(pairs)
