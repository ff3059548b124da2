"""Scores for people and for tables."""

import csv
from collections.abc import Mapping
from pathlib import Path

from tabulate import tabulate

from moec_fairseq.corpus.output import complete_files
from moec_fairseq.evaluate.metrics import Score
from moec_fairseq.evaluate.significance import Comparison

KEYS = ("system", "set")


def score_table(scores: Mapping[str, Score]) -> str:
    """Return the scores with their signatures."""
    rows = [[name, f"{score.value:.2f}", score.signature] for name, score in scores.items()]
    return tabulate(rows, headers=["metric", "score", "signature"], tablefmt="simple", disable_numparse=True)


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


def add_row(table: Path, row: Mapping[str, str]) -> None:
    """Put a row into a table of results, in the place of an older one of the same system and set.

    Args:
        table: FILE.csv, made if it is not there; FILE.md shows the same.
        row: values by column; ``KEYS`` say which row it is.

    Raises:
        ValueError: the file has another ending, or is no table of results.
    """
    rows: list[dict[str, str]] = []
    if table.is_file():
        with table.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        if any(key not in old for old in rows for key in KEYS):
            raise ValueError(
                f"{table} has no columns {' and '.join(KEYS)}, so it is no table of results; give another --table"
            )
    identity = [row[key] for key in KEYS]
    place = next((n for n, old in enumerate(rows) if [old[key] for key in KEYS] == identity), len(rows))
    rows[place : place + 1] = [dict(row)]
    columns = list(dict.fromkeys(column for old in rows for column in old))
    with complete_files([table, table.with_suffix(".md")]) as (text, markdown):
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        cells = [[old.get(column, "").replace("|", "\\|") for column in columns] for old in rows]
        markdown.write(tabulate(cells, headers=columns, tablefmt="github", disable_numparse=True) + "\n")


def check_table(table: Path) -> None:
    """Raise ValueError unless a table of results can have this name."""
    if table.suffix != ".csv":
        raise ValueError(f"--table is {table}, but must end in .csv; the same is written as Markdown beside it")
