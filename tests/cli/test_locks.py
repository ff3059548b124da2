"""Two commands that want the same files."""

import subprocess
import sys

import pytest

from moec_fairseq.cli.locks import alone_with

COMMAND = """
import sys, time
from pathlib import Path
from moec_fairseq.cli.locks import alone_with
path, log = map(Path, sys.argv[1:])
for _ in range(5):
    with alone_with(path):
        before = log.read_text() if log.exists() else ""
        time.sleep(0.05)
        log.write_text(before + "x")
"""


@pytest.mark.parametrize("name", ["folder", "file.csv"])
def test_one_after_the_other(tmp_path, name):
    path, log = tmp_path / name, tmp_path / "log"
    if name == "folder":
        path.mkdir()
    command = [sys.executable, "-c", COMMAND, path, log]
    commands = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate(timeout=60)[0] for process in commands]
    assert log.read_text() == "x" * 15
    assert f"another command works with {path}; waiting for it ..." in "".join(said)


KILLED = """
import os, sys
from pathlib import Path
from moec_fairseq.cli.locks import alone_with
with alone_with(Path(sys.argv[1])):
    print("here", flush=True)
    os.kill(os.getpid(), 9)
"""


def test_who_is_killed_keeps_nobody_waiting(tmp_path, capsys):
    assert subprocess.run([sys.executable, "-c", KILLED, tmp_path], capture_output=True, text=True).stdout == "here\n"
    with alone_with(tmp_path):
        assert capsys.readouterr().out == ""
