"""Text to joint subwords with sentencepiece, and on to fairseq's binary data."""

import io
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from functools import lru_cache, partial
from pathlib import Path

import sentencepiece
from tqdm import tqdm

from moec_fairseq.data.cleaning import Limits
from moec_fairseq.data.languages import SPLITS, parallel_paths
from moec_fairseq.data.text import lines, raw_lines
from moec_fairseq.util.files import whole_files, whole_texts
from moec_fairseq.util.processes import chunks, in_order, run_fairseq

MAX_TRAINING_LINES = 2_000_000  # a sample of this size says enough about subwords, and bounds the memory
CHUNK = 5_000  # pairs that a worker gets at a time
WORD_MARK = "\u2581"  # sentencepiece begins words with it


def check_sizes(vocab_size: int, character_coverage: float) -> None:
    """Raise ValueError for what sentencepiece cannot make; says what it can."""
    if vocab_size < 1:
        raise ValueError(f"vocabulary size {vocab_size} is not possible; give a number from 1")
    if not 0.9 <= character_coverage <= 1:
        raise ValueError(f"character coverage {character_coverage} is not possible; give a number from 0.9 to 1.0")


def train_model(
    texts: tuple[Path, Path], vocab_size: int, model_type: str, character_coverage: float, out: Path
) -> None:
    """Train a sentencepiece model on both texts together, and write it to ``out``.

    Raises:
        ValueError: the text is too small for ``vocab_size``, or cannot be read.
    """
    broken_off: list[BaseException] = []
    model = io.BytesIO()
    sentencepiece.set_random_generator_seed(1)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_noting(_with_progress(texts), broken_off),
            model_writer=model,
            model_type=model_type,
            vocab_size=vocab_size,
            hard_vocab_limit=False,  # a small corpus gets fewer pieces
            character_coverage=character_coverage,
            input_sentence_size=MAX_TRAINING_LINES,
            normalization_rule_name="identity",  # a translation should keep the characters that were written
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        if broken_off:  # as Ctrl-C, of which sentencepiece makes an error of its own
            raise broken_off[0] from None
        raise ValueError(_explain(str(error), vocab_size)) from None
    with whole_files([out]) as (part,):
        part.write_bytes(model.getvalue())


def _noting(lines: Iterator[str], broken_off: list[BaseException]) -> Iterator[str]:
    """Yield the lines; why they end too early goes into a list."""
    try:
        yield from lines
    except GeneratorExit:
        raise
    except BaseException as error:
        broken_off.append(error)
        raise


def _with_progress(texts: tuple[Path, Path]) -> Iterator[str]:
    for text in texts:
        yield from tqdm(lines(text), desc=f"read {text.name}", unit=" lines", unit_scale=True)
    tqdm.write("learning the subwords ...")


def _explain(error: str, vocab_size: int) -> str:
    if match := re.search(r"smaller than required_chars\. \d+ vs (\d+)", error):
        return f"vocabulary size {vocab_size} is too small: its characters alone need {match[1]} subwords; give more"
    return f"sentencepiece cannot learn {vocab_size} subwords from this text: {error}"


def open_model(path: Path) -> sentencepiece.SentencePieceProcessor:
    """Return a sentencepiece model.

    Raises:
        ValueError: the file is none.
    """
    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise ValueError(f"{path} is not a sentencepiece model ({error}); make it again with moec prepare") from error


def segment(
    texts: Path, source: str, target: str, model: Path, limits: Limits | None, out: Path, pool: Executor, ahead: int
) -> Counter[str]:
    """Write the subwords of every split into ``out``; training and validation pairs beyond the limits are dropped.

    Args:
        texts: folder with {train,valid,test}.{source,target}.
        source: language.
        target: language.
        model: of sentencepiece.
        limits: which pairs are kept; None: all. The test text stays whole.
        out: folder.
        pool: processes that segment.
        ahead: chunks in progress.

    Returns:
        pairs by what became of them.
    """
    counts: Counter[str] = Counter()
    for split in SPLITS:
        one, other = parallel_paths(texts, split, source, target)
        work = partial(_segment, model, None if split == "test" else limits)
        with (
            whole_texts(parallel_paths(out, split, source, target)) as files,
            tqdm(desc=f"segment {split}", unit=" pairs", unit_scale=True) as bar,
        ):
            pairs = zip(raw_lines(one), raw_lines(other), strict=True)
            for sides, read, dropped in in_order(pool, work, chunks(pairs, CHUNK), ahead):
                for file, side in zip(files, sides, strict=True):
                    file.write(side)
                bar.update(read)
                counts.update({f"{split}: {rule}": number for rule, number in dropped.items()})
                counts[f"{split}: segmented"] += read - dropped.total()
    return counts


def _segment(
    path: Path, limits: Limits | None, pairs: list[tuple[str, str]]
) -> tuple[tuple[str, str], int, Counter[str]]:
    """Return the subwords of both sides, one sentence on each line, pairs read, and why some were dropped."""
    dropped: Counter[str] = Counter()
    kept: tuple[list[str], list[str]] = ([], [])
    model = _model(path)
    encoded = [model.processor.encode(list(side), num_threads=1) for side in zip(*pairs, strict=True)]
    for ids in zip(*encoded, strict=True):
        rule = limits.broken(*map(len, ids)) if limits else None
        if rule is not None:
            dropped[rule] += 1
            continue
        for side, subwords in zip(kept, ids, strict=True):
            side.append(model.spelled(subwords))
    return ("".join(kept[0]), "".join(kept[1])), len(pairs), dropped


class _Model:
    """A sentencepiece model, and its subwords, which are looked up faster than made for each line."""

    def __init__(self, path: Path) -> None:
        self.processor = open_model(path)
        self.subwords = [self.processor.id_to_piece(number) for number in range(self.processor.get_piece_size())]

    def spelled(self, ids: list[int]) -> str:
        """Return subwords as one line.

        What the model does not know is <unk>, as for fairseq: spelled as in the text, each run of foreign letters
        would be a word of the dictionary.
        """
        return " ".join([self.subwords[number] for number in ids]) + "\n"


@lru_cache(maxsize=1)
def _model(path: Path) -> _Model:
    return _Model(path)


def binarise(subwords: Path, source: str, target: str, workers: int, out: Path) -> None:
    """Make fairseq's binary data with a joint dictionary.

    Args:
        subwords: folder of ``segment``.
        source: language.
        target: language.
        workers: processes.
        out: folder; it appears when it is complete. fairseq's log goes beside it.
    """
    # of this process: one that was killed may have left a fairseq-preprocess that is just ending
    part = out.with_name(f".{out.name}-{os.getpid()}.part")
    for folder in (out, *out.parent.glob(f".{out.name}*.part")):
        shutil.rmtree(folder, ignore_errors=True)
    run_fairseq(
        "preprocess", "--source-lang", source, "--target-lang", target, "--joined-dictionary", "--destdir", part,
        "--workers", workers,
        *(argument for split in SPLITS for argument in (f"--{split}pref", subwords / split)),
        log=out.with_name("preprocess.log"),
    )  # fmt: skip
    part.replace(out)


def binarise_sentences(
    sentences: Iterable[str], model: Path, dictionaries: Sequence[Path], source: str, target: str, out: Path
) -> Path:
    """Segment and binarise sentences to translate; return the folder of binary data, in which they are ``test``.

    Args:
        sentences: plain text, normalised as the model's own.
        model: of sentencepiece.
        dictionaries: of source and target.
        source: language.
        target: language.
        out: folder for the binary data, and what is made on the way.
    """
    processor = open_model(model)
    with whole_texts([out / f"subwords.{source}"]) as (file,):
        for sentence in sentences:
            file.write(" ".join(processor.encode(sentence, out_type=str)) + "\n")
    binary = out / "binary"
    shutil.rmtree(binary, ignore_errors=True)
    run_fairseq(
        "preprocess", f"--source-lang={source}", f"--target-lang={target}", "--only-source", "--srcdict",
        dictionaries[0], "--testpref", out / "subwords", "--destdir", binary, log=out / "preprocess.log",
    )  # fmt: skip
    shutil.copy(dictionaries[1], binary / f"dict.{target}.txt")
    return binary
