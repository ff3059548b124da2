"""Scores of translations, each with its signature, comparisons of systems, and tables of both."""

import csv
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER
from sacrebleu.significance import PairedTest
from sacremoses import MosesTokenizer
from tabulate import tabulate

from moec_fairseq.data.languages import language_of
from moec_fairseq.util.files import alone_with, whole_texts

TOKENISED = "BLEU, tokenised"
COMPOUND_SPLIT = "BLEU, compounds split"
BOOTSTRAP_SAMPLES = 1000
KEYS = ("system", "set", "model")
IDENTITY = (*KEYS, "BLEU's signature")  # a second row of the same replaces the first

Metrics = Mapping[str, Callable[[], Any]]
References = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Score:
    """A score from 0 to 100 (TER: from 0, less is better), and its signature."""

    value: float
    signature: str


def metrics(target: str, tokenized: bool) -> dict[str, Callable[[], Any]]:
    """Return sacreBLEU's metrics by name.

    Args:
        target: language of the translations, which decides how BLEU tokenises.
        tokenized: the text is tokenised, and BLEU takes it as it is.

    Raises:
        ValueError: the tokeniser for this language is not installed.
    """

    def bleu() -> BLEU:
        return BLEU(tokenize="none", force=True) if tokenized else BLEU(trg_lang=language_of(target))

    try:
        bleu()
    except (RuntimeError, ImportError) as error:
        raise ValueError(f"sacrebleu cannot tokenise {target}: {str(error).strip()}") from error
    return {"BLEU": bleu, "chrF": CHRF, "TER": TER}


def score(hypotheses: Sequence[str], references: References, chosen: Metrics) -> dict[str, Score]:
    """Score translations.

    Args:
        hypotheses: one for each sentence.
        references: one or several texts of as many sentences.
        chosen: of ``metrics``.
    """
    scores = {}
    for name, make in chosen.items():
        metric = make()
        value = metric.corpus_score(hypotheses, references).score
        scores[name] = Score(round(value, 2), str(metric.get_signature()))
    return scores


def split_compounds(text: str) -> str:
    """Make three tokens of a word with a hyphen, as ``compound_split_bleu.sh`` of fairseq and tensor2tensor do."""
    return re.sub(r"(\S)-(\S)", r"\1 ##AT##-##AT## \2", text)


def tokenised_bleu(hypotheses: Sequence[str], references: References, target: str, tokenized: bool) -> dict[str, Score]:
    """Return what papers before sacreBLEU report: BLEU of tokenised text, for German with words with hyphens split.

    Args:
        hypotheses: one for each sentence.
        references: one or several texts of as many sentences.
        target: their language, for Moses' tokeniser.
        tokenized: they are tokenised.
    """
    tokens = (lambda text: text) if tokenized else _moses(language_of(target))
    tokenizer = "as given" if tokenized else f"sacremoses-{version('sacremoses')}"
    texts = [[tokens(line) for line in text] for text in (hypotheses, *references)]

    def bleu(texts: Sequence[Sequence[str]], changed: str = "") -> Score:
        metric = BLEU(tokenize="none", force=True, smooth_method="none")
        value = metric.corpus_score(texts[0], texts[1:]).score
        return Score(round(value, 2), f"{metric.get_signature()}|moses:{tokenizer}{changed}")

    split = [[split_compounds(line) for line in text] for text in texts]
    return {TOKENISED: bleu(texts), COMPOUND_SPLIT: bleu(split, "|compounds:split")}


def _moses(language: str) -> Callable[[str], str]:
    tokenizer = MosesTokenizer(lang=language)

    def tokens(text: str) -> str:
        tokenized: str = tokenizer.tokenize(text, return_str=True)
        return tokenized

    return tokens


@dataclass(frozen=True)
class Estimate:
    """A score, and half of its 95 % confidence interval."""

    score: float
    margin: float

    @classmethod
    def of(cls, result: Any) -> "Estimate":
        """Return what sacreBLEU has found for a system."""
        return cls(round(float(result.score), 2), round(float(result.ci), 2))


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same sentences.

    Attributes:
        ours: of the system that is evaluated.
        other: of the system that it is compared with.
        p_value: of the difference.
        signature: says how to get the same numbers again.
    """

    ours: Estimate
    other: Estimate
    p_value: float
    signature: str


def compare(
    hypotheses: Sequence[str], other: Sequence[str], references: References, chosen: Metrics
) -> dict[str, Comparison]:
    """Compare the translations of two systems by each metric."""
    systems: list[tuple[str, Sequence[str]]] = [("other", other), ("ours", hypotheses)]
    test = PairedTest(systems, {name: make() for name, make in chosen.items()}, references, "bs", BOOTSTRAP_SAMPLES)
    signatures, results = test()
    comparisons = {}
    found: dict[str, Any] = results  # of both systems, in their order
    for name, full_name in zip(chosen, signatures, strict=True):  # such as chrF, chrF2
        theirs, ours = (Estimate.of(result) for result in found[full_name])
        # sacreBLEU counts resamples that differ by more, of which there are none where nothing differs
        p_value = 1.0 if ours == theirs else round(float(found[full_name][1].p_value), 4)
        comparisons[name] = Comparison(ours, theirs, p_value, str(signatures[full_name]))
    return comparisons


def show_samples(texts: Mapping[str, Sequence[str]], samples: int, seed: int = 1) -> None:
    """Print some sentences of parallel texts, by name; an empty text is left out."""
    texts = {name: text for name, text in texts.items() if text}
    count = min(map(len, texts.values()), default=0)
    for index in sorted(random.Random(seed).sample(range(count), min(samples, count))):
        print(f"sentence {index + 1}")
        for name, text in texts.items():
            print(f"  {name:12}{text[index]}")
        print()


def score_table(scores: Mapping[str, Score]) -> str:
    """Return the scores with their signatures."""
    rows = [[name, f"{score.value:.2f}", score.signature] for name, score in scores.items()]
    return tabulate(rows, headers=["metric", "score", "signature"], tablefmt="simple", disable_numparse=True)


def mean_scores(scores: Sequence[Mapping[str, Score]]) -> dict[str, float]:
    """Return the mean of each metric that all have."""
    names = [name for name in scores[0] if all(name in others for others in scores)]
    return {name: round(sum(one[name].value for one in scores) / len(scores), 2) for name in names}


def direction_table(scores: Mapping[str, Mapping[str, Score]], means: Mapping[str, float]) -> str:
    """Return the scores of each direction and their means, and below them the signatures."""
    rows = [[direction, *(f"{of[name].value:.2f}" for name in means)] for direction, of in scores.items()]
    rows.append(["mean", *(f"{mean:.2f}" for mean in means.values())])
    directions: dict[tuple[str, str], list[str]] = {}  # by metric and signature
    for direction, of in scores.items():
        for name in means:
            directions.setdefault((name, of[name].signature), []).append(direction)
    signatures = [f"{name} of {', '.join(of)}: {signature}" for (name, signature), of in directions.items()]
    table = tabulate(rows, headers=["direction", *means], tablefmt="simple", disable_numparse=True)
    return "\n".join([table, "", *signatures])


def comparison_table(comparisons: Mapping[str, Comparison], ours: str, other: str) -> str:
    """Return the scores of two systems, with confidence intervals and p of the difference."""
    rows = [
        [
            name,
            f"{found.ours.score:.2f} ± {found.ours.margin:.2f}",
            f"{found.other.score:.2f} ± {found.other.margin:.2f}",
            f"{found.p_value:.4f}",
            found.signature,
        ]
        for name, found in comparisons.items()
    ]
    return tabulate(rows, headers=["metric", ours, other, "p", "signature"], tablefmt="simple", disable_numparse=True)


def read_table(table: Path) -> list[dict[str, str]]:
    """Return the rows of a table of results, none if it is not there.

    Raises:
        ValueError: the name has another ending, or the file is not a table of results.
    """
    if table.suffix != ".csv":
        raise ValueError(f"--table is {table}, but must end in .csv; the same is written as Markdown beside it")
    if not table.is_file():
        if (markdown := table.with_suffix(".md")).exists():
            raise ValueError(f"--table {table} would write {markdown}, which is something else; give another name")
        return []
    with table.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, restkey="", restval="")
        rows = list(reader)
    if not set(KEYS) <= set(reader.fieldnames or ()) or any("" in row for row in rows):
        raise ValueError(
            f"{table} is not a table of results, which has the columns {', '.join(KEYS)} and no row with more cells; "
            "give another --table"
        )
    return rows


def add_row(table: Path, row: Mapping[str, str]) -> None:
    """Put a row into a table of results, in the place of an older one of the same ``IDENTITY``, whose other cells stay.

    Args:
        table: FILE.csv, made if it is not there; FILE.md shows the same.
        row: values by column.

    Raises:
        ValueError: the file is not a table of results.
    """
    with alone_with(table):
        rows = read_table(table)
        same = [old for old in rows if all(old.get(key, "") == row.get(key, "") for key in IDENTITY)]
        if same:
            same[0].update(row)
        else:
            rows.append(dict(row))
        write_table(table, rows)


def write_table(
    table: Path, rows: Sequence[Mapping[str, str]], shown: Sequence[Mapping[str, str]] | None = None
) -> None:
    """Write rows, by column, to FILE.csv and as Markdown to FILE.md; a cell that a row lacks is empty.

    Args:
        table: FILE.csv.
        rows: of the table.
        shown: rows in Markdown instead, shorter ones.
    """
    with whole_texts([table, table.with_suffix(".md")]) as (text, markdown):
        write_csv(text, rows)
        markdown.write(markdown_table(rows if shown is None else shown) + "\n")


def write_csv(file: TextIO, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows, by column; a cell that a row lacks is empty."""
    writer = csv.DictWriter(file, columns_of(rows), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def columns_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the columns that any of the rows has, in the order in which they come."""
    return list(dict.fromkeys(column for row in rows for column in row))


def markdown_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return rows, by column, as Markdown."""
    columns = columns_of(rows)
    cells = [[row.get(column, "").replace("|", "\\|") for column in columns] for row in rows]
    return tabulate(cells, headers=columns, tablefmt="github", disable_numparse=True)
