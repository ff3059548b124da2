"""Measure speed and memory: layer (ours, dense, fairscale), loss, train, generate, prepare, clean, or all of them."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from moec_fairseq.bench import clean, layer, loss, models, prepare
from moec_fairseq.bench.picture import draw
from moec_fairseq.bench.report import Row, Target, machine, table, target_table, write_json
from moec_fairseq.bench.sizes import SIZES, Sizes

Run = Callable[[Sizes, torch.device, argparse.Namespace], tuple[list[Row], list[Target]]]
SUITES: dict[str, Run] = {
    "layer": lambda sizes, device, _: layer.run(sizes.layer, device),
    "loss": lambda sizes, device, _: loss.run(sizes.loss, device),
    "train": lambda sizes, device, _: models.train(sizes.model, device),
    "generate": lambda sizes, device, _: models.generate(sizes.model, device),
    "prepare": lambda sizes, device, _: prepare.run(sizes.text, device),
    "clean": lambda sizes, _, options: clean.run(sizes.clean, options.text, options.moses),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/bench.sh", description=__doc__)
    parser.add_argument("suite", nargs="?", choices=[*SUITES, "all"], default="all", help="default: all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every repeat here, and a picture beside it")
    parser.add_argument("--size", choices=SIZES, default="full", help="small: only shows that it runs (default: full)")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu",
        help="default: a GPU if there is one",
    )  # fmt: skip
    parser.add_argument("--text", metavar="PREFIX", help="clean: real text, PREFIX.en and PREFIX.de, not made up")
    parser.add_argument(
        "--moses", type=Path, metavar="DIR", help="clean: compare with Moses' scripts in DIR and subword-nmt"
    )
    return parser


def main() -> None:
    """Run what the command line asks for."""
    options = _parser().parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda was given, but torch sees no GPU; give --device cpu.")
    if options.json is not None and not options.json.parent.is_dir():
        raise ValueError(f"--json {options.json}: there is no folder {options.json.parent}; please make it.")
    device = torch.device(options.device)
    about = machine(device)
    print("\n".join(f"{key}: {value}" for key, value in about.items()))
    rows: list[Row] = []
    targets: list[Target] = []
    for name in SUITES if options.suite == "all" else [options.suite]:
        own, wanted = SUITES[name](SIZES[options.size], device, options)
        print(f"\n## {name}\n\n{table(own)}\n", flush=True)
        rows += own
        targets += wanted
        if options.json is not None:
            write_json(options.json, about, rows, targets)
            if any(row.suite == "layer" for row in rows):
                draw(rows, options.json.with_suffix(".png"))
    if targets and options.size == "full":
        print(f"{target_table(targets)}\n")
    if options.json is not None:
        print(f"Every repeat is in {options.json}.")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"{error}")
