"""Download, clean, segment and binarise a corpus that a recipe in data/ describes."""

import argparse
import sys
from pathlib import Path

from moec_fairseq.cli.command import run_command
from moec_fairseq.corpus.segment import MODEL_TYPES
from moec_fairseq.prepare.pipeline import prepare


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/prepare_data.sh", description=__doc__)
    parser.add_argument("recipe", metavar="RECIPE", help="a name in data/, or the path of a YAML file")
    parser.add_argument("--recipes", type=Path, default=Path("data"), help=argparse.SUPPRESS)
    parser.add_argument("--raw-dir", type=Path, metavar="DIR", help="where archives are, or go (default: OUT/raw)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="all results (default: RECIPE-SOURCE-TARGET)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes (default: 2)")
    parser.add_argument("--source", metavar="LANG", help="translate from this one of the recipe's languages")
    parser.add_argument("--target", metavar="LANG", help="translate to this one of the recipe's languages")
    parser.add_argument("--vocab-size", type=int, default=32_000, metavar="N", help="most pieces (default: 32000)")
    parser.add_argument("--model-type", choices=MODEL_TYPES, default="bpe", help="of sentencepiece (default: bpe)")
    parser.add_argument(
        "--character-coverage", type=float, default=1.0, metavar="SHARE", help="of characters (default: 1.0)"
    )
    parser.add_argument("--max-length", type=int, default=250, metavar="N", help="pieces of a side (default: 250)")
    parser.add_argument(
        "--max-ratio", type=float, default=1.5, metavar="R", help="of the sides' lengths (default: 1.5)"
    )
    parser.add_argument("--distinct", action="store_true", help="drop training pairs that have been there before")
    parser.set_defaults(run=prepare)
    return parser


def main() -> int:
    """Run all steps; what goes wrong becomes one line on stderr and exit status 1."""
    return run_command(_parser(), "Interrupted. The same command goes on where it was.")


if __name__ == "__main__":
    sys.exit(main())
