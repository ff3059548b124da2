"""Two commands that want the same files."""

import errno
import fcntl
import subprocess
import sys

import pytest

from moec_fairseq.util.files import alone_with

COMMAND = """
import sys, time
from pathlib import Path
from moec_fairseq.util.files import alone_with
path, log = map(Path, sys.argv[1:])
for _ in range(5):
    with alone_with(path):
        before = log.read_text()
        time.sleep(0.05)
        log.write_text(before + "x")
"""


@pytest.mark.parametrize("name", ["folder", "file.csv"])
def test_one_after_the_other(tmp_path, name):
    path, log = tmp_path / name, tmp_path / "log"
    log.touch()
    if name == "folder":
        path.mkdir()
    command = [sys.executable, "-u", "-c", COMMAND, path, log]
    with alone_with(path):
        commands = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
        for process in commands:  # all are there, and begin together
            assert process.stdout.readline() == f"another command is using {path}; waiting for it ...\n"
    assert [process.wait(timeout=60) for process in commands] == [0, 0, 0]
    assert log.read_text() == "x" * 15


def test_refusing(tmp_path):
    with alone_with(tmp_path), pytest.raises(ValueError, match="^somebody is here$"):
        with alone_with(tmp_path, "somebody is here"):
            pass


def test_a_file_system_without_locks(tmp_path, monkeypatch, capsys):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with alone_with(tmp_path), alone_with(tmp_path, "somebody is here"):
        assert capsys.readouterr().out == ""


KILLED = """
import os, sys
from pathlib import Path
from moec_fairseq.util.files import alone_with
with alone_with(Path(sys.argv[1])):
    print("here", flush=True)
    os.kill(os.getpid(), 9)
"""


def test_who_is_killed_keeps_nobody_waiting(tmp_path, capsys):
    assert subprocess.run([sys.executable, "-c", KILLED, tmp_path], capture_output=True, text=True).stdout == "here\n"
    with alone_with(tmp_path):
        assert capsys.readouterr().out == ""
