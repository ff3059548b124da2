"""The report of a study: rows of all cells, means with confidence intervals, a picture; made of the cells' folders."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.figure import Figure
from scipy.special import stdtrit

from moec_fairseq.evaluate.scores import Score, markdown_table, mean_scores, write_table
from moec_fairseq.study.grid import Cell, Study
from moec_fairseq.util.progress import history

CONFIDENCE = 0.95  # of all intervals

Row = dict[str, Any]
Group = tuple[dict[str, str], list[Row]]  # labels on all axes but that of the repetitions, and the repetitions
Compact = Callable[[Sequence[Row], Sequence[str]], dict[str, str]]  # rows and columns -> cells for readers


def write_report(study: Study, cells: Sequence[Cell], out: Path) -> None:
    """Show what there is, and write it: all cells, means of those that are finished, differences, a picture.

    Raises:
        ValueError: the study asks for a column that no finished cell has.
    """
    rows = [_row(cell) for cell in cells]
    shown = [*study.axes, "state", *study.columns, "reason"]
    write_table(
        out / "cells.csv",
        [{column: _text(value) for column, value in row.items()} for row in rows],
        [{column: _text(row.get(column, ""), 4) for column in shown} for row in rows],
    )
    finished = [row for row in rows if row["state"] == "finished"]
    print(f"{len(finished)} of {len(rows)} trainings are finished; all are in {out / 'cells.csv'} and cells.md")
    if not finished:
        return
    known = {column for row in finished for column in row}
    for column in [*study.columns, *study.y]:
        if column not in known:
            raise ValueError(f"{study.path}: no training has a column {column}; they have {', '.join(sorted(known))}.")
    groups = _groups(study, rows)
    _write_means(out / "table.csv", study.columns, groups, _compact)
    print(f"means ± half of their {CONFIDENCE:.0%} confidence intervals: {out / 'table.csv'} and table.md")
    if differences := _differences(study, groups):
        _write_means(out / "differences.csv", study.columns, differences, _compact_differences)
        print(f"differences of the same {study.repeat}: {out / 'differences.csv'} and differences.md")
    if study.y:
        draw(study, groups, out / "picture.png")
        print(f"a picture of the means: {out / 'picture.png'}")


def _write_means(table: Path, columns: Sequence[str], groups: Sequence[Group], compact: Compact) -> None:
    """Write what is known of each group, and show it as ``compact`` makes it."""
    shown = [labels | compact(group, columns) for labels, group in groups]
    write_table(table, [labels | _statistics(group, columns) for labels, group in groups], shown)
    print(f"\n{markdown_table(shown)}\n")


def _text(value: Any, digits: int = 6) -> str:
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def _row(cell: Cell) -> Row:
    """Return what is known of a cell, by column."""
    note = cell.note()
    row = {**cell.labels, "state": note["state"]}
    if cell.log.exists():
        metric, larger = (
            note["settings"][f"checkpoint.{key}"]
            for key in ("best_checkpoint_metric", "maximize_best_checkpoint_metric")
        )
        row |= at_best(cell.log.read_text(encoding="utf-8", errors="replace").splitlines(), metric, larger)
    evaluations = sorted(cell.folder.glob("evaluation/*/scores.json"), key=lambda path: path.stat().st_mtime)
    if evaluations:
        row |= _scores([json.loads(path.read_text(encoding="utf-8")) for path in evaluations])
    return row | {"reason": note.get("reason", "")}


def _scores(evaluations: Sequence[Mapping[str, Any]]) -> Row:
    """Return the scores of the last evaluation; of a model of many languages, each direction and the means.

    Args:
        evaluations: what their scores.json hold, the last one at the end.
    """

    def directions(found: Mapping[str, Any]) -> tuple[str, str]:
        """Return what the evaluations in all directions of a model have in common."""
        return found["set"].removesuffix(found.get("direction") or "").rstrip(), found["model"]

    last = evaluations[-1]
    row = {key: last[key] for key in ("model", "version")} | {"set": directions(last)[0]}
    together = [found for found in evaluations if directions(found) == directions(last)]
    for found in together:
        of = f" {found['direction']}" if found.get("direction") else ""
        for name, score in found["scores"].items():
            row |= {f"{name}{of}": score["value"], f"{name}{of}'s signature": score["signature"]}
    if last.get("direction"):
        row |= mean_scores([{name: Score(**score) for name, score in found["scores"].items()} for found in together])
    return row


def at_best(lines: Iterable[str], metric: str, larger: bool) -> dict[str, float]:
    """Return what a log in JSON says of the best point of a training.

    Args:
        lines: of the log; a training that was resumed repeats updates, and the last time counts.
        metric: by which fairseq chooses the best checkpoint, such as ``loss``.
        larger: whether larger values are better.

    Returns:
        ``valid_…``: all that was logged at the best validation; ``train_…``: all that was logged of training since the
        validation before, as mean; ``updates`` until there, and ``updates_trained`` in all; ``gap``, the loss in
        validation minus that in training (the negative log-likelihood where there is one, which has no router
        losses); with experts, ``least_tokens``, those of an update that the least loaded one gets. Empty before the
        first validation.
    """
    train, valid = history(lines)
    values = {update: row.get(f"valid_{metric}", math.nan) for update, row in valid.items()}
    values = {update: value for update, value in values.items() if math.isfinite(value)}
    if not values:
        return {}
    newest_first = sorted(values, reverse=True)  # of equal ones fairseq keeps the last
    best = (max if larger else min)(newest_first, key=lambda update: values[update])
    before = max((update for update in valid if update < best), default=0)
    since = [row for update, row in train.items() if before < update <= best]
    row = {"updates": best, "updates_trained": max([*train, *valid]), **valid[best]}
    for key in dict.fromkeys(key for line in since for key in line):
        row[f"train_{key}"] = mean(line[key] for line in since if key in line)
    loss = "nll_loss" if "valid_nll_loss" in row else "loss"
    if f"train_{loss}" in row:
        row["gap"] = row[f"valid_{loss}"] - row[f"train_{loss}"]
    if "train_moe_load_min" in row:
        row["least_tokens"] = row["train_moe_load_min"] / 100 * row["train_wpb"]
    return row


def _groups(study: Study, rows: Sequence[Row]) -> list[Group]:
    """Return the rows that differ in nothing but the repetition, with their labels on the other axes."""
    axes = [axis for axis in study.axes if axis != study.repeat]
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(axis, "") for axis in axes), []).append(row)
    return [(dict(zip(axes, labels, strict=True)), group) for labels, group in groups.items()]


def _values(group: Sequence[Row], column: str) -> list[float]:
    return [float(row[column]) for row in group if row["state"] == "finished" and column in row]


def margin(values: Sequence[float]) -> float:
    """Return half of the confidence interval of the mean of repetitions, by Student's t; NaN for less than two."""
    if len(values) < 2:
        return math.nan
    quantile: float = stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)
    return quantile * stdev(values) / math.sqrt(len(values))


def _differences(study: Study, groups: Sequence[Group]) -> list[Group]:
    """Return, for all groups but a baseline's own, rows of what they have more than it in the same repetition."""
    repeat, by_labels = str(study.repeat), {tuple(labels.items()): group for labels, group in groups}
    found = []
    for baseline, (labels, group) in product(study.baselines, groups):
        base = by_labels.get(tuple((labels | baseline).items()), group)
        if base is group:
            continue
        others = {row.get(repeat): row for row in base if row["state"] == "finished"}  # one grid may lack that axis
        pairs = [
            (row, others[row.get(repeat)]) for row in group if row["state"] == "finished" and row.get(repeat) in others
        ]
        rows: list[Row] = [
            {name: float(row[name]) - float(other[name]) for name in study.columns if name in row and name in other}
            for row, other in pairs
        ]
        labels = labels | {"minus": ", ".join(baseline.values())}
        found.append((labels, [row | {"state": "finished"} for row in rows]))
    return found


def _statistics(group: Sequence[Row], columns: Sequence[str]) -> dict[str, str]:
    """Return mean, standard deviation, number and interval of each column; cells without a value do not count."""
    cells: dict[str, str] = {}
    for column in columns:
        values = _values(group, column)
        known = {"": mean(values)} if values else {}
        if len(values) > 1:
            half = margin(values)
            known |= {" sd": stdev(values), " low": mean(values) - half, " high": mean(values) + half}
        cells |= {
            f"{column}{what}": _text(known[what]) if what in known else "" for what in ("", " sd", " low", " high")
        }
        cells[f"{column} n"] = str(len(values))
    return cells


def _compact(group: Sequence[Row], columns: Sequence[str]) -> dict[str, str]:
    """Return the same for readers."""
    cells = {"n": f"{sum(row['state'] == 'finished' for row in group)} of {len(group)}"}
    for column in columns:
        values = _values(group, column)
        half = f" ± {margin(values):.2g}" if len(values) > 1 else ""
        cells[column] = f"{mean(values):.4g}{half}" if values else ""
    return cells


def _compact_differences(group: Sequence[Row], columns: Sequence[str]) -> dict[str, str]:
    """Return the differences for readers, of whom many ask whether 0 is in the interval."""
    cells = {"n": str(len(group))}
    for column in columns:
        values, half = _values(group, column), margin(_values(group, column))
        interval = f" [{mean(values) - half:.2g}, {mean(values) + half:.2g}]" if len(values) > 1 else ""
        cells[column] = f"{mean(values):.2g}{interval}" if values else ""
    return cells


def draw(study: Study, groups: Sequence[Group], path: Path) -> None:
    """Draw each column against the axis x (PNG): means, with their confidence intervals as error bars.

    There is a line for each combination of values on the other axes, those of the repetitions left out.
    """
    assert study.x is not None
    ticks = list(dict.fromkeys(labels[study.x] for labels, _ in groups))
    with suppress(ValueError):
        ticks.sort(key=float)  # numbers by size, whatever the order of the trainings
    lines: dict[str, list[tuple[int, list[Row]]]] = {}
    others = [axis for axis in study.axes if axis not in (study.x, study.repeat)]
    for labels, group in groups:
        lines.setdefault(", ".join(labels[axis] for axis in others), []).append((ticks.index(labels[study.x]), group))
    figure = Figure(figsize=(1.5 + 4 * len(study.y), 4), layout="constrained")
    panels = figure.subplots(1, len(study.y), squeeze=False)[0]
    for axes, column in zip(panels, study.y, strict=True):
        for number, (name, points) in enumerate(lines.items()):
            shift = 0.05 * (number - (len(lines) - 1) / 2)  # so that error bars stay apart
            drawn = [
                (tick + shift, values)
                for tick, group in sorted(points, key=lambda point: point[0])
                if (values := _values(group, column))
            ]
            if not drawn:
                continue  # nor a line in the legend
            axes.errorbar(
                [x for x, _ in drawn],
                [mean(values) for _, values in drawn],
                [margin(values) for _, values in drawn],
                marker="o",
                capsize=3,
                label=name,
            )
        axes.set(xlabel=study.x, ylabel=column, xticks=range(len(ticks)), xticklabels=ticks)
        axes.grid(alpha=0.3)
    if others:
        figure.legend(
            *panels[0].get_legend_handles_labels(),
            title=", ".join(others),
            fontsize="small",
            loc="outside right upper",  # where it hides no point
        )
    figure.savefig(path, dpi=120, format="png")
