"""All benchmarks: which there are, and how they run and report."""

from collections.abc import Callable
from pathlib import Path

import torch

from moec_fairseq.bench import layer, loss, models, text
from moec_fairseq.bench.report import Row, Target, draw, machine, table, target_table, write_json
from moec_fairseq.bench.sizes import SIZES, Sizes

Run = Callable[[Sizes, torch.device, str | None, Path | None], tuple[list[Row], list[Target]]]
SUITES: dict[str, Run] = {
    "layer": lambda sizes, device, *_: layer.run(sizes.layer, device),
    "loss": lambda sizes, device, *_: loss.run(sizes.loss, device),
    "train": lambda sizes, device, *_: models.train(sizes.model, device),
    "generate": lambda sizes, device, *_: models.generate(sizes.model, device),
    "prepare": lambda sizes, *_: text.prepare(sizes.text),
    "clean": lambda sizes, _, prefix, moses: text.clean(sizes.clean, prefix, moses),
}


def bench(suite: str, json: Path | None, size: str, device: str | None, text: str | None, moses: Path | None) -> None:
    """Run one suite, or all; the arguments are the options of ``moec bench``.

    Raises:
        ValueError: there is no such device, or no folder for the results.
    """
    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise ValueError("--device cuda was given, but torch sees no GPU; give --device cpu.")
    if json is not None and not json.parent.is_dir():
        raise ValueError(f"--json {json}: there is no folder {json.parent}; please make it.")
    where = torch.device(device or ("cuda" if has_gpu else "cpu"))
    about = machine(where)
    print("\n".join(f"{key}: {value}" for key, value in about.items()))
    rows: list[Row] = []
    targets: list[Target] = []
    for name in SUITES if suite == "all" else [suite]:
        own, wanted = SUITES[name](SIZES[size], where, text, moses)
        print(f"\n## {name}\n\n{table(own)}\n", flush=True)
        rows += own
        targets += wanted
        if json is not None:
            write_json(json, about, rows, targets)
            if any(row.suite == "layer" for row in rows):
                draw(rows, json.with_suffix(".png"))
    if targets and size == "full":
        print(f"{target_table(targets)}\n")
    if json is not None:
        print(f"Every repeat is in {json}.")
