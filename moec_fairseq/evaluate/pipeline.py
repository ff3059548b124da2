"""The steps from checkpoints to scores."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from moec_fairseq.checkpoint.average import average as write_average
from moec_fairseq.cli.stages import Stages
from moec_fairseq.corpus.metrics import COMPOUND_SPLIT, Metrics, Score, compound_split_bleu, metrics, score
from moec_fairseq.corpus.output import write_json
from moec_fairseq.corpus.scoring import show_samples
from moec_fairseq.corpus.text import raw_lines
from moec_fairseq.evaluate.choose import choose
from moec_fairseq.evaluate.data import DataOfModel
from moec_fairseq.evaluate.model import ModelFacts, model_facts, select
from moec_fairseq.evaluate.report import add_row, comparison_table, read_table, score_table
from moec_fairseq.evaluate.sets import TextSet, check_lengths
from moec_fairseq.evaluate.significance import compare
from moec_fairseq.evaluate.translate import Search
from moec_fairseq.evaluate.translations import translated

FAIRSEQ_BLEU = "fairseq's BLEU4"
_FAIRSEQ_RESULT = re.compile(r"Generate \S+ with beam=\d+: BLEU4 = ([\d.]+), (\S+) \(BP=([\d.]+)")


def evaluate(
    checkpoints: Path,
    average: int | None,
    kind: str | None,
    best: bool,
    data: Path | None,
    subset: str,
    test_set: str | None,
    text: Path | None,
    references: list[Path],
    tokenized: bool,
    segmentation: str | None,
    beam: int,
    lenpen: float,
    max_tokens: int,
    against: Path | None,
    name: str | None,
    table: Path | None,
    samples: int,
    out: Path | None,
    cpu: bool,
) -> None:
    """Do all steps that are not done yet, and show the scores; the arguments are those of ``scripts/evaluate.sh``.

    Raises:
        ValueError: something is wrong with what was given.
    """
    if test_set and text:
        raise ValueError(f"--test-set {test_set} and --input {text} were both given; give one of them")
    if references and not text:
        raise ValueError("--references belong to --input; other sets have their own")
    if beam < 1 or max_tokens < 1 or samples < 0:
        raise ValueError(f"--beam is {beam}, --max-tokens {max_tokens}, --samples {samples}; give 1, 1 and 0 or more")
    if table:
        read_table(table)
    other = {str(against): list(raw_lines(against))} if against else {}

    selection = select(checkpoints, average, best, kind)
    fingerprint = selection.fingerprint()
    out = out or selection.folder / "evaluation" / selection.name
    out.mkdir(parents=True, exist_ok=True)
    model = out / "model.pt"
    average_step = partial(write_average, selection.paths, model, merge=True)
    Stages(out).do("model", fingerprint, average_step, [model])
    facts = model_facts(model)
    place = DataOfModel(data, facts)
    kinds = metrics(place.target, tokenized)
    wanted = choose(place, subset, test_set, text, references, segmentation)
    if isinstance(wanted, TextSet):
        check_lengths({wanted.name: wanted.source} | other)

    search = Search(beam, lenpen, max_tokens, cpu)
    folder = out / re.sub(r"\W+", "_", test_set or (text.stem if text else subset))
    folder = folder.with_name(f"{folder.name}-beam{beam}" + (f"-lenpen{lenpen:g}" if lenpen != 1 else ""))
    done = translated(wanted, model, fingerprint, facts, place, search, folder)
    known, hypotheses = done.known, done.hypotheses
    if not known.references:
        print(f"{folder}: {len(hypotheses)} translations in translations.txt; without --references there are no scores")
        return
    check_lengths({"the references": known.references[0], "the translations": hypotheses} | other)

    scores = score(hypotheses, known.references, kinds)
    scores[COMPOUND_SPLIT] = compound_split_bleu(hypotheses, known.references, place.target, tokenized)
    scores |= _score_of_fairseq(folder / "generate.log")
    row = {
        "system": name or selection.system,
        "set": known.name,
        "model": _signature(facts, len(selection.paths), search),
        "version": done.version,
    }
    show_samples({"source": known.source, "reference": known.references[0], "translation": hypotheses}, samples)
    print(score_table(scores))
    print(
        f"\n{row['system']} on {len(hypotheses)} sentences of {known.name}\n{row['model']}|moec_fairseq:{done.version}"
    )
    result = row | {
        "sentences": len(hypotheses),
        "checkpoints": [str(path) for path in selection.paths],
        "scores": {key: asdict(value) for key, value in scores.items()},
        "against": _compare(hypotheses, other, known, kinds, row["system"]),
    }
    write_json(folder / "scores.json", result)
    if table:
        values = {key: f"{value.value:.2f}" for key, value in scores.items()}
        add_row(table, row | values | {"BLEU's signature": scores["BLEU"].signature})
        print(f"a row in {table} and {table.with_suffix('.md')}")
    print(f"{folder}: translations.txt, source.txt, references*.txt, scores.json, generate.log")


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
