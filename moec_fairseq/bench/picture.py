"""Time and memory against experts and tokens, as a picture."""

from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median

from matplotlib.figure import Figure

from moec_fairseq.bench.report import Row

# line -> x -> y
Points = dict[str, dict[float, float]]


def _points(
    rows: Iterable[Row], line: Callable[[Row], str], x: Callable[[Row], float], y: Callable[[Row], float | None]
) -> Points:
    points: Points = {}
    for row in rows:
        height = y(row)
        if height is not None:
            points.setdefault(line(row), {})[x(row)] = height
    return {name: dict(sorted(own.items())) for name, own in points.items() if len(own) > 1}


def _kind(row: Row) -> str:
    return row.contender.split()[0]


def _plain(row: Row) -> bool:
    """Whether the row is of a layer in float32."""
    return row.contender in ("dense", f"{_kind(row)} {row.experts}") and row.case != "bfloat16"


def _name(row: Row) -> str:
    return row.contender


def _at_tokens(row: Row) -> str:
    return f"{_kind(row)}, {row.tokens} tokens"


def _experts(row: Row) -> float:
    return row.experts


def _tokens(row: Row) -> float:
    return row.tokens


def _seconds(row: Row) -> float:
    return median(row.times.total)


def _mib(row: Row) -> float | None:
    return None if row.torch_bytes is None else row.torch_bytes / 2**20


def draw(rows: list[Row], path: Path) -> None:
    """Draw the rows of the layer suite into ``path`` (PNG)."""
    layers = [row for row in rows if row.suite == "layer" and _plain(row)]
    sparse = [row for row in layers if row.experts]
    panels = {
        "time against experts": ("experts", "seconds", _points(sparse, _at_tokens, _experts, _seconds)),
        "time against tokens": ("tokens", "seconds", _points(layers, _name, _tokens, _seconds)),
        "extra peak memory against experts": ("experts", "MiB", _points(sparse, _at_tokens, _experts, _mib)),
    }
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    for axes, title in zip(figure.subplots(1, len(panels)), panels, strict=True):
        x_label, y_label, points = panels[title]
        for name, own in points.items():
            axes.plot(list(own), list(own.values()), marker="o", label=name)
        axes.set(title=title, xlabel=x_label, ylabel=y_label, xscale="log", yscale="log")
        axes.grid(alpha=0.3)
        if points:
            axes.legend(fontsize="small")
    figure.savefig(path, dpi=120, format="png")
