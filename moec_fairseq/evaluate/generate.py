"""Sentences to translations with fairseq-generate."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch
from fairseq.data import data_utils
from torch import Tensor

import moec_fairseq
from moec_fairseq.data.subwords import WORD_MARK
from moec_fairseq.evaluate.model import ModelFacts
from moec_fairseq.util.files import without_separators
from moec_fairseq.util.processes import run_fairseq
from moec_fairseq.util.progress import follow

# what fairseq-generate prints; S: source, T: target, D: a detokenised translation, with its score before it
_LINE = re.compile(r"([ST])-(\d+)\t(.*)|(D)-(\d+)\t([^\t]+)\t(.*)")


@dataclass(frozen=True)
class Search:
    """How translations are searched for.

    Attributes:
        beam: size of the beam.
        lenpen: exponent of the length that scores are divided by.
        max_tokens: of a batch.
        cpu: do not use a GPU.
        batch_size: sentences of a batch; None: as many as ``max_tokens`` says.
        n_best: translations of each sentence.

    Raises:
        ValueError: a size is below 1, or more translations are wanted than the beam holds.
    """

    beam: int = 5
    lenpen: float = 1.0
    max_tokens: int = 4096
    cpu: bool = False
    batch_size: int | None = None
    n_best: int = 1

    def __post_init__(self) -> None:
        """Refuse sizes below 1."""
        for name in ("beam", "max_tokens", "batch_size", "n_best"):
            if (size := getattr(self, name)) is not None and size < 1:
                raise ValueError(f"--{name.replace('_', '-')} is {size}, but must be 1 or more")
        if self.n_best > self.beam:
            raise ValueError(f"--n-best is {self.n_best}, but --beam only {self.beam}; give a beam of that size")


@dataclass(frozen=True)
class Binarised:
    """Binary data to translate.

    Attributes:
        binary: the folder.
        subset: the split.
        segmentation: how words are segmented, as fairseq calls it.
        lines: number of each sentence in the text it is of; None: 1, 2, 3, ...
    """

    binary: Path
    subset: str
    segmentation: str
    lines: Sequence[int] | None = None


@dataclass(frozen=True)
class Hypothesis:
    """A translation, and its score: log2 of the probability, divided by (length in subwords)^lenpen."""

    text: str
    score: float


def dataset(data: Binarised, source: str, target: str) -> Sequence[Tensor]:
    """Return the subwords of each sentence to translate; as for fairseq, the data may be named in the other direction.

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
    model: Path, facts: ModelFacts, data: Binarised, source: str, target: str, search: Search, log: Path, screen: TextIO
) -> int:
    """Translate binary data.

    Args:
        model: a checkpoint, one file.
        facts: of the model.
        data: what to translate.
        source: language.
        target: language.
        search: how.
        log: the output of fairseq-generate goes there.
        screen: its progress goes there.

    Returns:
        the number of sentences.

    Raises:
        ValueError: it failed; says why.
    """
    sentences, longest = dataset(data, source, target), facts.longest_source
    too_long = [number for number in range(len(sentences)) if len(sentences[number]) > longest]
    if too_long and facts.truncates_sources:
        print(f"{len(too_long)} sentences have more than {longest} subwords and are truncated, as in training")
    elif too_long:
        first = too_long[0]
        line = data.lines[first] if data.lines else first + 1
        raise ValueError(
            f"line {line} has {len(sentences[first])} subwords, but the model takes at most {longest}; divide it"
        )

    def show(lines: Iterable[str], file: TextIO) -> None:
        follow(lines, "generate", len(sentences), file, screen)

    limit = ["--truncate-source", "--max-source-positions", longest] if facts.truncates_sources else []
    size = [] if search.batch_size is None else ["--batch-size", search.batch_size]
    with without_separators(model) as path:
        run_fairseq(
            "generate", data.binary.absolute(), "--user-dir", moec_fairseq.__path__[0], "--path", path,
            f"--gen-subset={data.subset}", f"--source-lang={source}", f"--target-lang={target}",
            *(facts.several.options if facts.several else ()), *limit, *size,
            "--beam", search.beam, "--nbest", search.n_best, "--lenpen", search.lenpen,
            "--max-tokens", search.max_tokens, f"--remove-bpe={data.segmentation}",
            "--distributed-world-size", 1,  # or fairseq leaves a share of the sentences to each other GPU
            *(["--cpu"] if search.cpu or not torch.cuda.is_available() else []),
            log=log, read=show,
        )  # fmt: skip
    return len(sentences)


def read_sentences(log: Iterable[str], kind: str) -> dict[int, str]:
    """Return the sources (S) or targets (T) that fairseq-generate has printed by their ids, in the order of the ids."""
    found = (match for line in log if (match := _LINE.match(line)))
    return dict(sorted({int(match[2]): match[3] for match in found if match[1] == kind}.items()))


def read_hypotheses(log: Iterable[str], count: int) -> list[list[Hypothesis]]:
    """Return the translations of each sentence, the best first, in the order of the text that was translated.

    D lines are read: fairseq prints them after its own post-processing (``--remove-bpe``).

    Args:
        log: of fairseq-generate.
        count: sentences that were to be translated.

    Raises:
        ValueError: some have no translation, or it is still segmented.
    """
    found: dict[int, list[Hypothesis]] = {}
    for line in log:
        if (match := _LINE.match(line)) and match[4]:
            found.setdefault(int(match[5]), []).append(Hypothesis(match[7], float(match[6])))
    if missing := sorted(set(range(count)) - found.keys()):
        raise ValueError(
            f"{len(missing)} of {count} translations are missing, the first is that of sentence {missing[0] + 1}; "
            "give the same command again"
        )
    check_words(hypothesis.text for hypotheses in found.values() for hypothesis in hypotheses)
    return [found[number] for number in range(count)]


def check_words(text: Iterable[str]) -> None:
    """Raise ValueError if words are still segmented by sentencepiece, whose subwords would be scored as words."""
    if any(WORD_MARK in line for line in text):
        raise ValueError("the text is still segmented by sentencepiece; give --remove-bpe sentencepiece")
