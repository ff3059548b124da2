"""Scores of translations, each with its signature, comparisons of systems, and tables of both."""

import csv
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER
from sacrebleu.significance import PairedTest
from sacremoses import MosesTokenizer
from tabulate import tabulate

from moec_fairseq.data.languages import CHINESE, WITHOUT_BLANKS, language_of
from moec_fairseq.util.files import alone_with, whole_texts

USUAL = ("bleu", "chrf", "chrf++", "ter")
COMET = "comet"
METRICS = (*USUAL, "spbleu", COMET)  # as --metrics names them
_TOKENIZERS = {**dict.fromkeys(CHINESE, "zh"), "ja": "ja-mecab", "ko": "ko-mecab"}  # of BLEU
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


def read_metrics(names: str) -> list[str]:
    """Return what ``--metrics`` names, each once.

    Raises:
        ValueError: there is no such metric.
    """
    chosen = list(dict.fromkeys(names.split(",")))
    for name in chosen:
        if name not in METRICS:
            raise ValueError(f"--metrics is {names}, but there is no {name or 'empty name'}; give {', '.join(METRICS)}")
    return chosen


def has_words(target: str, tokenized: bool) -> bool:
    """Tell whether text has blanks between words: its language has, or it is tokenised."""
    return tokenized or language_of(target) not in WITHOUT_BLANKS


def metrics(target: str, tokenized: bool, names: Sequence[str] = USUAL) -> dict[str, Callable[[], Any]]:
    """Return metrics of sacreBLEU by name, as its users compute them for this language.

    BLEU tokenises by language, and counts characters where sacreBLEU has no tokeniser for a language without blanks;
    TER, which moves words, counts characters of Chinese and Japanese, and is left out for others without blanks.

    Args:
        target: language of the translations.
        tokenized: the text is tokenised, and BLEU takes it as it is.
        names: of ``METRICS``; COMET is none of sacreBLEU.

    Raises:
        ValueError: the tokeniser for this language is not installed or cannot be fetched, or no metric is left.
    """
    language = language_of(target)
    words = has_words(target, tokenized)
    tokenizer = "none" if tokenized else _TOKENIZERS.get(language, "13a" if words else "char")
    made: dict[str, tuple[str, Callable[[], Any]]] = {
        "bleu": ("BLEU", partial(BLEU, tokenize=tokenizer, force=tokenized)),
        "chrf": ("chrF", CHRF),
        "chrf++": ("chrF++", partial(CHRF, word_order=2)),
        "ter": ("TER", TER if words else partial(TER, normalized=True, asian_support=True)),
        "spbleu": ("spBLEU", partial(BLEU, tokenize="flores200")),
    }
    chosen = [name for name in names if name in made and (name != "ter" or words or language in _TOKENIZERS)]
    if not chosen and COMET not in names:
        raise ValueError(
            f"TER counts words, but {target} has no blanks between them; give other --metrics, such as chrf"
        )
    for name in chosen:
        try:
            made[name][1]()
        except (RuntimeError, ImportError, OSError) as error:
            needed = (
                f'BLEU of {target} needs a tokeniser that is not there; pip install "sacrebleu[{language}]" gets it'
            )
            if name == "spbleu":
                needed = (
                    f"sacreBLEU cannot get the subwords of spBLEU ({error}); check the network, or leave out spbleu"
                )
            raise ValueError(needed) from error
    return dict(made[name] for name in chosen)


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
    comparisons = {}
    for name, make in chosen.items():
        # one by one, since the test knows BLEU and spBLEU by the same name
        signatures, results = PairedTest(systems, {name: make()}, references, "bs", BOOTSTRAP_SAMPLES)()
        ((full_name, signature),) = signatures.items()  # such as chrF2
        found: list[Any] = results[full_name]  # of both systems, in their order
        theirs, ours = map(Estimate.of, found)
        # sacreBLEU counts resamples that differ by more, of which there are none where nothing differs
        p_value = 1.0 if ours == theirs else round(float(found[1].p_value), 4)
        comparisons[name] = Comparison(ours, theirs, p_value, str(signature))
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
        same = [old for old in rows if all(old.get(key, "") == row[key] for key in IDENTITY if key in row)]
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
