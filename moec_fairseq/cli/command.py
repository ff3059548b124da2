"""How a command line with several commands runs the one that was given."""

import argparse
import errno
import sys

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def run_command(parser: argparse.ArgumentParser, interrupted: str) -> int:
    """Run a command; a mistake in what the user gave becomes one line on stderr and exit status 1.

    Args:
        parser: each of its commands sets ``run``, which takes the other options.
        interrupted: what to say after Ctrl-C, exit status 130.
    """
    options = vars(parser.parse_args())
    run = options.pop("run")
    try:
        run(**options)
    except (ValueError, OSError) as error:
        print(f"error: {_explained(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
    return 0


def _explained(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return f"{error}; make room on the disk and give the same command again: what is finished is kept"
    return str(error)
