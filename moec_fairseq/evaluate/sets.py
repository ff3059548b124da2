"""What is translated, and its references: of sacrebleu, of the user, or of the model's data."""

import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from http.client import HTTPException
from pathlib import Path

from sacrebleu.dataset import DATASETS
from sacrebleu.utils import get_reference_files, get_source_file

from moec_fairseq.data.formats.markup import is_markup, with_characters
from moec_fairseq.data.formats.sentences import Side, parallel_sentences
from moec_fairseq.data.formats.text import lines, on_one_line, raw_lines
from moec_fairseq.data.languages import language_of, parallel_paths
from moec_fairseq.data.published import PUBLISHED_TEST
from moec_fairseq.evaluate.generate import Binarised, check_words, read_sentences
from moec_fairseq.evaluate.model import DataOfModel

UNKNOWN = "<<unk>>"  # of references, in what fairseq prints


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

    def binarised(self, data: DataOfModel, out: Path) -> Binarised:
        """Segment and binarise the sentences."""
        return Binarised(data.binarise(self.source, out), "test", "sentencepiece")

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
        segmentation: how words are segmented, as fairseq calls it.
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

    def binarised(self, data: DataOfModel, out: Path) -> Binarised:
        """Return the data as they are."""
        return Binarised(self.binary, self.subset, self.segmentation)

    def known(self, log: Path) -> TextSet:
        """Read what fairseq has printed.

        Raises:
            ValueError: it is still segmented, or references have another number of lines.
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


EvaluationSet = TextSet | BinarySet  # what is translated


def check_lengths(texts: Mapping[str, Sequence[str]]) -> None:
    """Raise ValueError unless all texts, by what they are, have the same number of sentences."""
    if len({len(text) for text in texts.values()}) > 1:
        counts = ", ".join(f"{name} has {len(text)}" for name, text in texts.items())
        raise ValueError(f"texts have different numbers of lines: {counts}; line N of each must be the same sentence")


@dataclass(frozen=True)
class Wanted:
    """Which sentences the user asked for.

    Attributes:
        subset: part of the data of the model; None: test, where nothing else is named.
        test_set: of sacrebleu.
        text: plain text.
        references: plain texts that translations of ``text``, or of binary data of others, are compared with.
        segmentation: how binary data of others is segmented, as fairseq calls it.
        source_lang: language to translate from, where the model leaves a choice.
        target_lang: language to translate to, likewise.

    Raises:
        ValueError: they do not go together.
    """

    subset: str | None
    test_set: str | None
    text: Path | None
    references: list[Path]
    segmentation: str | None
    source_lang: str | None = None
    target_lang: str | None = None

    def __post_init__(self) -> None:
        """Refuse what does not go together."""
        if self.test_set and self.text:
            raise ValueError(f"--test-set {self.test_set} and --input {self.text} were both given; give one of them")
        if self.references and self.test_set:
            raise ValueError(f"--references were given, but {self.test_set} has its own; leave them out")
        for option, value in (("--subset", self.subset), ("--remove-bpe", self.segmentation)):
            if value and not self.is_of_data:
                raise ValueError(f"{option} is for the data of the model, not for --test-set or --input; leave it out")

    @property
    def part(self) -> str:
        """Return the part of the data of the model."""
        return self.subset or "test"

    @property
    def is_of_data(self) -> bool:
        """Return whether they are a part of the data of the model."""
        return not (self.test_set or self.text)

    @property
    def name(self) -> str:
        """Return what to call them in the names of folders; texts of one name in two places differ."""
        if self.text:
            return f"{self.text.stem}_{sha256(str(self.text.resolve()).encode()).hexdigest()[:8]}"
        return self.test_set or self.part


def choose(data: DataOfModel, wanted: Wanted) -> EvaluationSet:
    """Return the sentences that were asked for.

    Raises:
        ValueError: there are none of this name and direction.
    """
    if wanted.test_set or wanted.text:
        data.subword_model()  # without it, text cannot be translated
    if wanted.test_set:
        return from_sacrebleu(wanted.test_set, data.source, data.target)
    if wanted.text:
        return from_files(wanted.text, wanted.references, (data.source, data.target))
    part = wanted.part
    if data.prepared:
        if wanted.references or wanted.segmentation:
            raise ValueError(
                f"--references and --remove-bpe are for binary data of others; {data.prepared} has its own"
            )
        return from_prepared(data.text(), f"{data.name}/{part}", part, data.source, data.target)
    segmentation = wanted.segmentation or data.segmentation()
    return BinarySet(f"{data.name}/{part}", data.binary, part, segmentation, wanted.references, data.mark)


def from_sacrebleu(name: str, source: str, target: str) -> TextSet:
    """Return a test set that sacrebleu knows, and downloads.

    Raises:
        ValueError: it has no such set, not this direction, or cannot get it.
    """
    pair = f"{language_of(source)}-{language_of(target)}"
    if name not in DATASETS:
        known = ", ".join(known for known, data in sorted(DATASETS.items()) if pair in data.langpairs)
        raise ValueError(f"sacrebleu has no test set {name}; for {pair} it has: {known or 'none'}")
    if pair not in DATASETS[name].langpairs:
        pairs = ", ".join(sorted(DATASETS[name].langpairs))
        raise ValueError(f"the model translates {pair}, which {name} does not have; it has {pairs}")
    try:
        files = [Path(get_source_file(name, pair)), *map(Path, get_reference_files(name, pair))]
    except (OSError, HTTPException, tarfile.TarError, SystemExit) as error:
        reason = getattr(error, "reason", None) or error
        raise ValueError(
            f"sacrebleu cannot get the test set {name} ({reason}); check the network, or give the texts with --input "
            "and --references"
        ) from error
    # sacrebleu leaves &amp; and the like in older sets; references stay, so that scores are those of sacrebleu
    texts = [[with_characters(line) for line in lines(files[0])], *(list(raw_lines(file)) for file in files[1:])]
    try:
        check_lengths(dict(zip(map(str, files), texts, strict=True)))
    except ValueError as error:
        raise ValueError(f"{error}; remove {files[0].parent}, and sacrebleu downloads it again") from error
    return TextSet(name, texts[0], texts[1:])


def from_files(source: Path, references: list[Path], languages: tuple[str, str]) -> TextSet:
    """Return texts of the user: a sentence on each line, or SGML or XML of a campaign, one file of which may hold all.

    Args:
        source: the sentences.
        references: texts of as many sentences.
        languages: of source and references.

    Raises:
        ValueError: a file is missing or empty, has another number of lines, or is of other languages.
    """
    files = [source, *references]
    if any(map(is_markup, files)):
        one, *others = map(Side, files, (languages[0], *[languages[1]] * len(references)))
        rows = list(zip(*(parallel_sentences(one, other) for other in (one, *others)), strict=True))
        # of each pair of the source and a text, the text; sentences that a text has no translation of are left out
        whole = [[text for _, text in row] for row in rows]
        kept = [row for row in whole if None not in row]
        if not kept:
            raise ValueError(f"{', '.join(map(str, files))} have no sentence in common")
        if len(kept) < len(whole):
            print(f"{len(whole) - len(kept)} of {len(whole)} sentences have no translation, and are left out")
        texts = [[on_one_line(text) for text in column if text is not None] for column in zip(*kept, strict=True)]
    else:
        texts = [list(raw_lines(path)) for path in files]
    check_lengths(dict(zip(map(str, files), texts, strict=True)))
    return TextSet(str(source), texts[0], texts[1:])


def from_prepared(text: Path, name: str, subset: str, source: str, target: str) -> TextSet:
    """Return a part of what ``moec prepare`` made: test as it was published, where that differs.

    Raises:
        ValueError: there is no such part, or not in this direction.
    """
    parts = (PUBLISHED_TEST, subset) if subset == "test" else (subset,)
    sides = [parallel_paths(text, part, source, target) for part in parts]
    source_file, target_file = next((pair for pair in sides if pair[0].is_file()), sides[-1])
    for path in (source_file, target_file):
        if not path.is_file():
            raise ValueError(
                f"there is no {path}; the model translates {source} to {target}, give --data of these languages and "
                "--subset train, valid or test"
            )
    found = from_files(source_file, [target_file], (source, target))
    return TextSet(name, found.source, found.references)
