"""Scores for people and for tables."""

import csv
from collections.abc import Mapping
from pathlib import Path

from tabulate import tabulate

from moec_fairseq.cli.locks import alone_with
from moec_fairseq.corpus.metrics import Score
from moec_fairseq.corpus.output import complete_files
from moec_fairseq.evaluate.significance import Comparison

KEYS = ("system", "set", "model")
IDENTITY = (*KEYS, "BLEU's signature")  # a second row of the same takes the place of the first


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


def read_table(table: Path) -> list[dict[str, str]]:
    """Return the rows of a table of results, none if it is not there.

    Raises:
        ValueError: the name has another ending, or the file is no table of results.
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
            f"{table} is no table of results, which has columns {', '.join(KEYS)} and no row with more cells; give "
            "another --table"
        )
    return rows


def add_row(table: Path, row: Mapping[str, str]) -> None:
    """Put a row into a table of results, in the place of an older one of the same ``IDENTITY``, whose other cells stay.

    Args:
        table: FILE.csv, made if it is not there; FILE.md shows the same.
        row: values by column.

    Raises:
        ValueError: the file is no table of results.
    """
    with alone_with(table):
        rows = read_table(table)
        same = [old for old in rows if all(old.get(key, "") == row.get(key, "") for key in IDENTITY)]
        if same:
            same[0].update(row)
        else:
            rows.append(dict(row))
        columns = list(dict.fromkeys(column for old in rows for column in old))
        with complete_files([table, table.with_suffix(".md")]) as (text, markdown):
            writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            cells = [[old.get(column, "").replace("|", "\\|") for column in columns] for old in rows]
            markdown.write(tabulate(cells, headers=columns, tablefmt="github", disable_numparse=True) + "\n")
