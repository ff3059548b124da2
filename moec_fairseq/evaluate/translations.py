"""The translations of a set, made once, with its text beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moec_fairseq.cli.stages import Stages
from moec_fairseq.cli.version import project_version
from moec_fairseq.corpus.hypotheses import read_hypotheses
from moec_fairseq.corpus.output import complete_files
from moec_fairseq.corpus.text import lines, normalise_space, raw_lines
from moec_fairseq.evaluate.data import DataOfModel
from moec_fairseq.evaluate.model import ModelFacts
from moec_fairseq.evaluate.sets import EvaluationSet, TextSet, check_words
from moec_fairseq.evaluate.translate import Search, generate


@dataclass(frozen=True)
class Translated:
    """A set and its translations.

    Attributes:
        known: the text of the set.
        hypotheses: the translation of each sentence.
        version: of this project, when it translated.
    """

    known: TextSet
    hypotheses: list[str]
    version: str


def translated(
    wanted: EvaluationSet,
    model: Path,
    fingerprint: list[Any],
    facts: ModelFacts,
    data: DataOfModel,
    search: Search,
    folder: Path,
) -> Translated:
    """Translate, unless it was done before.

    Args:
        wanted: what to translate.
        model: a checkpoint, one file.
        fingerprint: changes when the model does.
        facts: of the model.
        data: of the model.
        search: how to translate.
        folder: is there; if it has to be done, what the folder holds of earlier scores is removed.

    Raises:
        ValueError: fairseq failed, the text is still in pieces, or the model is another one since.
    """
    log, translations = folder / "generate.log", folder / "translations.txt"

    def translate() -> str:
        for stale in (translations, folder / "scores.json"):
            stale.unlink(missing_ok=True)
        numbered = wanted.numbered(data, folder / "input")
        limits = facts.longest_source, facts.cuts_sources
        task = facts.several.options if facts.several else ()
        count = generate(model, numbered, data.source, data.target, *limits, search, log, task)
        if model.stat().st_mtime_ns != facts.written:
            raise ValueError(f"{model} was replaced by another evaluation meanwhile; give the same command again")
        found = read_hypotheses(raw_lines(log), count).values()
        check_words(found)
        _write({translations: [normalise_space(line) for line in found]})
        return project_version()

    pieces = [data.prepared / "spm.model"] if data.prepared else []
    version: str = Stages(folder).do(
        "translations",
        [fingerprint, str(data.binary.resolve()), wanted.checksum(), asdict(search)],
        translate,
        [log, translations],
        [*pieces, *data.binary.glob("dict.*"), *wanted.inputs()],
    )
    return Translated(wanted.known(log), list(lines(translations)), version)


def keep_texts(known: TextSet, folder: Path) -> None:
    """Write source and references beside the translations, in the place of those of earlier scores."""
    for stale in (folder / "scores.json", *folder.glob("references*.txt")):
        stale.unlink(missing_ok=True)
    references = {folder / f"references{number or ''}.txt": text for number, text in enumerate(known.references)}
    _write({folder / "source.txt": known.source, **references})


def _write(texts: Mapping[Path, Sequence[str]]) -> None:
    with complete_files(list(texts)) as files:
        for file, text in zip(files, texts.values(), strict=True):
            file.writelines(line + "\n" for line in text)
