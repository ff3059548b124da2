"""Two commands that want the same files."""

import errno
import fcntl
import os
import signal
import time
from contextlib import redirect_stdout

import pytest

from moec_fairseq.util.files import alone_with
from tests.python import forkserver


def write_five(path, log, said):
    """Add a letter to the log five times, each time alone."""
    with said.open("w", buffering=1) as file, redirect_stdout(file):
        for _ in range(5):
            with alone_with(path):
                before = log.read_text()
                time.sleep(0.05)
                log.write_text(before + "x")


@pytest.mark.parametrize("name", ["folder", "file.csv"])
def test_one_after_the_other(tmp_path, name):
    path, log = tmp_path / name, tmp_path / "log"
    log.touch()
    if name == "folder":
        path.mkdir()
    said = [tmp_path / f"said{number}" for number in range(3)]
    commands = [forkserver.Process(target=write_five, args=(path, log, file)) for file in said]
    with alone_with(path):
        for process in commands:
            process.start()
        for file, process in zip(said, commands, strict=True):  # all are there, and begin together
            while not (file.exists() and file.read_text().endswith("\n")):
                assert process.is_alive()
                time.sleep(0.02)
            assert file.read_text() == f"another command is using {path}; waiting for it ...\n"
    for process in commands:
        process.join(60)
    assert [process.exitcode for process in commands] == [0, 0, 0]
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


def be_killed(path):
    with alone_with(path):
        os.kill(os.getpid(), signal.SIGKILL)


def test_who_is_killed_keeps_nobody_waiting(tmp_path, capsys):
    process = forkserver.Process(target=be_killed, args=(tmp_path,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    with alone_with(tmp_path):
        assert capsys.readouterr().out == ""
