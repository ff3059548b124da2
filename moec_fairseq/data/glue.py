"""The tasks of GLUE: a table of what each predicts, how it is scored, and how its files are laid out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from moec_fairseq.__main__ import ROOT
from moec_fairseq.data.formats.archives import Archive

TASKS = ROOT / "data" / "glue" / "tasks.yaml"

Column = str | int  # a name of the header, or a number from 1 in files without one


@dataclass(frozen=True)
class Table:
    """How the files of a split are laid out.

    Attributes:
        files: their names; they are read one after the other.
        sentences: columns of the one or two texts.
        label: column; None: there are no labels.
        index: column of the number under which a prediction is submitted; None: the row, from 0.
        columns: how many a row may have, in files without a header; empty: the first line is the header.
        held_out: file with the ids of the training rows that are for validation; without it, a tenth of them is.
        ids: columns that are compared with it.
    """

    files: tuple[str, ...]
    sentences: tuple[Column, ...]
    label: Column | None = None
    index: Column | None = None
    columns: tuple[int, ...] = ()
    held_out: str | None = None
    ids: tuple[Column, ...] = ()


Layout = Mapping[str, Table]  # by split


@dataclass(frozen=True)
class GlueTask:
    """A task of GLUE.

    Attributes:
        name: as GLUE writes it.
        archives: what to download.
        layouts: of the files; the first is that of GLUE's site.
        metrics: of accuracy, f1, mcc, pearson, spearman; the score of the task is their mean.
        submission: name of the file to submit, by test split.
        labels: in the order of fairseq's classes; the last is the positive one. Empty: a number is predicted.
        highest: of these numbers, which begin at 0; the model is trained on numbers from 0 to 1.
        titles: of splits where there are several for validation: matched, mismatched.
        broken_rows: files have rows with missing columns or without text, which are left out of training and
            validation, and counted.
    """

    name: str
    archives: tuple[Archive, ...]
    layouts: tuple[Layout, ...]
    metrics: tuple[str, ...]
    submission: Mapping[str, str]
    labels: tuple[str, ...] = ()
    highest: float | None = None
    titles: Mapping[str, str] = field(default_factory=dict)
    broken_rows: bool = False

    @property
    def regression(self) -> bool:
        """Tell whether a number is predicted instead of a class."""
        return not self.labels

    @property
    def num_classes(self) -> int:
        """Return how many values the model's head has."""
        return len(self.labels) or 1

    def target(self, label: str) -> str:
        """Return what the model is trained on for a label: a class, or a number from 0 to 1."""
        return label if self.highest is None else str(float(label) / self.highest)

    @property
    def sets(self) -> dict[str, str]:
        """Return the splits of the site's layout that are evaluated or submitted, each with its title or nothing."""
        return {split: self.titles.get(split, "") for split in self.layouts[0] if split != "train"}

    @property
    def num_sentences(self) -> int:
        """Return 2 for pairs, 1 for single sentences."""
        return len(self.layouts[0]["train"].sentences)


@lru_cache
def read_tasks(path: Path = TASKS) -> dict[str, GlueTask]:
    """Return all tasks by name, as ``data/glue/tasks.yaml`` describes them."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {name: _task(name, values) for name, values in content.items()}


def _task(name: str, values: dict[str, Any]) -> GlueTask:
    archives = tuple(Archive(name, **archive) for archive in values.pop("archives"))
    layouts = tuple(
        {split: Table(**{key: _frozen(value) for key, value in table.items()}) for split, table in layout.items()}
        for layout in values.pop("layouts")
    )
    return GlueTask(name, archives, layouts, **{key: _frozen(value) for key, value in values.items()})


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def find_task(name: str) -> GlueTask:
    """Return a task by its name, in capitals or not.

    Raises:
        ValueError: there is none; lists them.
    """
    tasks = read_tasks()
    by_name = {task.lower(): task for task in tasks}
    if name.lower() not in by_name:
        raise ValueError(f"there is no GLUE task {name!r}; give one of {', '.join(tasks)}")
    return tasks[by_name[name.lower()]]
