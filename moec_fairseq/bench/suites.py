"""All benchmarks: which there are, and how they run and report."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic

import torch

from moec_fairseq.bench import gpu, layer, loss, models, text, understanding
from moec_fairseq.bench.report import (
    Outcome,
    Row,
    Target,
    draw,
    machine,
    outcome_table,
    table,
    target_table,
    write_json,
)
from moec_fairseq.bench.sizes import SIZES, Sizes

Run = Callable[[Sizes, torch.device, str | None, Path | None], tuple[list[Row], list[Target]]]
SUITES: dict[str, Run] = {
    "layer": lambda sizes, device, *_: layer.run(sizes.layer, device),
    "loss": lambda sizes, device, *_: loss.run(sizes.loss, device),
    "train": lambda sizes, device, *_: models.train(sizes.model, device),
    "generate": lambda sizes, device, *_: models.generate(sizes.model, device),
    "pretrain": lambda sizes, device, *_: understanding.pretrain(sizes.roberta, device),
    "finetune": lambda sizes, device, *_: understanding.finetune(sizes.roberta, device),
    "prepare": lambda sizes, *_: text.prepare(sizes.text),
    "clean": lambda sizes, _, prefix, moses: text.clean(sizes.clean, prefix, moses),
}


def _run(
    suites: list[str], sizes: Sizes, where: torch.device, text: str | None, moses: Path | None
) -> Iterator[Outcome]:
    for name in suites:
        start = monotonic()
        yield Outcome(name, *SUITES[name](sizes, where, text, moses), seconds=monotonic() - start)


def bench(suite: str, json: Path | None, size: str, device: str | None, text: str | None, moses: Path | None) -> None:
    """Run one suite, or all; the arguments are the options of ``moec bench``.

    Raises:
        ValueError: there is no such device, or no folder for the results.
        RuntimeError: parts of the gpu suite have failed.
    """
    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise ValueError("--device cuda was given, but torch sees no GPU; give --device cpu.")
    if suite == "gpu" and size == "full" and (device == "cpu" or not has_gpu):
        raise ValueError(
            "moec bench gpu needs a GPU that torch sees, for nine minutes; --size small --device cpu runs, for a test, "
            "what a CPU can."
        )
    if json is not None and not json.parent.is_dir():
        raise ValueError(f"--json {json}: there is no folder {json.parent}; please make it.")
    where = torch.device(device or ("cuda" if has_gpu else "cpu"))
    about = machine(where)
    print("\n".join(f"{key}: {value}" for key, value in about.items()))
    sizes = SIZES[size]
    is_gpu = suite == "gpu"
    chosen = list(SUITES) if suite == "all" else [suite]
    outcomes: list[Outcome] = []
    for outcome in gpu.run(sizes.gpu, where) if is_gpu else _run(chosen, sizes, where, text, moses):
        outcomes.append(outcome)
        _show(outcome)
        if json is not None:
            write_json(json, about, outcomes)
            rows = [row for own in outcomes for row in own.rows]
            if any(row.suite == "layer" for row in rows):
                draw(gpu.drawn(rows, sizes.gpu) if is_gpu else rows, json.with_suffix(".png"))
    targets = [target for outcome in outcomes for target in outcome.targets]
    if targets and size == "full":
        print(f"{target_table(targets)}\n")
    if is_gpu:
        print(f"{outcome_table(outcomes)}\n")
    if json is not None:
        print(f"Every repeat is in {json}.")
    if failed := [outcome.name for outcome in outcomes if outcome.state == "failed"]:
        raise RuntimeError(f"these parts failed: {', '.join(failed)}; the messages are above")


def _show(outcome: Outcome) -> None:
    print(f"\n## {outcome.name}\n")
    print("".join(f"- {remark}\n" for remark in outcome.remarks), end="")
    if outcome.rows:
        print(f"{table(outcome.rows)}\n")
    if outcome.message:
        print(outcome.message, file=sys.stderr)
    sys.stdout.flush()
