"""Cut text into pieces with one sentencepiece model for both languages."""

import io
import re
from collections.abc import Iterator
from pathlib import Path

import sentencepiece
from tqdm import tqdm

from moec_fairseq.corpus.languages import check_languages
from moec_fairseq.corpus.output import complete_files, parallel_paths
from moec_fairseq.corpus.splits import SPLITS
from moec_fairseq.corpus.text import check_file, lines

MODEL_TYPES = ("bpe", "unigram", "char")
MAX_TRAINING_LINES = 2_000_000  # a sample of this size says enough about pieces, and bounds the memory


def segment(
    data: Path, source: str, target: str, vocab_size: int, out: Path, model_type: str, character_coverage: float
) -> None:
    """Train a joint model on both sides of train in `data`; write it and the pieces of every split into `out`.

    `out` gets spm.model, spm.vocab and {train,valid,test}.{source,target}, which have the lines of the originals.
    """
    check_languages(source, target)
    paths = {split: parallel_paths(data, split, source, target) for split in SPLITS}
    for path in (path for pair in paths.values() for path in pair):
        check_file(path)
    out.mkdir(parents=True, exist_ok=True)
    train_model(paths["train"], vocab_size, model_type, character_coverage, out / "spm.model")
    model = sentencepiece.SentencePieceProcessor(model_file=str(out / "spm.model"))
    for split, texts in paths.items():
        pieces = parallel_paths(out, split, source, target)
        with complete_files(list(pieces)) as files:
            for text, file in zip(texts, files, strict=True):
                for line in tqdm(lines(text), desc=f"cut {text.name}", unit=" lines", unit_scale=True):
                    file.write(" ".join(model.encode(line, out_type=str)) + "\n")
    with complete_files([out / "spm.vocab"]) as (file,):
        for index in range(model.get_piece_size()):
            file.write(f"{model.id_to_piece(index)}\t{model.get_score(index):g}\n")
    print(f"{model.get_piece_size()} pieces (asked for: at most {vocab_size}) in {out / 'spm.model'}")


def check_sizes(vocab_size: int, model_type: str, character_coverage: float) -> None:
    """Raise ValueError for what sentencepiece cannot make; says what it can."""
    if vocab_size < 1:
        raise ValueError(f"vocabulary size {vocab_size} is not possible; give a number from 1")
    if model_type not in MODEL_TYPES:
        raise ValueError(f"model type {model_type!r} does not exist; choose from {', '.join(MODEL_TYPES)}")
    if not 0.9 <= character_coverage <= 1:
        raise ValueError(f"character coverage {character_coverage} is not possible; give a number from 0.9 to 1.0")


def train_model(
    texts: tuple[Path, Path], vocab_size: int, model_type: str, character_coverage: float, out: Path
) -> None:
    """Learn pieces from both texts together, and write the model to ``out``.

    Raises:
        ValueError: sizes or types that are not possible; says what is.
    """
    check_sizes(vocab_size, model_type, character_coverage)
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
    part = out.with_name(f".{out.name}.part")
    part.write_bytes(model.getvalue())
    part.replace(out)


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
    tqdm.write("learn the pieces ...")


def _explain(error: str, vocab_size: int) -> str:
    if match := re.search(r"smaller than required_chars\. \d+ vs (\d+)", error):
        return f"vocabulary size {vocab_size} is too small: its characters alone need {match[1]} pieces; give more"
    return f"sentencepiece cannot learn {vocab_size} pieces from this text: {error}"
