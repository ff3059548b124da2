"""A module of Python that runs no longer than the process that started it.

Usage: python -m moec_fairseq.cli.child PID MODULE ARGUMENTS OF THE MODULE

Started in a session of its own (the caller's part), it takes its own children along when the process PID has gone.
"""

import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable


def _exit() -> None:
    os._exit(1)


def _kill_session() -> None:
    os.killpg(0, signal.SIGKILL)


def end_with(parent: int, end: Callable[[], None] = _exit, poll: float = 0.2) -> None:
    """End this process soon after its parent has gone, killed in a way that left no time to end others.

    Args:
        parent: its process number.
        end: what to do then.
        poll: seconds between two looks.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(poll)
        end()

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    end_with(int(sys.argv[1]), _kill_session)
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
