"""Text to subwords with sentencepiece or GPT-2's BPE, and on to fairseq's binary data."""

import io
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path

import numpy as np
import sentencepiece
from tqdm import tqdm

from moec_fairseq.data.cleaning import Limits
from moec_fairseq.data.formats.text import lines, raw_lines
from moec_fairseq.data.gpt2_bpe import Gpt2Model
from moec_fairseq.data.languages import SPLITS, parallel_paths
from moec_fairseq.util.files import whole_files, whole_folder, whole_texts, without_separators
from moec_fairseq.util.processes import chunks, in_order, run_fairseq

MAX_TRAINING_LINES = 2_000_000  # a sample of this size says enough about subwords, and bounds the memory
CHUNK = 5_000  # pairs that a worker gets at a time
MOST_SUBWORDS = 32_000  # of a vocabulary whose size suits the text; then half of it, and so on
SUITING_SHARE = 0.9  # of the subwords that occur SUITING_TIMES or more
SUITING_TIMES = 10
WORD_MARK = "\u2581"  # sentencepiece begins words with it


class TooSmallError(ValueError):
    """A vocabulary that has no place for all characters."""


def check_sizes(vocab_size: int | None, character_coverage: float | None) -> None:
    """Raise ValueError for what sentencepiece cannot make; says what it can."""
    if vocab_size is not None and vocab_size < 1:
        raise ValueError(f"vocabulary size {vocab_size} is not possible; give a number from 1, or auto")
    if character_coverage is not None and not 0.9 <= character_coverage <= 1:
        raise ValueError(f"character coverage {character_coverage} is not possible; give a number from 0.9 to 1.0")


def train_model(
    texts: Sequence[Path],
    vocab_size: int | None,
    model_type: str,
    character_coverage: float,
    out: Path,
    words: Sequence[str] = (),
) -> None:
    """Train a sentencepiece model on all texts together, and write it; says how many subwords it has.

    Args:
        texts: files.
        vocab_size: most subwords. None: as many as suit the text, the largest of 32 000, 16 000, 8 000 and so on with
            which 90 % of the subwords longer than a character occur 10 times or more in it, or the smallest that has
            all characters. Rare ones are hardly learned (Gowda and May, 2020,
            https://aclanthology.org/2020.findings-emnlp.352).
        model_type: of sentencepiece.
        character_coverage: share of the characters that get subwords.
        out: file.
        words: each is one subword.

    Raises:
        TooSmallError: ``vocab_size`` is less than there are characters.
        ValueError: the text cannot be read.
    """
    size = vocab_size or MOST_SUBWORDS
    model = _learned(texts, size, model_type, character_coverage, words)
    while vocab_size is None and not _suits(model, texts):
        size //= 2
        while size >= _size_of(model):  # it would be the same once more
            size //= 2
        try:
            model = _learned(texts, size, model_type, character_coverage, words)
        except TooSmallError:
            break
    number = _size_of(model)
    if vocab_size is None or number == vocab_size:
        print(f"{number:,} subwords", flush=True)
    else:
        asked = f"not {vocab_size:,}; --vocab-size auto takes as many as suit it"
        print(f"{number:,} subwords, all that the text has, {asked}", flush=True)
    with whole_files([out]) as (part,):
        part.write_bytes(model)


def _size_of(model: bytes) -> int:
    size: int = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
    return size


def _suits(model: bytes, texts: Sequence[Path]) -> bool:
    """Tell whether the subwords of a model occur often enough in the texts to be learned."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    size = processor.get_piece_size()
    longer = np.array([len(processor.id_to_piece(n)) > 1 and not processor.is_control(n) for n in range(size)])
    longer[processor.unk_id()] = False
    counts = np.zeros(size, dtype=np.int64)
    for chunk in chunks(chain.from_iterable(map(lines, texts)), CHUNK):
        ids = chain.from_iterable(processor.encode(chunk, num_threads=1))
        counts += np.bincount(np.fromiter(ids, dtype=np.int64), minlength=size)
        if np.sum(counts[longer] >= SUITING_TIMES) >= SUITING_SHARE * np.sum(longer):
            return True
    return False


def _learned(
    texts: Sequence[Path], vocab_size: int, model_type: str, character_coverage: float, words: Sequence[str]
) -> bytes:
    """Return a sentencepiece model; see ``train_model``."""
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
            user_defined_symbols=[WORD_MARK + word for word in words],
            input_sentence_size=MAX_TRAINING_LINES,
            normalization_rule_name="identity",  # a translation should keep the characters that were written
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        if broken_off:  # as Ctrl-C, of which sentencepiece makes an error of its own
            raise broken_off[0] from None
        raise _explained(str(error), vocab_size) from None
    return model.getvalue()


def _noting(lines: Iterator[str], broken_off: list[BaseException]) -> Iterator[str]:
    """Yield the lines; why they end too early goes into a list."""
    try:
        yield from lines
    except GeneratorExit:
        raise
    except BaseException as error:
        broken_off.append(error)
        raise


def _with_progress(texts: Sequence[Path]) -> Iterator[str]:
    for text in texts:
        yield from tqdm(lines(text), desc=f"read {text.name}", unit=" lines", unit_scale=True)
    tqdm.write("learning the subwords ...")


def _explained(error: str, vocab_size: int) -> ValueError:
    if match := re.search(r"smaller than required_chars\. \d+ vs (\d+)", error):
        return TooSmallError(
            f"vocabulary size {vocab_size} is too small: the characters alone need {match[1]} subwords; give more, or "
            "auto, or a smaller --character-coverage"
        )
    return ValueError(f"sentencepiece cannot learn {vocab_size} subwords from this text: {error}")


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
    texts: Path,
    source: str,
    target: str,
    model: Path,
    limits: Limits | None,
    out: Path,
    pool: Executor,
    ahead: int,
    parts: Sequence[str] = (),
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
        parts: of valid and test, by the names of their files.

    Returns:
        pairs by what became of them.
    """
    counts: Counter[str] = Counter()
    for split in (*SPLITS, *parts):
        one, other = parallel_paths(texts, split, source, target)
        work = partial(_segment, model, None if split.startswith("test") else limits)
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
    encoded = [model.encode(list(side)) for side in zip(*pairs, strict=True)]
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

    def encode(self, lines: list[str]) -> list[list[int]]:
        """Return the numbers of each line's subwords."""
        encoded: list[list[int]] = self.processor.encode(lines, num_threads=1)
        return encoded

    def spelled(self, ids: list[int]) -> str:
        """Return subwords as one line.

        What the model does not know is <unk>, as for fairseq: spelled as in the text, each run of foreign letters
        would be a word of the dictionary.
        """
        return " ".join([self.subwords[number] for number in ids]) + "\n"


@lru_cache(maxsize=1)
def _model(path: Path) -> _Model | Gpt2Model:
    return Gpt2Model(path) if path.is_dir() else _Model(path)


def segment_lines(
    texts: Mapping[str, Iterable[str]], model: Path, most: int | None, out: Path, pool: Executor, ahead: int
) -> Counter[str]:
    """Write the subwords of texts, line by line; empty lines stay.

    Args:
        texts: lines, by the NAME of the file that they get in ``out``, NAME.txt.
        model: of sentencepiece, or a folder with the files of GPT-2's BPE.
        most: subwords of a line; longer lines become several. None: no limit.
        out: folder.
        pool: processes that segment.
        ahead: chunks in progress.

    Returns:
        ``NAME: subwords``, and ``NAME: lines split`` of those that were too long.
    """
    counts: Counter[str] = Counter()
    work = partial(_segment_lines, model, most or sys.maxsize)
    for name, text in texts.items():
        with (
            whole_texts([out / f"{name}.txt"]) as (file,),
            tqdm(desc=f"segment {name}", unit=" lines", unit_scale=True) as bar,
        ):
            for segmented, read, counted in in_order(pool, work, chunks(text, CHUNK), ahead):
                file.write(segmented)
                bar.update(read)
                counts.update({f"{name}: {what}": number for what, number in counted.items()})
    return counts


def _segment_lines(path: Path, most: int, lines: list[str]) -> tuple[str, int, Counter[str]]:
    """Return the subwords of lines, lines read, and what ``segment_lines`` counts."""
    model = _model(path)
    counts = Counter({"lines split": 0, "subwords": 0})
    parts: list[list[int]] = []
    for ids in model.encode(lines):
        counts["lines split"] += len(ids) > most
        counts["subwords"] += len(ids)
        parts += [ids[start : start + most] for start in range(0, max(len(ids), 1), most)]
    return "".join(map(model.spelled, parts)), len(lines), counts


def binarise(subwords: Path, source: str, target: str, workers: int, out: Path, parts: Sequence[str] = ()) -> None:
    """Make fairseq's binary data with a joint dictionary.

    Args:
        subwords: folder of ``segment``.
        source: language.
        target: language.
        workers: processes.
        out: folder; it appears when it is complete. fairseq's log goes beside it.
        parts: of valid and test, by the names of their files.
    """
    names = {split: [split, *(part for part in parts if part.startswith(split))] for split in SPLITS}
    with whole_folder(out) as folder:
        with without_separators(subwords) as texts:
            prefixes = {split: ",".join(str(texts / name) for name in named) for split, named in names.items()}
            _preprocess(
                folder, workers, "--source-lang", source, "--target-lang", target, "--joined-dictionary",
                *(argument for split in SPLITS for argument in (f"--{split}pref", prefixes[split])),
            )  # fmt: skip
        for split, (_, *others) in names.items():
            for number, name in enumerate(others, start=1):
                for path in folder.glob(f"{split}{number}.*"):  # as fairseq calls them
                    path.rename(path.with_name(path.name.replace(f"{split}{number}", name, 1)))


def binarise_text(subwords: Path, dictionary: Path | None, workers: int, out: Path) -> None:
    """Make fairseq's binary data of one language.

    Args:
        subwords: folder with {train,valid,test}.txt.
        dictionary: of a model that is to read the data; None: it is made from the training text.
        workers: processes.
        out: folder; it appears when it is complete. fairseq's log goes beside it.
    """
    with whole_folder(out) as folder, without_separators(subwords) as texts:
        _preprocess(
            folder, workers, "--only-source", *(["--srcdict", dictionary] if dictionary else []),
            *(argument for split in SPLITS for argument in (f"--{split}pref", texts / f"{split}.txt")),
        )  # fmt: skip


def _preprocess(folder: Path, workers: int, *arguments: object) -> None:
    log = folder.with_name("preprocess.log")
    run_fairseq("preprocess", "--destdir", folder, "--workers", workers, *arguments, log=log)


def binarise_files(texts: Mapping[str, Path], dictionary: Path, out: Path) -> None:
    """Write NAME.bin and NAME.idx for each text, and dict.txt.

    In this process: for small files, fairseq-preprocess takes longest to start.

    Args:
        texts: files of subwords, by NAME.
        dictionary: says the number of each subword.
        out: folder.
    """
    # Here, because it imports torch, which the steps before do without.
    from fairseq.binarizer import FileBinarizer, VocabularyDatasetBinarizer
    from fairseq.data import Dictionary

    out.mkdir(parents=True, exist_ok=True)
    vocabulary = Dictionary.load(str(dictionary))
    vocabulary.save(str(out / "dict.txt"))
    binarizer = VocabularyDatasetBinarizer(vocabulary, append_eos=True)
    for name, text in tqdm(texts.items(), desc=f"binarise {out.name}", unit=" files"):
        FileBinarizer.multiprocess_dataset(str(text), "mmap", binarizer, str(out / name), vocab_size=len(vocabulary))


def binarise_sentences(
    sentences: Iterable[str],
    model: Path,
    dictionaries: Sequence[Path],
    source: str,
    target: str,
    out: Path,
    translations: Iterable[str] | None = None,
) -> Path:
    """Segment and binarise sentences to translate; return the folder of binary data, in which they are ``test``.

    Args:
        sentences: plain text, normalised as the model's own.
        model: of sentencepiece.
        dictionaries: of source and target.
        source: language.
        target: language.
        out: folder for the binary data, and what is made on the way.
        translations: of the sentences, likewise; None: fairseq-generate, for which the data are, needs none.
    """
    processor = open_model(model)
    binary = out / "binary"
    shutil.rmtree(binary, ignore_errors=True)
    texts = {source: sentences} | ({} if translations is None else {target: translations})
    for (language, text), dictionary in zip(texts.items(), dictionaries, strict=False):
        with whole_texts([out / f"subwords.{language}"]) as (file,):
            for sentence in text:
                file.write(" ".join(processor.encode(sentence, out_type=str)) + "\n")
        binarise_files({f"test.{source}-{target}.{language}": out / f"subwords.{language}"}, dictionary, binary)
    for dictionary, language in zip(dictionaries, (source, target), strict=True):
        shutil.copy(dictionary, binary / f"dict.{language}.txt")
    return binary
