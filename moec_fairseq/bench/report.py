"""Results of a benchmark: rows, tables, targets, a JSON file."""

import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch
from matplotlib.figure import Figure
from tabulate import tabulate

from moec_fairseq.bench.measure import Contender, Ratio, Times, peak, ratio
from moec_fairseq.util import files

PACKAGES = ("moec-fairseq", "torch", "fairscale", "numpy", "sentencepiece")


@dataclass(frozen=True)
class Row:
    """One contender in one case.

    Attributes:
        suite: ``layer``, ``loss``, ``train``, ``generate``, ``prepare`` or ``clean``.
        case: what is measured, the same for all contenders that are compared.
        contender: name of the contender.
        experts: experts per layer, 0 if there are none.
        tokens: tokens (prepare, clean: sentence pairs) processed in one repeat.
        times: seconds of each repeat.
        baseline: the contender that times are compared with.
        time_ratio: time of this contender / time of the baseline, paired by round.
        process_bytes: additional peak memory of the process; None if not measured.
        torch_bytes: additional peak memory allocated by torch; None if not measured.
    """

    suite: str
    case: str
    contender: str
    experts: int
    tokens: int
    times: Times
    baseline: str
    time_ratio: Ratio
    process_bytes: int | None = None
    torch_bytes: int | None = None


@dataclass(frozen=True)
class Target:
    """A value that this project aims for.

    Attributes:
        what: what is compared with what.
        value: the measured value.
        bound: the value to reach.
        at_most: whether the bound is an upper bound.
    """

    what: str
    value: float
    bound: float
    at_most: bool = True

    @property
    def reached(self) -> bool:
        """Whether the value is within its bound."""
        return self.value <= self.bound if self.at_most else self.value >= self.bound


# what a part of the gpu suite finds; a string is a remark
Found = Row | Target | str


@dataclass
class Outcome:
    """What came of a suite, or of a part of one.

    Attributes:
        name: of the suite or part.
        rows: what was timed.
        targets: what was compared with a bound.
        remarks: what else is worth knowing.
        seconds: how long it took.
        state: ``done``, ``failed``, or why it did not run.
        message: why it failed.
    """

    name: str
    rows: list[Row] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    seconds: float = 0
    state: str = "done"
    message: str = ""

    def take(self, found: Found) -> None:
        """Add what was found."""
        if isinstance(found, Row):
            self.rows.append(found)
        elif isinstance(found, Target):
            self.targets.append(found)
        else:
            self.remarks.append(found)


def rows_of(suite: str, case: str, times: dict[str, Times], sizes: dict[str, tuple[int, int]]) -> list[Row]:
    """Turn the times of one case into rows; the first contender is the baseline, ``sizes`` are (experts, tokens)."""
    baseline = next(iter(times))
    return [
        Row(suite, case, name, *sizes[name], own, baseline, ratio(own.total, times[baseline].total))
        for name, own in times.items()
    ]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def machine(device: torch.device) -> dict[str, str]:
    """Describe what the results depend on."""
    fairseq = "fairseq-fixed" if platform.python_version_tuple() >= ("3", "11") else "fairseq"
    allocator = {key: value for key, value in os.environ.items() if key.startswith(("MALLOC_", "THP_", "GLIBC_"))}
    return {
        "processor": f"{_processor()}, {torch.get_num_threads()} threads",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "python": platform.python_version(),
        **{name: version(name) for name in (*PACKAGES, fairseq)},
        "allocator": " ".join(f"{k}={v}" for k, v in sorted(allocator.items())) or "default",
    }


def _mib(size: int | None) -> str:
    return "" if size is None else f"{size / 2**20:.0f}"


def table(rows: Iterable[Row]) -> str:
    """Return the rows as a Markdown table, ratios first."""
    headers = (
        "case", "contender", "time / baseline", "ms (median)", "spread", "forward", "backward", "per second",
        "MiB (process)", "MiB (torch)",
    )  # fmt: skip
    body = [
        (
            row.case,
            row.contender,
            str(row.time_ratio) if row.contender != row.baseline else "baseline",
            f"{1000 * median(row.times.total):.1f}",
            f"{1000 * min(row.times.total):.1f}–{1000 * max(row.times.total):.1f}",
            f"{1000 * median(row.times.forward):.1f}",
            f"{1000 * median(row.times.backward):.1f}",
            f"{row.tokens / median(row.times.total):.0f}",
            _mib(row.process_bytes),
            _mib(row.torch_bytes),
        )
        for row in rows
    ]
    return tabulate(body, headers, tablefmt="pipe", disable_numparse=True)


def target_table(targets: Iterable[Target]) -> str:
    """Return the targets as a Markdown table."""
    body = [
        (t.what, f"{t.value:.3g}", f"{'≤' if t.at_most else '≥'} {t.bound:.3g}", "yes" if t.reached else "no")
        for t in targets
    ]
    return tabulate(body, ("target", "measured", "wanted", "reached"), tablefmt="pipe", disable_numparse=True)


def outcome_table(outcomes: Iterable[Outcome]) -> str:
    """Return how each part went as a Markdown table."""
    body = [(o.name, f"{o.seconds:.0f}", ": ".join([o.state, *o.message.splitlines()[-1:]])) for o in outcomes]
    return tabulate(body, ("part", "seconds", "result"), tablefmt="pipe", disable_numparse=True)


def write_json(path: Path, about: dict[str, str], outcomes: Sequence[Outcome]) -> None:
    """Write everything that was measured, every repeat."""
    content = {
        "machine": about,
        "rows": [asdict(row) for outcome in outcomes for row in outcome.rows],
        "targets": [asdict(target) for outcome in outcomes for target in outcome.targets],
        "parts": [
            {key: value for key, value in vars(outcome).items() if key not in ("rows", "targets")}
            for outcome in outcomes
        ],
    }
    files.write_json(path, content)


def with_peaks(rows: Sequence[Row], makers: Mapping[str, Callable[[], Contender]], device: torch.device) -> list[Row]:
    """Add to the rows the memory used by the ``makers`` of the same names."""
    peaks = {name: peak(make, device) for name, make in makers.items()}
    return [
        replace(row, process_bytes=peaks[row.contender].process, torch_bytes=peaks[row.contender].torch) for row in rows
    ]


# line -> x -> y
Points = dict[str, dict[float, float]]


def _points(
    rows: Iterable[Row], line: Callable[[Row], str], x: Callable[[Row], float], y: Callable[[Row], float]
) -> Points:
    points: Points = {}
    for row in rows:
        points.setdefault(line(row), {})[x(row)] = y(row)
    return {name: dict(sorted(own.items())) for name, own in points.items() if len(own) > 1}


def _kind(row: Row) -> str:
    return row.contender.split()[0]


def _plain(row: Row) -> bool:
    """Whether the row is of a layer in float32."""
    return row.contender in ("dense", f"{_kind(row)} {row.experts}") and row.case != "bfloat16"


def _seconds(row: Row) -> float:
    return median(row.times.total)


def _at_tokens(row: Row) -> str:
    return f"{_kind(row)}, {row.tokens} tokens"


def draw(rows: list[Row], path: Path) -> None:
    """Draw the rows of the layer suite into ``path`` (PNG)."""
    layers = [row for row in rows if row.suite == "layer" and _plain(row)]
    sparse = [row for row in layers if row.experts]
    peaks = [row for row in sparse if row.torch_bytes is not None]
    panels = {
        "time against experts": ("experts", "seconds", _points(sparse, _at_tokens, lambda row: row.experts, _seconds)),
        "time against tokens": (
            "tokens", "seconds", _points(layers, lambda row: row.contender, lambda row: row.tokens, _seconds),
        ),
        "extra peak memory against experts": (
            "experts", "MiB",
            _points(peaks, _at_tokens, lambda row: row.experts, lambda row: (row.torch_bytes or 0) / 2**20),
        ),
    }  # fmt: skip
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
