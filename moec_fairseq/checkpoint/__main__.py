"""The command line of the checkpoint tools: moec-checkpoint COMMAND ... (--help explains each).

Training on several processes writes a checkpoint as NAME-rank-0.pt, NAME-rank-1.pt, ..., each with its own experts.
Wherever CHECKPOINT is asked for, NAME.pt, NAME or one of these files is right.
"""

import argparse
import sys
from pathlib import Path

from moec_fairseq.checkpoint.average import average
from moec_fairseq.checkpoint.info import info
from moec_fairseq.checkpoint.merge import merge
from moec_fairseq.checkpoint.reshard import reshard
from moec_fairseq.checkpoint.selection import KINDS
from moec_fairseq.cli.command import run_command


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="moec-checkpoint", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    one = argparse.ArgumentParser(add_help=False)
    one.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="NAME.pt, NAME or NAME-rank-0.pt")
    state = argparse.ArgumentParser(add_help=False)
    state.add_argument("--no-optimizer", dest="optimizer", action="store_false", help="leave out the optimizer's state")

    command = commands.add_parser(
        "merge", parents=[one, state], help="all ranks in one file, as fairseq-generate needs it"
    )
    command.add_argument("--out", type=Path, required=True, metavar="FILE")
    command.set_defaults(run=merge)

    command = commands.add_parser("reshard", parents=[one, state], help="go on with another number of processes")
    command.add_argument("--ranks", type=int, required=True, metavar="W", help="number of processes; 1 for one file")
    command.add_argument(
        "--out", required=True, metavar="PREFIX", help="writes PREFIX-rank-0.pt ...; or a folder, where it keeps NAME"
    )
    command.set_defaults(run=reshard)

    command = commands.add_parser("average", help="mean of the parameters of several checkpoints")
    command.add_argument("checkpoints", type=Path, nargs="*", metavar="CHECKPOINT")
    command.add_argument("--last", type=int, metavar="N", help="the last N numbered checkpoints of --dir instead")
    command.add_argument("--dir", type=Path, metavar="DIR", dest="folder", help="the --save-dir of the training")
    command.add_argument(
        "--by", choices=KINDS, dest="kind", help="which, where --dir has checkpoint3.pt and checkpoint_3_80.pt"
    )
    command.add_argument("--merge", action="store_true", help="write one file; default: as many as the last checkpoint")
    command.add_argument("--out", type=Path, required=True, metavar="NAME.pt")
    command.set_defaults(run=average)

    command = commands.add_parser(
        "info", parents=[one], help="ranks, experts, sizes; fails when files are missing or torn"
    )
    command.set_defaults(run=info)
    return parser


def main() -> int:
    """Run a command; a mistake in what the user gave becomes one line on stderr and exit status 1."""
    return run_command(_parser(), "interrupted; nothing is written")


if __name__ == "__main__":
    sys.exit(main())
