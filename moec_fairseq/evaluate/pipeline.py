"""The steps from checkpoints to scores."""

import re
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from moec_fairseq.checkpoint.average import average as write_average
from moec_fairseq.cli.stages import Stages
from moec_fairseq.cli.version import project_version
from moec_fairseq.corpus.hypotheses import read_hypotheses, read_sentences
from moec_fairseq.corpus.output import complete_files, write_json
from moec_fairseq.corpus.scoring import show_samples
from moec_fairseq.corpus.text import lines, normalise_space, raw_lines
from moec_fairseq.evaluate.data import DataOfModel
from moec_fairseq.evaluate.metrics import COMPOUND_SPLIT, Score, compound_split_bleu, metrics, score
from moec_fairseq.evaluate.model import ModelFacts, chosen_checkpoints, fingerprint, model_facts
from moec_fairseq.evaluate.report import add_row, check_table, comparison_table, score_table
from moec_fairseq.evaluate.sets import EvaluationSet, check_lengths
from moec_fairseq.evaluate.significance import compare
from moec_fairseq.evaluate.translate import Search, binarise, generate

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
    remove_bpe: str,
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
    if beam < 1 or max_tokens < 1:
        raise ValueError(f"--beam is {beam} and --max-tokens {max_tokens}, but neither can be below 1")
    if table:
        check_table(table)
    chosen = chosen_checkpoints(checkpoints, average, best, kind)
    folder = checkpoints if checkpoints.is_dir() else checkpoints.parent
    out = out or folder / "evaluation" / (test_set or (text.stem if text else subset)).replace("/", "_")
    out.mkdir(parents=True, exist_ok=True)
    stages = Stages(out)

    model = out / "model.pt"
    stages.do("model", fingerprint(chosen), lambda: write_average(chosen, model, merge=True))
    facts = model_facts(model)
    search = Search(beam, lenpen, max_tokens, cpu)
    place = DataOfModel(data or facts.data, facts)
    wanted = place.evaluation_set(subset, test_set, text, references)
    other = {str(against): list(lines(against))} if against else {}
    if wanted.source is not None:
        check_lengths({wanted.name: wanted.source} | other)

    settings = [str(place.binary), wanted.name, wanted.checksum(), beam, lenpen, remove_bpe]
    stages.do("translations", settings, partial(_translate, place, wanted, subset, search, remove_bpe, out))
    hypotheses = list(lines(out / "translations.txt"))
    if wanted.source is None:
        wanted = _read_by_fairseq(wanted, out)
    if not wanted.references:
        print(f"{len(hypotheses)} translations in {out / 'translations.txt'}; without --references there are no scores")
        return
    check_lengths({"the references": wanted.references[0], "the translations": hypotheses} | other)

    kinds = metrics(place.target, tokenized)
    scores = score(hypotheses, wanted.references, kinds)
    scores[COMPOUND_SPLIT] = compound_split_bleu(hypotheses, wanted.references, place.target, tokenized)
    scores |= _score_of_fairseq(out / "generate.log")
    signature = _signature(facts, len(chosen), search)
    system = name or (checkpoints.name if checkpoints.is_dir() else checkpoints.stem)

    show_samples({"source": wanted.source or [], "reference": wanted.references[0], "translation": hypotheses}, samples)
    print(score_table(scores))
    print(f"\n{system} on {len(hypotheses)} sentences of {wanted.name}; {signature}")
    result: dict[str, Any] = {
        "system": system,
        "set": wanted.name,
        "sentences": len(hypotheses),
        "signature": signature,
        "checkpoints": [str(path) for path in chosen],
        "scores": {key: asdict(value) for key, value in scores.items()},
    }
    for file, translations in other.items():
        comparisons = compare(hypotheses, translations, wanted.references, kinds)
        print(f"\n{comparison_table(comparisons, system, file)}")
        result["against"] = {"file": file, **{key: asdict(value) for key, value in comparisons.items()}}
    write_json(out / "scores.json", result)
    if table:
        values = {key: f"{value.value:.2f}" for key, value in scores.items()}
        add_row(table, {"system": system, "set": wanted.name, **values, "signature": signature})
        print(f"a row in {table} and {table.with_suffix('.md')}")
    print(f"{out}: translations.txt, source.txt, references*.txt, scores.json, model.pt, generate.log")


def _translate(
    data: DataOfModel, wanted: EvaluationSet, subset: str, search: Search, remove_bpe: str, out: Path
) -> None:
    binary = data.binary
    if wanted.source is not None:
        assert data.prepared is not None
        binary = binarise(
            wanted.source, data.prepared / "spm.model", data.binary, data.source, data.target, out / "input"
        )
        subset, remove_bpe = "test", "sentencepiece"
    log = out / "generate.log"
    generate(out / "model.pt", binary, subset, data.source, data.target, remove_bpe, search, log)
    found = read_hypotheses(raw_lines(log)).values()
    texts = {"translations.txt": list(found)}
    if wanted.source is None:
        known = read_sentences(raw_lines(log), "S"), read_sentences(raw_lines(log), "T")
        texts |= {name: list(side.values()) for name, side in zip(("source.txt", "references.txt"), known, strict=True)}
    else:
        texts["source.txt"] = wanted.source
        for number, reference in enumerate(wanted.references):
            texts[f"references{number or ''}.txt"] = reference
    with complete_files([out / name for name in texts]) as files:
        for file, text in zip(files, texts.values(), strict=True):
            file.writelines(normalise_space(line) + "\n" for line in text)


def _read_by_fairseq(wanted: EvaluationSet, out: Path) -> EvaluationSet:
    """Return the set with the sentences that fairseq has printed."""
    path = out / "references.txt"
    references = [list(lines(path))] if path.stat().st_size else []
    return EvaluationSet(wanted.name, list(lines(out / "source.txt")), references)


def _score_of_fairseq(log: Path) -> dict[str, Score]:
    """Return the score that fairseq-generate prints at its end, of tokens as they are in the data."""
    found = _FAIRSEQ_RESULT.search(log.read_text(encoding="utf-8"))
    if found is None:
        return {}
    return {FAIRSEQ_BLEU: Score(float(found[1]), f"fairseq-generate|{found[2]}|BP:{found[3]}")}


def _signature(facts: ModelFacts, count: int, search: Search) -> str:
    """Return what reproduces the translations, as sacreBLEU's signatures do for the scores."""
    values = {
        **facts.facts, "checkpoints": count, "beam": search.beam, "lenpen": f"{search.lenpen:g}",
        "moec_fairseq": project_version(),
    }  # fmt: skip
    return "|".join(f"{key}:{value}" for key, value in values.items())
