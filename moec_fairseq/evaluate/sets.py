"""What is translated, and what the translations are compared with."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from moec_fairseq.corpus.hypotheses import PIECE_MARK, read_sentences
from moec_fairseq.corpus.text import raw_lines
from moec_fairseq.evaluate.data import DataOfModel
from moec_fairseq.evaluate.translate import Numbered, binarise

UNKNOWN = "<<unk>>"  # of references, in what fairseq prints


class EvaluationSet(Protocol):
    """Sentences to translate."""

    @property
    def name(self) -> str:
        """Return what tables call it."""

    def checksum(self) -> str:
        """Return what changes when the sentences do."""

    def inputs(self) -> list[Path]:
        """Return the files that hold them, if a change of these is to be noticed."""

    def numbered(self, data: DataOfModel, out: Path) -> Numbered:
        """Return binary data of them; the folder ``out`` is for what has to be made."""

    def known(self, log: Path) -> "TextSet":
        """Return the text; ``log`` is what fairseq-generate said of it."""


@dataclass(frozen=True)
class TextSet:
    """Plain text.

    Attributes:
        name: of the set, for tables.
        source: the sentences.
        references: texts of as many sentences; none if there is nothing to compare with.
    """

    name: str
    source: list[str]
    references: list[list[str]]

    def checksum(self) -> str:
        """Return what changes when the sentences do."""
        return sha256("\n".join(self.source).encode()).hexdigest()

    def inputs(self) -> list[Path]:
        """Return nothing: the checksum tells."""
        return []

    def numbered(self, data: DataOfModel, out: Path) -> Numbered:
        """Cut the sentences into pieces and number them."""
        dictionaries = [data.dictionary(side) for side in ("source", "target")]
        return binarise(self.source, data.pieces_model(), dictionaries, data.source, data.target, out)

    def known(self, log: Path) -> "TextSet":
        """Return itself."""
        return self


@dataclass(frozen=True)
class BinarySet:
    """A part of binary data, whose text fairseq prints.

    Attributes:
        name: of the set, for tables.
        binary: the data.
        subset: the part.
        segmentation: how words are cut into pieces, as fairseq calls it.
        references: plain texts; none: what fairseq prints of the data, with ``<<unk>>`` for words they do not know.
        mark: word that fairseq puts before or behind each source to name a language, and prints; "" for none.
    """

    name: str
    binary: Path
    subset: str
    segmentation: str
    references: list[Path] = field(default_factory=list)
    mark: str = ""

    def checksum(self) -> str:
        """Return where the data are."""
        return f"{self.binary.resolve()} {self.subset} {self.segmentation}"

    def inputs(self) -> list[Path]:
        """Return the files of this part."""
        return sorted(self.binary.glob(f"{self.subset}.*"))

    def numbered(self, data: DataOfModel, out: Path) -> Numbered:
        """Return the data as they are."""
        return Numbered(self.binary, self.subset, self.segmentation)

    def known(self, log: Path) -> TextSet:
        """Read what fairseq has printed.

        Raises:
            ValueError: it is still in pieces, or references have another number of lines.
        """
        source, reference = (list(read_sentences(raw_lines(log), kind).values()) for kind in ("S", "T"))
        source = (
            [line.removeprefix(self.mark).removesuffix(self.mark).strip() for line in source] if self.mark else source
        )
        check_words(source)
        if self.references:
            texts = {str(path): list(raw_lines(path)) for path in self.references}
            check_lengths({f"{self.binary}, {self.subset}": source} | texts)
            return TextSet(self.name, source, list(texts.values()))
        if unknown := sum(UNKNOWN in line for line in reference):
            print(
                f"{unknown} of {len(reference)} references have words that the data do not know, {UNKNOWN}, which no "
                "translation can match; give the text itself with --references"
            )
        return TextSet(self.name, source, [reference] if reference else [])


def check_words(text: Iterable[str]) -> None:
    """Raise ValueError if words are still cut into pieces of sentencepiece, which would be scored as words."""
    if any(PIECE_MARK in line for line in text):
        raise ValueError("the text is still in pieces of sentencepiece; give --remove-bpe sentencepiece")


def check_lengths(texts: Mapping[str, Sequence[str]]) -> None:
    """Raise ValueError unless all texts, by what they are, have the same number of sentences."""
    if len({len(text) for text in texts.values()}) > 1:
        counts = ", ".join(f"{name} has {len(text)}" for name, text in texts.items())
        raise ValueError(f"texts have different numbers of lines: {counts}; line N of each must be the same sentence")
