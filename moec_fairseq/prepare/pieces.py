"""Plain text to pieces, cleaned by their numbers."""

from collections import Counter
from concurrent.futures import Executor
from functools import lru_cache, partial
from pathlib import Path

import sentencepiece
from tqdm import tqdm

from moec_fairseq.corpus.output import complete_files, parallel_paths
from moec_fairseq.corpus.text import raw_lines
from moec_fairseq.prepare.cleaning import Limits
from moec_fairseq.prepare.parallel import chunks, in_order
from moec_fairseq.prepare.recipe import USES
from moec_fairseq.prepare.texts import CHUNK


def write_pieces(
    texts: Path, source: str, target: str, model: Path, limits: Limits, out: Path, pool: Executor, ahead: int
) -> Counter[str]:
    """Write the pieces of every use into ``out``; training and validation pairs beyond the limits are dropped.

    Args:
        texts: folder of ``write_texts``.
        source: language.
        target: language.
        model: of sentencepiece.
        limits: which pairs are kept; the test text stays whole.
        out: folder.
        pool: processes that segment.
        ahead: chunks under way.

    Returns:
        pairs by what became of them.
    """
    counts: Counter[str] = Counter()
    for use in USES:
        one, other = parallel_paths(texts, use, source, target)
        segment = partial(_segment, model, None if use == "test" else limits)
        with (
            complete_files(list(parallel_paths(out, use, source, target))) as files,
            tqdm(desc=f"segment {use}", unit=" pairs", unit_scale=True) as bar,
        ):
            pairs = zip(raw_lines(one), raw_lines(other), strict=True)
            for sides, read, dropped in in_order(pool, segment, chunks(pairs, CHUNK), ahead):
                for file, side in zip(files, sides, strict=True):
                    file.write(side)
                bar.update(read)
                counts.update({f"{use}: {rule}": number for rule, number in dropped.items()})
                counts[f"{use}: segmented"] += read - dropped.total()
    return counts


def _segment(
    path: Path, limits: Limits | None, pairs: list[tuple[str, str]]
) -> tuple[tuple[str, str], int, Counter[str]]:
    """Return the pieces of both sides, one sentence on each line, pairs read, and why some were dropped."""
    dropped: Counter[str] = Counter()
    kept: tuple[list[str], list[str]] = ([], [])
    model = _model(path)
    encoded = [model.processor.encode(list(side), num_threads=1) for side in zip(*pairs, strict=True)]
    for numbers in zip(*encoded, strict=True):
        rule = limits.broken(*map(len, numbers)) if limits else None
        if rule is not None:
            dropped[rule] += 1
            continue
        for side, pieces in zip(kept, numbers, strict=True):
            side.append(model.spelled(pieces))
    return ("".join(kept[0]), "".join(kept[1])), len(pairs), dropped


class _Model:
    """A model of sentencepiece, and its pieces, which are looked up faster than made for each line."""

    def __init__(self, path: Path) -> None:
        self.processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self.pieces = [self.processor.id_to_piece(number) for number in range(self.processor.get_piece_size())]

    def spelled(self, numbers: list[int]) -> str:
        """Return pieces as one line.

        What the model does not know is <unk>, as for fairseq: spelled as in the text, each run of foreign letters
        would be a word of the dictionary.
        """
        return " ".join([self.pieces[number] for number in numbers]) + "\n"


@lru_cache(maxsize=1)
def _model(path: Path) -> _Model:
    return _Model(path)
