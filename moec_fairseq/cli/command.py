"""How a command line with several commands runs the one that was given."""

import argparse
import sys


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
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
    return 0
