"""Sentences to translations with fairseq-generate."""

import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import sentencepiece
import torch
from fairseq.data import data_utils
from torch import Tensor

import moec_fairseq
from moec_fairseq.cli.fairseq import run_fairseq
from moec_fairseq.cli.progress import follow
from moec_fairseq.corpus.output import complete_files
from moec_fairseq.prepare.cleaning import normalise


@dataclass(frozen=True)
class Search:
    """How translations are searched for.

    Attributes:
        beam: size of the beam.
        lenpen: exponent of the length that scores are divided by.
        max_tokens: of a batch.
        cpu: leave a GPU alone.

    Raises:
        ValueError: a size is below 1.
    """

    beam: int = 5
    lenpen: float = 1.0
    max_tokens: int = 4096
    cpu: bool = False

    def __post_init__(self) -> None:
        """Refuse sizes below 1."""
        if self.beam < 1 or self.max_tokens < 1:
            raise ValueError(f"--beam is {self.beam} and --max-tokens {self.max_tokens}, but neither can be below 1")


@dataclass(frozen=True)
class Numbered:
    """Binary data to translate: the folder, the part, and how words are cut into pieces, as fairseq calls it."""

    binary: Path
    subset: str
    segmentation: str


def binarise(
    sentences: Sequence[str], model: Path, dictionaries: Sequence[Path], source: str, target: str, out: Path
) -> Numbered:
    """Cut sentences into pieces and number them.

    Args:
        sentences: plain text.
        model: of sentencepiece.
        dictionaries: of source and target.
        source: language.
        target: language.
        out: folder for the binary data, and what is made on the way.

    Raises:
        ValueError: the model cannot be read.
    """
    try:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    except (RuntimeError, OSError) as error:
        raise ValueError(
            f"{model} is no model of sentencepiece ({error}); make it again with prepare_data.sh"
        ) from error
    with complete_files([out / f"pieces.{source}"]) as (file,):
        for sentence in sentences:
            file.write(" ".join(processor.encode(normalise(sentence), out_type=str)) + "\n")
    binary = out / "binary"
    shutil.rmtree(binary, ignore_errors=True)
    run_fairseq(
        "preprocess", f"--source-lang={source}", f"--target-lang={target}", "--only-source", "--srcdict",
        dictionaries[0], "--testpref", out / "pieces", "--destdir", binary, log=out / "preprocess.log",
    )  # fmt: skip
    shutil.copy(dictionaries[1], binary / f"dict.{target}.txt")
    return Numbered(binary, "test", "sentencepiece")


def dataset(data: Numbered, source: str, target: str) -> Sequence[Tensor]:
    """Return the pieces of each sentence to translate; as for fairseq, the data may be named in the other direction.

    Raises:
        ValueError: the data have no such part.
    """
    for pair in (f"{source}-{target}", f"{target}-{source}"):
        found: Sequence[Tensor] | None = data_utils.load_indexed_dataset(
            str(data.binary / f"{data.subset}.{pair}.{source}")
        )
        if found is not None:
            return found
    raise ValueError(
        f"{data.binary} has no {data.subset} for {source} to {target}; give --subset or --data that has it"
    )


def generate(
    model: Path,
    data: Numbered,
    source: str,
    target: str,
    longest: int,
    cut: bool,
    search: Search,
    log: Path,
    task: Sequence[str] = (),
) -> int:
    """Translate binary data; what fairseq-generate says goes to ``log``, its progress on the screen.

    Args:
        model: a checkpoint, one file.
        data: what to translate.
        source: language.
        target: language.
        longest: most pieces of a sentence that the model takes.
        cut: longer sentences are cut, as in training.
        search: how.
        log: file.
        task: options that make the task of fairseq-generate that of the training, each a single argument.

    Returns:
        the number of sentences.

    Raises:
        ValueError: it failed; says why.
    """
    sentences = dataset(data, source, target)
    too_long = [number for number in range(len(sentences)) if len(sentences[number]) > longest]
    if too_long and cut:
        print(f"{len(too_long)} sentences have more than {longest} pieces and are cut, as in training")
    elif too_long:
        first = too_long[0]
        raise ValueError(
            f"line {first + 1} has {len(sentences[first])} pieces, but the model takes at most {longest}; divide it"
        )

    def show(lines: Iterable[str], file: TextIO) -> None:
        follow(lines, "generate", len(sentences), file, sys.stdout)

    limit = ["--truncate-source", "--max-source-positions", longest] if cut else []
    run_fairseq(
        "generate", data.binary.absolute(), "--user-dir", moec_fairseq.__path__[0], "--path", model,
        f"--gen-subset={data.subset}", f"--source-lang={source}", f"--target-lang={target}", *task, *limit,
        "--beam", search.beam, "--lenpen", search.lenpen, "--max-tokens", search.max_tokens,
        f"--remove-bpe={data.segmentation}",
        "--distributed-world-size", 1,  # or fairseq leaves a share of the sentences to each other GPU
        *(["--cpu"] if search.cpu or not torch.cuda.is_available() else []),
        log=log, read=show,
    )  # fmt: skip
    return len(sentences)
