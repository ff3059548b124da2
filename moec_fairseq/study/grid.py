"""What a study is: the YAML file that asks for it, the cells of its grid, and what is known of each.

The folder of a cell holds all there is to know of it: ``cell.json`` (options, state), checkpoints, logs, evaluation.
"""

import difflib
import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from moec_fairseq.__main__ import parse
from moec_fairseq.launch.configuration import as_hydra_reads
from moec_fairseq.util.files import write_json

KEYS = ("config", "overrides", "grid", "evaluate", "repeat", "baseline", "columns", "picture")

Axes = dict[str, dict[str, list[str]]]  # axis -> label of a value -> its overrides


@dataclass(frozen=True, eq=False)
class Cell:
    """A training of a study, and its evaluation.

    Attributes:
        folder: of all that belongs to it; its name says which one it is.
        labels: its value on each axis.
        overrides: KEY=VALUE for ``moec train``.
    """

    folder: Path
    labels: dict[str, str]
    overrides: list[str]

    @property
    def log(self) -> Path:
        """The log of the training, to which one that is resumed appends."""
        return self.folder / "rank-0.log"

    @property
    def output(self) -> Path:
        """What all its commands have said."""
        return self.folder / "cell.log"

    def note(self) -> dict[str, Any]:
        """Return its options and its state: unfinished, finished or failed; not started if it was never begun."""
        path = self.folder / "cell.json"
        return {"state": "not started"} | (json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {})

    def write(self, **changes: Any) -> None:
        """Change what the note says."""
        write_json(self.folder / "cell.json", self.note() | changes)


@dataclass(frozen=True)
class Study:
    """What a YAML file asks for.

    Attributes:
        path: of the file.
        config: of ``moec train``, for all cells.
        overrides: KEY=VALUE for all cells; what an axis sets wins.
        grids: the axes of each grid; the study is all cells of all of them.
        evaluate: options of ``moec evaluate``; None: no evaluation.
        repeat: axis whose values are repetitions, such as the seed; tables and pictures show their mean, and how
            certain it is.
        baselines: each of axes and their labels; all other cells are compared with those that have these, and
            otherwise their own. Empty: no comparison.
        columns: what tables show of each cell.
        x: axis along which the pictures are drawn; None: there is no picture.
        y: columns, one picture for each.
    """

    path: Path
    config: str
    overrides: list[str]
    grids: list[Axes]
    evaluate: list[str] | None
    repeat: str | None
    baselines: list[dict[str, str]]
    columns: list[str]
    x: str | None
    y: list[str]

    @property
    def axes(self) -> list[str]:
        """Names of all axes."""
        return list(dict.fromkeys(axis for grid in self.grids for axis in grid))

    def cells(self, out: Path, given: Sequence[str] = ()) -> list[Cell]:
        """Return all cells.

        Args:
            out: folder of the study.
            given: KEY=VALUE of the command line; they win over those of the file.

        Raises:
            ValueError: what was given is the option of an axis, or two cells have the same name.
        """
        cells: dict[str, Cell] = {}
        fixed = by_key([*self.overrides, *given])
        for grid in self.grids:
            for values in product(*(axis.items() for axis in grid.values())):
                labels = {axis: label for axis, (label, _) in zip(grid, values, strict=True)}
                chosen = by_key([text for _, texts in values for text in texts])
                if both := sorted(chosen.keys() & by_key(given).keys()):
                    raise ValueError(f"{both[0]} was given, but is set by an axis of {self.path}; leave it out there.")
                name = "_".join(f"{axis.rpartition('.')[2]}={label.strip('[]')}" for axis, label in labels.items())
                name = re.sub(r"[^\w.=+-]+", "_", name)  # no commas, at which fairseq-preprocess splits paths
                if name in cells or labels in (cell.labels for cell in cells.values()):
                    raise ValueError(f"{self.path}: two cells of the grid are called {name}; give them other labels.")
                cells[name] = Cell(out / name, labels, list((fixed | chosen).values()))
        return list(cells.values())


def read_study(path: Path) -> Study:
    """Return what a YAML file asks for.

    Raises:
        ValueError: the file does not make sense; says where.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a study: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a study, which has the keys {', '.join(KEYS)}.")
    _check_keys(path, content, KEYS, ("config", "grid", "columns"))
    picture = content.get("picture", {"x": None, "y": []})
    if not isinstance(picture, dict):
        raise ValueError(f"{path}: picture is {picture!r}, but must have the keys x and y.")
    _check_keys(path, picture, ("x", "y"), ("x", "y"), "picture.")
    grids = content["grid"] if isinstance(content["grid"], list) else [content["grid"]]
    study = Study(
        path,
        str(content["config"]),
        _texts(path, "overrides", content.get("overrides", [])),
        [_axes(path, grid) for grid in grids],
        _words(path, content["evaluate"]) if "evaluate" in content else None,
        content.get("repeat"),
        _baselines(path, content.get("baseline", [])),
        _texts(path, "columns", content["columns"]),
        picture["x"],
        _texts(path, "picture.y", picture["y"]),
    )
    for key, axis in (("repeat", study.repeat), ("picture.x", study.x)):
        if axis is not None and axis not in study.axes:
            raise ValueError(f"{path}: {key} is {axis!r}, but must be an axis of the grid: {', '.join(study.axes)}.")
    if study.x is not None and study.x == study.repeat:
        raise ValueError(f"{path}: picture.x is {study.x}, whose values are repetitions; give another axis.")
    for baseline in study.baselines:
        _check_baseline(study, baseline)
    return study


def _baselines(path: Path, given: Any) -> list[dict[str, str]]:
    baselines = given if isinstance(given, list) else [given]
    for baseline in baselines:
        if not isinstance(baseline, dict):
            raise ValueError(
                f"{path}: baseline is {baseline!r}, but must be axes and their labels, such as method: moe, or a list "
                "of those."
            )
    return [{str(axis): _label(label) for axis, label in baseline.items()} for baseline in baselines if baseline]


def _check_baseline(study: Study, baseline: Mapping[str, str]) -> None:
    path = study.path
    for axis, label in baseline.items():
        labels = dict.fromkeys(label for grid in study.grids for label in grid.get(axis, ()))
        if label not in labels:
            known = f"has {', '.join(labels)}" if labels else f"is no axis of the grid: {', '.join(study.axes)}"
            raise ValueError(f"{path}: baseline is {axis}: {label}, but {axis} {known}.")
    if study.repeat in (None, *baseline):
        raise ValueError(f"{path}: baseline compares the same repetitions; give repeat, another axis of the grid.")


def _check_keys(
    path: Path, content: Mapping[str, Any], known: Sequence[str], needed: Iterable[str], of: str = ""
) -> None:
    for key in content:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            raise ValueError(
                f"{path}: there is no key {of}{key}{f'; did you mean {of}{near[0]}?' if near else ''} "
                f"(known: {', '.join(known)})."
            )
    for key in needed:
        if key not in content:
            raise ValueError(f"{path}: the key {of}{key} is missing.")


def _texts(path: Path, key: str, values: Any) -> list[str]:
    """Return a list of texts, given as such or as one text."""
    values = [values] if isinstance(values, str) else values
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{path}: {key} is {values!r}, but must be a list of texts.")
    return values


def _words(path: Path, options: Any) -> list[str]:
    """Return the words of options of ``moec evaluate``, which understands them."""
    if not isinstance(options, str):
        raise ValueError(f"{path}: evaluate is {options!r}, but must be options of moec evaluate, such as --best.")
    words, said = shlex.split(options), StringIO()
    try:
        with redirect_stderr(said):
            parse(["evaluate", "--checkpoints", "x", *words])
    except SystemExit:
        reason = said.getvalue().strip().rpartition("error: ")[2]
        raise ValueError(f"{path}: evaluate is {options!r}, but must be options of moec evaluate: {reason}.") from None
    return words


def _axes(path: Path, grid: Any) -> Axes:
    if not isinstance(grid, dict) or not grid:
        raise ValueError(f"{path}: grid is {grid!r}, but must have axes, such as common.seed: [1, 2, 3].")
    axes: Axes = {}
    for axis, values in grid.items():
        axis = str(axis)
        if isinstance(values, list) and values:
            axes[axis] = {_label(value): [f"{axis}={as_hydra_reads(value)}"] for value in values}
            if len(axes[axis]) < len(values):
                raise ValueError(f"{path}: axis {axis} has a value twice: {values}.")
        elif isinstance(values, dict) and values:
            axes[axis] = {str(label): _texts(path, f"{label} of axis {axis}", texts) for label, texts in values.items()}
        else:
            raise ValueError(
                f"{path}: axis {axis} is {values!r}, but must be a list of values of an option, or for each label a "
                "list of KEY=VALUE."
            )
    return axes


def _label(value: Any) -> str:
    return value if isinstance(value, str) else as_hydra_reads(value)


def by_key(overrides: Iterable[str]) -> dict[str, str]:
    """Return overrides by their keys; a later one of the same key wins."""
    return {text.partition("=")[0].lstrip("+~"): text for text in overrides}
