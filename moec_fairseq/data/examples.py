"""The files of a GLUE task, in any of their layouts, to examples: one table for each split, all written alike.

Fields are separated by tabs, and quotes are text: sentences have them, and not always in pairs.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from moec_fairseq.data.formats.archives import EXTRACTED, download_missing, extract
from moec_fairseq.data.formats.compressed import found_as
from moec_fairseq.data.formats.text import normalise_space, raw_lines
from moec_fairseq.data.glue import Column, GlueTask, Layout, Table
from moec_fairseq.data.splits import fingerprint, split_of
from moec_fairseq.util.files import whole_texts

HELD_OUT_SHARE = 0.1  # of MRPC's training pairs: as many as GLUE takes for validation

ORDER = ("train", "valid", "valid1", "test", "test1")  # of splits

Files = dict[str, list[Path]]  # by split


@dataclass(frozen=True)
class Example:
    """What a model reads and predicts.

    Attributes:
        index: under which the prediction is submitted.
        sentences: one or two.
        label: a class or a number, as GLUE writes it; None: it is not published.
    """

    index: str
    sentences: tuple[str, ...]
    label: str | None


def read_examples(path: Path) -> Iterator[Example]:
    """Yield the examples of a table that ``write_examples`` wrote."""
    table = raw_lines(path)
    header = next(table).split("\t")
    for line in table:
        index, *fields = line.split("\t")
        label = fields.pop() if header[-1] == "label" else None
        yield Example(index, tuple(fields), label)


def read_sentences(path: Path, side: int) -> Iterator[str]:
    """Yield the first sentence of each example, or the second, where ``side`` is 1."""
    return (example.sentences[side] for example in read_examples(path))


def find_files(task: GlueTask, raw: Path) -> tuple[Layout, Files] | None:
    """Return the layout and the files that the folder ``raw``, or TASK in it, has of a task; None if there are none."""
    for folder in (raw / task.name, raw):
        for layout in task.layouts:
            files = {split: [found_as(folder / name) for name in table.files] for split, table in layout.items()}
            if files["train"][0].is_file():
                return layout, files
    return None


def raw_files(task: GlueTask, raw: Path) -> list[Path]:
    """Return the files that a task's examples are made of, there or to be downloaded."""
    found = find_files(task, raw)
    if found is None:
        return [raw / archive.file_name for archive in task.archives]
    layout, files = found
    ids = _ids_path(layout["train"], files)
    return [path for paths in files.values() for path in paths] + ([ids] if ids else [])


def _ids_path(train: Table, files: Files) -> Path | None:
    return files["train"][0].with_name(train.held_out) if train.held_out else None


def write_examples(task: GlueTask, raw: Path, out: Path) -> Counter[str]:
    """Write SPLIT.tsv for each split into ``out``; what ``raw`` lacks is downloaded.

    The columns are index, sentence1, and sentence2 for pairs, and label where labels are published.

    Returns:
        ``SPLIT: examples``, and ``SPLIT: broken rows left out`` where there were any.

    Raises:
        ValueError: files cannot be downloaded or read, or a row is not what it should be; names file and line.
    """
    extracted = out.with_name(EXTRACTED)
    found = find_files(task, raw)
    if found is None:
        archives = download_missing(task.archives, raw)
        found = find_files(task, raw) or _unzipped(task, archives[0], extracted)
    counts = _write(task, *found, out)
    shutil.rmtree(extracted, ignore_errors=True)
    return counts


def _unzipped(task: GlueTask, archive: Path, out: Path) -> tuple[Layout, Files]:
    layout = task.layouts[0]
    names = {split: [f"{task.name}/{name}" for name in table.files] for split, table in layout.items()}
    places = extract(archive, {name for members in names.values() for name in members}, out)
    return layout, {split: [places[name] for name in members] for split, members in names.items()}


def _write(task: GlueTask, layout: Layout, files: Files, out: Path) -> Counter[str]:
    ids = _ids_path(layout["train"], files)
    valid = _held_out(ids) if ids else lambda _, __: False
    tables = dict(layout) | ({"valid": layout["train"]} if ids else {})
    splits = sorted(tables, key=ORDER.index)
    counts: Counter[str] = Counter()
    with whole_texts([out / f"{split}.tsv" for split in splits]) as texts:
        places = dict(zip(splits, texts, strict=True))
        for split, place in places.items():
            label = ["label"] if tables[split].label is not None else []
            place.write("\t".join(["index", *(f"sentence{n + 1}" for n in range(task.num_sentences)), *label]) + "\n")
        for split, table in layout.items():
            for example, its_ids in _read(task, split, table, files[split], counts):
                use = "valid" if split == "train" and valid(example, its_ids) else split
                label = [] if example.label is None else [example.label]
                places[use].write("\t".join([example.index, *example.sentences, *label]) + "\n")
                counts[f"{use}: examples"] += 1
        if empty := [split for split in splits if not counts[f"{split}: examples"]]:
            raise ValueError(f"{task.name} has no example for {' and '.join(empty)}; get whole copies of its files")
    if ids:
        how = f"those of {ids}" if ids.exists() else f"held out by a hash, as there is no {ids} with those of GLUE"
        print(f"valid: {counts['valid: examples']:,} of the training examples, {how}")
    return counts


def _held_out(ids: Path) -> Callable[[Example, tuple[str, ...]], bool]:
    """Return what tells whether a training example is for validation."""
    if not ids.exists():
        return lambda example, _: split_of(fingerprint(example.sentences[0]), HELD_OUT_SHARE, ("valid",)) == "valid"
    known = {tuple(line.split("\t")) for line in raw_lines(ids)}
    return lambda _, its_ids: its_ids in known


def _read(
    task: GlueTask, split: str, table: Table, paths: Sequence[Path], counts: Counter[str]
) -> Iterator[tuple[Example, tuple[str, ...]]]:
    """Yield the examples of a split, each with the ids of its row."""
    number = 0
    for path in paths:
        parser = _Parser(task, split, table, []) if table.columns else None
        for line, row in enumerate(tqdm(raw_lines(path), desc=f"read {path.name}", unit=" rows", unit_scale=True), 1):
            if not row.strip():
                continue
            fields = row.split("\t")
            try:
                if parser is None:
                    parser = _Parser(task, split, table, fields)
                    continue
                yield parser.example(fields, number), parser.texts(fields, table.ids)
            except _BrokenRow as error:
                # A prediction is to be submitted for every test row.
                if not task.broken_rows or split.startswith("test"):
                    raise ValueError(f"{path}, line {line}: {error}") from None
                counts[f"{split}: broken rows left out"] += 1
            except ValueError as error:
                raise ValueError(f"{path}, line {line}: {error}") from None
            number += 1


class _BrokenRow(ValueError):
    """A row that lacks columns or text."""


class _Parser:
    """Makes examples of rows.

    Args:
        task: of GLUE.
        split: one of its splits.
        table: how the files of the split are laid out.
        header: names of the columns; empty if there is none.

    Raises:
        ValueError: the header lacks a column.
    """

    def __init__(self, task: GlueTask, split: str, table: Table, header: list[str]) -> None:
        self.task, self.split, self.table = task, split, table
        self.widths = table.columns or (len(header),)
        wanted = [column for column in (*table.sentences, *table.ids, table.label, table.index) if column is not None]
        for column in wanted:
            if isinstance(column, str) and column not in header:
                raise ValueError(f"the header has no column {column!r} of {task.name}; it has {', '.join(header)}")
        self.places = {column: header.index(column) if isinstance(column, str) else column - 1 for column in wanted}

    def texts(self, fields: list[str], columns: Sequence[Column]) -> tuple[str, ...]:
        """Return what a row has in these columns."""
        return tuple(fields[self.places[column]] for column in columns)

    def example(self, fields: list[str], number: int) -> Example:
        """Return what a row says; ``number`` counts them from 0.

        Raises:
            ValueError: it lacks columns or text, or its label is none of the task's.
        """
        if len(fields) not in self.widths:
            raise _BrokenRow(f"has {len(fields)} columns instead of {' or '.join(map(str, self.widths))}")
        sentences = tuple(map(normalise_space, self.texts(fields, self.table.sentences)))
        if not all(sentences) and not (self.task.broken_rows and self.split.startswith("test")):
            raise _BrokenRow("a sentence is empty; every example needs text")
        index = str(number) if self.table.index is None else self.texts(fields, [self.table.index])[0]
        label = None if self.table.label is None else self._label(self.texts(fields, [self.table.label])[0])
        return Example(index, sentences, label)

    def _label(self, text: str) -> str:
        if self.task.highest is None:
            if text not in self.task.labels:
                raise ValueError(f"the label is {text!r}, but must be one of {', '.join(self.task.labels)}")
        elif not _is_number(text) or not 0 <= float(text) <= self.task.highest:
            raise ValueError(f"the score is {text!r}, but must be a number from 0 to {self.task.highest}")
        return text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
