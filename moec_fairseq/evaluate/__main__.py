"""Merge and average checkpoints, translate a test set, undo segmentation, score."""

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from moec_fairseq.checkpoint.selection import KINDS
from moec_fairseq.cli.command import run_command
from moec_fairseq.evaluate.choose import Wanted
from moec_fairseq.evaluate.model import select
from moec_fairseq.evaluate.pipeline import Report, evaluate
from moec_fairseq.evaluate.translate import Search

Group = TypeVar("Group", Wanted, Search, Report)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/evaluate.sh", description=__doc__)
    parser.add_argument(
        "--checkpoints", type=Path, required=True, metavar="DIR", help="the save_dir of a training, or one checkpoint"
    )
    parser.add_argument("--average", type=int, metavar="N", help="mean of the last N of DIR (default: 10, or all)")
    parser.add_argument(
        "--by", choices=KINDS, dest="kind", help="which, where DIR has checkpoint3.pt and checkpoint_3_80.pt"
    )
    parser.add_argument("--best", action="store_true", help="checkpoint_best.pt instead of a mean")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="of prepare_data.sh, or binary data (default: that of the training); DIR:DIR, too",
    )
    parser.add_argument(
        "--source-lang", metavar="SRC", help="language to translate from, where model or data leave a choice"
    )
    parser.add_argument("--target-lang", metavar="TGT", help="language to translate to, likewise")
    parser.add_argument("--subset", metavar="NAME", help="part of the data (default: test)")
    parser.add_argument("--test-set", metavar="NAME", help="of sacrebleu, such as wmt14/full, instead")
    parser.add_argument("--input", type=Path, dest="text", metavar="FILE", help="plain text to translate, instead")
    parser.add_argument(
        "--references", type=Path, nargs="+", default=[], metavar="FILE", help="plain text to compare with"
    )
    parser.add_argument("--tokenized", action="store_true", help="the text is tokenised: BLEU takes it as it is")
    parser.add_argument(
        "--remove-bpe",
        choices=("subword_nmt", "sentencepiece"),
        dest="segmentation",
        help="how binary data of others is cut into pieces (default: by the look of its dictionary)",
    )
    parser.add_argument("--beam", type=int, default=5, metavar="N", help="size of the beam (default: 5)")
    parser.add_argument("--lenpen", type=float, default=1.0, metavar="X", help="above 1 longer output (default: 1)")
    parser.add_argument("--max-tokens", type=int, default=4096, metavar="N", help="of a batch (default: 4096)")
    parser.add_argument("--against", type=Path, metavar="FILE", help="translations of another system, plain text")
    parser.add_argument("--name", metavar="NAME", help="of this system, in tables (default: the end of DIR)")
    parser.add_argument("--table", type=Path, metavar="FILE.csv", help="table of results that gets a row; FILE.md too")
    parser.add_argument("--samples", type=int, default=3, metavar="N", help="translations to show (default: 3)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="all results (default: DIR/evaluation/WHICH)")
    parser.add_argument("--cpu", action="store_true", help="leave a GPU alone")
    parser.set_defaults(run=_run)
    return parser


def _run(**options: Any) -> None:
    def group(kind: type[Group]) -> Group:
        return kind(**{field.name: options[field.name] for field in fields(kind)})

    wanted, search, report = group(Wanted), group(Search), group(Report)
    selection = select(*(options[name] for name in ("checkpoints", "average", "best", "kind")))
    evaluate(selection, options["data"], wanted, search, report, options["tokenized"], options["out"])


def main() -> int:
    """Run all steps; what goes wrong becomes one line on stderr and exit status 1."""
    return run_command(_parser(), "Interrupted. The same command goes on where it was.")


if __name__ == "__main__":
    sys.exit(main())
