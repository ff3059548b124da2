"""The steps from checkpoints to scores."""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from moec_fairseq.__main__ import call
from moec_fairseq.data.formats.text import lines, normalise_space, raw_lines
from moec_fairseq.evaluate.comet import Comet
from moec_fairseq.evaluate.generate import Search, generate, read_hypotheses
from moec_fairseq.evaluate.glue import evaluate_glue
from moec_fairseq.evaluate.model import (
    FINE_TUNED,
    DataOfModel,
    ModelFacts,
    Selection,
    check_translates,
    data_of_directions,
    model_facts,
    select,
)
from moec_fairseq.evaluate.scores import (
    COMET,
    Metrics,
    Score,
    add_row,
    compare,
    comparison_table,
    direction_table,
    has_words,
    mean_scores,
    metrics,
    read_metrics,
    read_table,
    score,
    score_table,
    show_samples,
    tokenised_bleu,
)
from moec_fairseq.evaluate.sets import EvaluationSet, TextSet, Wanted, check_lengths, choose
from moec_fairseq.util.files import alone_with, whole_texts, write_json
from moec_fairseq.util.stages import Stages
from moec_fairseq.util.version import project_version

FAIRSEQ_BLEU = "fairseq's BLEU4"
_FAIRSEQ_RESULT = re.compile(r"Generate \S+ with beam=\d+: BLEU4 = ([\d.]+), (\S+) \(BP=([\d.]+)")


@dataclass(frozen=True)
class Report:
    """What is shown beside the scores.

    Attributes:
        name: of the system, in tables; None: the end of the folder of its checkpoints.
        table: file of results that gets a row.
        against: translations of another system to compare with.
        samples: translations to show.

    Raises:
        ValueError: ``table`` is not one of results, or ``samples`` is below 0.
    """

    name: str | None
    table: Path | None
    against: Path | None
    samples: int

    def __post_init__(self) -> None:
        """Refuse what cannot be shown, before anything is done."""
        if self.samples < 0:
            raise ValueError(f"--samples is {self.samples}; give 0 or more")
        if self.table:
            read_table(self.table)

    def other_translations(self) -> dict[str, list[str]]:
        """Return the translations to compare with, by their file."""
        return {str(self.against): list(raw_lines(self.against))} if self.against else {}


Group = TypeVar("Group", Wanted, Search, Report)


def evaluate(**options: Any) -> None:
    """Do all steps that are not done yet, and show the scores: of translations, or of GLUE for fine-tuned models.

    Args:
        options: those of ``moec evaluate``.

    Raises:
        ValueError: something is wrong with what was given.
    """
    selection = select(*(options[name] for name in ("checkpoints", "average", "best", "kind")))
    if (task := selection.task()) == FINE_TUNED:
        call(evaluate_glue, "evaluate", "a model that was fine-tuned for GLUE", options)
    else:
        check_translates(selection.paths[0], task)
        evaluate_translations(selection, options)


def evaluate_translations(selection: Selection, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Translate and score; a model of many languages in each direction that the options leave open.

    Args:
        selection: the checkpoints.
        options: of ``moec evaluate``: ``data``, ``out``, ``tokenized``, ``metrics``, ``comet_model``, attributes of
            ``Wanted``, ``Search`` and ``Report``.

    Returns:
        what scores.json holds, for each direction; none without references.

    Raises:
        ValueError: something is wrong with what was given.
    """

    def group(kind: type[Group]) -> Group:
        return kind(**{field.name: options[field.name] for field in fields(kind) if field.name in options})

    wanted, search, report = group(Wanted), group(Search), group(Report)
    tokenized, out = options["tokenized"], options["out"] or selection.folder / "evaluation" / selection.name
    if tokenized and wanted.test_set:
        raise ValueError(f"--tokenized was given, but {wanted.test_set} is not tokenised; leave it out")
    if wanted.text and not wanted.references and (report.table or report.against):
        raise ValueError("--table and --against need scores, and scores need --references; give them, too")
    other = report.other_translations()
    fingerprint = selection.fingerprint()
    model = selection.write(out)
    facts = model_facts(model)
    place, *others = data_of_directions(options["data"], facts, wanted.source_lang, wanted.target_lang)
    if others:
        return _evaluate_each([place, *others], selection, options)
    kinds, comet = scorers(place.target, options)
    chosen = choose(place, wanted)
    if isinstance(chosen, TextSet):
        check_lengths({chosen.name: chosen.source} | other)

    folder = out / _folder_name(wanted, place, facts, search)
    folder.mkdir(exist_ok=True)
    with alone_with(folder):
        done = translated(chosen, model, fingerprint, facts, place, search, folder)
        known, hypotheses = done.known, done.hypotheses
        check_lengths({"the source": known.source, "the translations": hypotheses} | other)
        _check_same_source(report.against, known)
        keep_texts(known, folder)
        if not known.references:
            print(f"{folder}: {len(hypotheses)} translations in translations.txt; no scores without --references")
            return []

        scores = score(hypotheses, known.references, kinds)
        if "BLEU" in kinds and has_words(place.target, tokenized):
            scores |= tokenised_bleu(hypotheses, known.references, place.target, tokenized)
            scores |= _score_of_fairseq(folder / "generate.log")
        if comet:
            scores["COMET"] = comet.score(known.source, hypotheses, known.references, search.cpu)
        row = {
            "system": report.name or selection.system,
            "set": f"{known.name} {place.chosen}".rstrip(),
            "model": _signature(facts, len(selection.paths), search),
            "version": done.version,
        }
        show_samples(
            {"source": known.source, "reference": known.references[0], "translation": hypotheses}, report.samples
        )
        print(score_table(scores))
        print(f"\n{row['system']} on {len(hypotheses)} sentences of {row['set']}")
        print(f"{row['model']}|moec_fairseq:{done.version}")
        result = row | {
            "direction": place.chosen,
            "sentences": len(hypotheses),
            "checkpoints": [str(path) for path in selection.paths],
            "scores": {key: asdict(value) for key, value in scores.items()},
            "against": _compare(hypotheses, other, known, kinds, row["system"]),
        }
        write_json(folder / "scores.json", result)
        if report.table:
            values = {key: f"{value.value:.2f}" for key, value in scores.items()}
            values |= {"BLEU's signature": scores["BLEU"].signature} if "BLEU" in scores else {}
            add_row(report.table, row | values)
            print(f"a row in {report.table} and {report.table.with_suffix('.md')}")
        print(f"{folder}: translations.txt, source.txt, references*.txt, scores.json, generate.log")
    return [result]


def scorers(target: str, options: Mapping[str, Any]) -> tuple[Metrics, Comet | None]:
    """Return the metrics of sacreBLEU that were asked for, and COMET if it was.

    Args:
        target: language of the translations.
        options: of ``moec evaluate``: ``metrics``, ``tokenized``, ``comet_model``.

    Raises:
        ValueError: there is no such metric, or what it needs is not installed or cannot be fetched.
    """
    names = read_metrics(options["metrics"])
    kinds = metrics(target, options["tokenized"], names)
    return kinds, Comet(options["comet_model"]) if COMET in names else None


def _evaluate_each(
    places: Sequence[DataOfModel], selection: Selection, options: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Evaluate a model of many languages in each direction, and show all scores and their means.

    Raises:
        ValueError: something was given that is for a single direction.
    """
    if options["text"] or options["test_set"] or options["against"]:
        raise ValueError(
            f"--input, --test-set and --against are for one direction, but the model translates {places[0].many}; "
            "choose with --source-lang and --target-lang"
        )
    results = []
    for place in places:
        print(f"\n{place.chosen}", flush=True)
        one = {**options, "source_lang": place.source, "target_lang": place.target}
        results += evaluate_translations(selection, one)
    directions = [place.chosen for place in places]
    scores = {
        chosen: {key: Score(**value) for key, value in result["scores"].items()}
        for chosen, result in zip(directions, results, strict=True)
    }
    means = mean_scores(list(scores.values()))
    print(f"\n{direction_table(scores, means)}")
    if table := options["table"]:
        name, _, _ = results[0]["set"].rpartition(" ")
        row = {key: results[0][key] for key in ("system", "model", "version")} | {
            "set": f"{name} mean of {', '.join(directions)}"
        }
        add_row(table, row | {key: f"{value:.2f}" for key, value in means.items()})
    return results


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
        ValueError: fairseq failed, the text is still segmented, or the model is another one since.
    """
    log, translations = folder / "generate.log", folder / "translations.txt"

    def translate() -> str:
        for stale in (translations, folder / "scores.json"):
            stale.unlink(missing_ok=True)
        binarised = wanted.binarised(data, folder / "input")
        count = generate(model, facts, binarised, data.source, data.target, search, log, sys.stdout)
        if model.stat().st_mtime_ns != facts.written:
            raise ValueError(f"{model} was replaced by another evaluation meanwhile; give the same command again")
        _write({translations: [normalise_space(best.text) for best, *_ in read_hypotheses(raw_lines(log), count)]})
        return project_version()

    subword_model = [data.subword_model()] if data.prepared else []
    version: str = Stages(folder).do(
        "translations",
        [fingerprint, str(data.binary.resolve()), wanted.checksum(), asdict(search)],
        translate,
        [log, translations],
        [*subword_model, *data.binary.glob("dict.*"), *wanted.inputs()],
    )
    return Translated(wanted.known(log), list(lines(translations)), version)


def keep_texts(known: TextSet, folder: Path) -> None:
    """Write source and references beside the translations, in the place of those of earlier scores."""
    for stale in (folder / "scores.json", *folder.glob("references*.txt")):
        stale.unlink(missing_ok=True)
    references = {folder / f"references{number or ''}.txt": text for number, text in enumerate(known.references)}
    _write({folder / "source.txt": known.source, **references})


def _write(texts: Mapping[Path, Sequence[str]]) -> None:
    with whole_texts(list(texts)) as files:
        for file, text in zip(files, texts.values(), strict=True):
            file.writelines(line + "\n" for line in text)


def _folder_name(wanted: Wanted, place: DataOfModel, facts: ModelFacts, search: Search) -> str:
    """Return a name that no other sentences, data or search have."""
    other_data = wanted.is_of_data and place.binary.resolve() != facts.data.resolve()
    name = re.sub(r"\W+", "_", f"{place.name}_{wanted.name}" if other_data else wanted.name)
    name += f"-{place.chosen}" if place.chosen else ""
    return f"{name}-beam{search.beam}" + (f"-lenpen{search.lenpen:g}" if search.lenpen != 1 else "")


def _check_same_source(against: Path | None, known: TextSet) -> None:
    """Raise ValueError if translations that this project made are of other sentences."""
    source = against and against.with_name("source.txt")
    if source and source.is_file() and list(raw_lines(source)) != known.source:
        raise ValueError(
            f"--against {against} are translations of {source}, which are other sentences than {known.name}"
        )


def _score_of_fairseq(log: Path) -> dict[str, Score]:
    """Return the score that fairseq-generate prints at its end, of tokens as they are in the data."""
    found = _FAIRSEQ_RESULT.search(log.read_text(encoding="utf-8"))
    if found is None:
        return {}
    return {FAIRSEQ_BLEU: Score(float(found[1]), f"fairseq-generate|{found[2]}|BP:{found[3]}")}


def _signature(facts: ModelFacts, count: int, search: Search) -> str:
    """Return what reproduces the translations, as sacreBLEU's signatures do for the scores."""
    values = {**facts.signature, "checkpoints": count, "beam": search.beam, "lenpen": f"{search.lenpen:g}"}
    return "|".join(f"{key}:{value}" for key, value in values.items())


def _compare(
    hypotheses: Sequence[str], other: Mapping[str, Sequence[str]], known: TextSet, kinds: Metrics, system: str
) -> dict[str, Any]:
    """Show and return how the system differs from others, by the files of their translations."""
    found = {}
    for file, translations in other.items():
        comparisons = compare(hypotheses, translations, known.references, kinds)
        print(f"\n{comparison_table(comparisons, system, file)}")
        found[file] = {key: asdict(value) for key, value in comparisons.items()}
    return found
