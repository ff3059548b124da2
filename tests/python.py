"""``python -m MODULE ARGUMENTS`` in a process of its own that has fairseq already.

Importing torch and fairseq takes seconds, most of the time of a short command. So one Python imports them once, and for
each command it forks a process, which then is that command: with its arguments, environment, folder and streams, as the
main program, to the end of Python. The plug-in is imported by the command itself, when it does so.
"""

import gc
import importlib
import json
import logging
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STREAMS = ("stdin", "stdout", "stderr")
EIGHT_GIB = str(8 << 30)  # keeps large temporaries in the heap: fewer page faults
LIMITS = {"MALLOC_MMAP_THRESHOLD_": EIGHT_GIB, "MALLOC_TRIM_THRESHOLD_": EIGHT_GIB, "OMP_NUM_THREADS": "1"}
# for functions in processes that have all of this, as multiprocessing starts them
forkserver = multiprocessing.get_context("forkserver")
forkserver.set_forkserver_preload(["fairseq_cli.train", "moec_fairseq"])

IMPORTED = ("fairseq", "fairseq.trainer", "fairseq.checkpoint_utils", "fairseq.sequence_generator", "sacrebleu")


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def last_line(self) -> str:
        """The last line that the user sees on stderr."""
        return self.stderr.strip().splitlines()[-1]


@cache
def _server() -> "subprocess.Popen[str]":
    command = [sys.executable, "-W", "ignore", "-m", "tests.python"]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | LIMITS, cwd=ROOT
    )


def python_m(
    module: str, *arguments: object, stdin: str = "", cwd: Path | None = None, seconds: int = 300, **environment: str
) -> Done:
    """Do ``python -W ignore -m MODULE ARGUMENTS``; after so many seconds it is killed."""
    server = _server()
    assert server.stdin and server.stdout
    with TemporaryDirectory() as folder:
        Path(folder, "stdin").write_text(stdin, encoding="utf-8")
        command = {
            "module": module,
            "arguments": list(map(str, arguments)),
            "environment": {**os.environ, **LIMITS, **environment},
            "cwd": str(cwd or Path.cwd()),
            "streams": [f"{folder}/{name}" for name in STREAMS],
            "seconds": seconds,
        }
        print(json.dumps(command), file=server.stdin, flush=True)
        answer = server.stdout.readline()
        assert answer, "the Python that has fairseq has ended"
        said = (Path(folder, name).read_text(encoding="utf-8") for name in STREAMS[1:])
        return Done(int(answer), *said)


def next_command() -> dict[str, Any] | None:
    """Fork for each command that arrives; return it in the new process, and None in the old one when no more come."""
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # or each process would copy, in order to look through it, all that is there already
    for line in iter(sys.stdin.readline, ""):
        if (child := os.fork()) == 0:
            return json.loads(line)  # type: ignore[no-any-return]
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    return None


def be(
    module: str, arguments: list[str], environment: dict[str, str], cwd: str, streams: list[str], seconds: int
) -> None:
    """Be ``python -m MODULE ARGUMENTS``."""
    signal.alarm(seconds)
    for number, stream in enumerate(streams):
        os.dup2(os.open(stream, os.O_RDWR | os.O_CREAT), number)
    if module.startswith("fairseq_cli."):
        logging.root.handlers.clear()  # those commands add theirs before a module of fairseq-fixed adds another
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.path[0], sys.argv = cwd, [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    if command := next_command():
        be(**command)
