"""What is translated, and what the translations are compared with."""

import urllib.error
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from sacrebleu.dataset import DATASETS
from sacrebleu.utils import get_reference_files, get_source_file

from moec_fairseq.corpus.output import parallel_paths
from moec_fairseq.corpus.text import lines
from moec_fairseq.prepare.texts import AS_PUBLISHED


@dataclass(frozen=True)
class EvaluationSet:
    """Sentences to translate.

    Attributes:
        name: of the set, for tables.
        source: the sentences; None: those of the binary data, which only fairseq reads.
        references: texts of as many sentences, none if there are none, or if fairseq reads them.
    """

    name: str
    source: list[str] | None
    references: list[list[str]]

    def checksum(self) -> str | None:
        """Return what changes when the sentences do."""
        return None if self.source is None else sha256("\n".join(self.source).encode()).hexdigest()


def from_sacrebleu(name: str, source: str, target: str) -> EvaluationSet:
    """Return a test set that sacrebleu knows, and downloads.

    Raises:
        ValueError: it has no such set, not this direction, or cannot get it.
    """
    pair = f"{source}-{target}"
    if name not in DATASETS:
        known = ", ".join(known for known, data in sorted(DATASETS.items()) if pair in data.langpairs)
        raise ValueError(f"sacrebleu has no test set {name}; for {pair} it has: {known or 'none'}")
    if pair not in DATASETS[name].langpairs:
        pairs = ", ".join(sorted(DATASETS[name].langpairs))
        raise ValueError(f"the model translates {pair}, which {name} has not; it has {pairs}")
    try:
        files = [get_source_file(name, pair), *get_reference_files(name, pair)]
    except (OSError, urllib.error.URLError, SystemExit) as error:
        reason = getattr(error, "reason", None) or error
        raise ValueError(
            f"sacrebleu cannot get the test set {name} ({reason}); check the network, or give the "
            "texts with --input and --references"
        ) from error
    texts = [list(lines(Path(file))) for file in files]
    return EvaluationSet(name, texts[0], texts[1:])


def from_files(source: Path, references: list[Path]) -> EvaluationSet:
    """Return texts of the user.

    Raises:
        ValueError: a file is missing or empty, or has another number of lines.
    """
    texts = {path: list(lines(path)) for path in (source, *references)}
    check_lengths({str(path): text for path, text in texts.items()})
    return EvaluationSet(source.stem, texts[source], [texts[path] for path in references])


def from_prepared(folder: Path, subset: str, source: str, target: str) -> EvaluationSet:
    """Return a part of what ``prepare_data.sh`` made: test as it was published, others normalised.

    Raises:
        ValueError: there is no such part, or not in this direction.
    """
    name = f"{subset}{AS_PUBLISHED}" if subset == "test" else subset
    paths = parallel_paths(folder / "text", name, source, target)
    for path in paths:
        if not path.is_file():
            raise ValueError(
                f"there is no {path}; the model translates {source} to {target}, give --data of these languages and "
                "--subset train, valid or test"
            )
    found = from_files(paths[0], [paths[1]])
    return EvaluationSet(f"{folder.name}/{subset}", found.source, found.references)


def check_lengths(texts: Mapping[str, Sequence[str]]) -> None:
    """Raise ValueError unless all texts, by what they are, have the same number of sentences."""
    if len({len(text) for text in texts.values()}) > 1:
        counts = ", ".join(f"{name} has {len(text)}" for name, text in texts.items())
        raise ValueError(f"texts have different numbers of lines: {counts}; line N of each must be the same sentence")
