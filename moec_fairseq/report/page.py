"""The page of a report: one file that needs no network, pictures inside and beside it, and the numbers beside it."""

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from moec_fairseq.evaluate.scores import columns_of, write_csv
from moec_fairseq.report.collect import COMPARED, Token
from moec_fairseq.report.information import SHUFFLES
from moec_fairseq.report.pictures import EACH, curves
from moec_fairseq.report.resemblance import GROUPINGS
from moec_fairseq.report.tables import Reported, Row, shown_words, tables
from moec_fairseq.report.words import FREQUENT
from moec_fairseq.util.files import whole_texts, write_json
from moec_fairseq.util.version import project_version

PAGE, NUMBERS = "report.html", "report.json"
AGAINST = "-against"  # ends the names of pictures of the second model


@dataclass(frozen=True)
class Picture:
    """A picture in the page.

    Attributes:
        kind: what it shows.
        caption: of which model.
        data: PNG in base64.
    """

    kind: str
    caption: str
    data: str


@dataclass(frozen=True)
class Shown:
    """What the template takes of a model, beside tables and pictures.

    Attributes:
        name: of the model.
        sentences: to show.
        stacks: names of the layers with experts, by stack.
        size: experts that have the same colour.
        groups: number of colours.
    """

    name: str
    sentences: Sequence[Any]
    stacks: Mapping[str, Sequence[str]]
    size: int
    groups: int

    @classmethod
    def of(cls, model: Reported) -> "Shown":
        """Return what is shown of a model."""
        stacks: dict[str, list[str]] = {}
        for layer in model.survey.layers:
            stacks.setdefault(layer.stack, []).append(layer.name)
        clusters = model.survey.layers[0].clusters
        size = clusters.cluster_size if clusters.num_clusters > 1 else 1
        return cls(model.name, model.survey.sentences, stacks, size, clusters.num_experts // size)

    def hover(self, stack: str, token: Token) -> str:
        """Return where each layer has sent a token, a line for each."""
        size = self.size if self.groups < self.size * self.groups else None
        return "\n".join(
            f"{layer}: expert {expert}" + (f", cluster {expert // size}" if size else "")
            for layer, expert in zip(self.stacks[stack], token.experts, strict=True)
        )

    def colour(self, expert: int) -> str:
        """Return the colour of an expert; the script of the page has the same."""
        return f"hsl({round(360 * (expert // self.size) / self.groups)}, 75%, 80%)"


def write(models: Sequence[Reported], out: Path) -> None:
    """Write page, pictures and numbers of models into a folder, which is made."""
    out.mkdir(parents=True, exist_ok=True)
    found = tables(models)
    for stale in _files(out, found):  # of an earlier report, which may have had more
        stale.unlink(missing_ok=True)
    drawn = _pictures(models, out)
    for name, rows in found.items():
        if rows:
            with whole_texts([out / f"{name}.csv"]) as (file,):
                write_csv(file, rows)
    write_json(out / NUMBERS, numbers(models, found))
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters |= {"cell": _cell, "columns": columns_of, "hover": Shown.hover, "colour": Shown.colour}
    shown = found | {"words": shown_words(found["words"]), "classes": _fewest_groups(found["classes"])}
    if len(models) == 1:  # which needs no column of its own
        shown = {name: [_without(row, "model") for row in rows] for name, rows in shown.items()}
    page = environment.get_template("page.html").render(
        models=[Shown.of(model) for model in models],
        tables=shown,
        drawn=drawn,
        shuffles=SHUFFLES,
        frequent=FREQUENT,
        compared=COMPARED,
        groupings=GROUPINGS,
        version=project_version(),
    )
    with whole_texts([out / PAGE]) as (file,):
        file.write(page)


def _files(out: Path, found: Mapping[str, Any]) -> Iterator[Path]:
    """Yield all files that a report may have, but for page and numbers."""
    for name in found:
        yield out / f"{name}.csv"
    for name in ("curves", *(f"{kind}{other}" for kind in EACH for other in ("", AGAINST))):
        for ending in (".png", ".svg"):
            yield out / f"{name}{ending}"


def _pictures(models: Sequence[Reported], out: Path) -> list[Picture]:
    """Draw all pictures; return them for the page."""
    drawn = []
    for number, model in enumerate(models):
        for kind, draw in EACH.items():
            if figure := draw(model):
                name = kind if number == 0 else f"{kind}{AGAINST}"
                drawn.append(Picture(kind, model.name, _save(figure, out / name)))
    if figure := curves(models):
        drawn.append(Picture("curves", ", ".join(model.name for model in models), _save(figure, out / "curves")))
    return drawn


def _save(figure: Figure, path: Path) -> str:
    """Write a picture as PNG and SVG; return the former in base64."""
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    figure.savefig(path.with_suffix(".png"), dpi=110)
    return base64.b64encode(path.with_suffix(".png").read_bytes()).decode()


def numbers(models: Sequence[Reported], found: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """Return all numbers for JSON: the tables, and for each model the similarity of each pair of experts."""
    similarity = {
        model.name: {
            layer.name: {one.what: one.cosine_NN.tolist() for one in layer.resemblances}
            for layer in model.survey.layers
        }
        for model in models
    }
    without_nan = {
        name: [{column: None if _is_nan(value) else value for column, value in row.items()} for row in rows]
        for name, rows in found.items()
    }
    return {"version": project_version(), "tables": without_nan, "cosine": similarity}


def _without(row: Row, column: str) -> Row:
    return {name: value for name, value in row.items() if name != column}


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _cell(value: Any) -> Markup:
    """Return a cell of a table; a number has its value beside it, by which the page sorts."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return Markup(f"<td>{escape('' if value is None else value)}</td>")
    if _is_nan(value):
        return Markup('<td class="number" data-value="NaN">–</td>')
    text = str(value) if isinstance(value, int) else f"{value:.1f}" if abs(value) >= 1000 else f"{value:.4g}"
    return Markup(f'<td class="number" data-value="{value}">{escape(text)}</td>')


def _fewest_groups(rows: Sequence[Row]) -> list[Row]:
    """Leave out single experts of models that have clusters: a page is for people."""
    clustered = {row["model"] for row in rows if row["of"].startswith("cluster")}
    return [row for row in rows if row["model"] not in clustered or row["of"].startswith("cluster")]
