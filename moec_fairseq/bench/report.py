"""What a benchmark found: rows, a table of them, targets, a JSON file."""

import os
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch
from tabulate import tabulate

from moec_fairseq.bench.timing import Ratio, Times, ratio
from moec_fairseq.corpus import output

PACKAGES = ("moec-fairseq", "torch", "fairscale", "numpy", "sentencepiece")


@dataclass(frozen=True)
class Row:
    """One contender in one case.

    Attributes:
        suite: ``layer``, ``loss``, ``train``, ``generate``, ``prepare`` or ``clean``.
        case: what is measured, the same for all contenders that are compared.
        contender: who is measured.
        experts: experts of a layer, 0 where there are none.
        tokens: tokens (prepare: sentence pairs) that one repeat works on.
        times: seconds of each repeat.
        baseline: contender that the ratio compares with.
        time_ratio: time of this one / time of the baseline, paired by round.
        process_bytes: extra peak memory of the process; None where it was not measured.
        torch_bytes: extra peak memory by torch's own account; None where it was not measured.
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
    """A figure that this project wants to reach.

    Attributes:
        what: what is compared with what.
        value: the measured figure.
        bound: what it should be.
        at_most: whether the bound is an upper one.
    """

    what: str
    value: float
    bound: float
    at_most: bool = True

    @property
    def reached(self) -> bool:
        """Whether the figure is within its bound."""
        return self.value <= self.bound if self.at_most else self.value >= self.bound


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
    """Describe what the figures depend on."""
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


def write_json(path: Path, about: dict[str, str], rows: Iterable[Row], targets: Iterable[Target]) -> None:
    """Write everything that was measured, every repeat."""
    output.write_json(
        path, {"machine": about, "rows": [asdict(r) for r in rows], "targets": [asdict(t) for t in targets]}
    )
