"""Kills and a full disk: nothing half-written looks finished, and the same command goes on."""

import filecmp
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.python import python_m

from . import published

pytestmark = pytest.mark.usefixtures("signals_are_heard")

STEPS = {"text": "text", "subword-model": "spm.model", "subwords": "subwords", "binary": "binary"}  # and their results


@pytest.fixture
def command(tmp_path, server, local_recipe):
    published.wmt14_en_de(tmp_path / "web", 1500)

    def make(out):
        return [
            sys.executable, "-u", "-m", "moec_fairseq", "prepare", str(local_recipe("wmt14_en_de")), "--raw-dir",
            str(tmp_path / "raw"), "--vocab-size", "100", "--out", str(tmp_path / out),
        ]  # fmt: skip

    return make


def kill_in(step, command):
    """Kill the command, with its workers, in the moment in which it begins a step."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    for line in process.stdout:
        if line == f"{step} ...\n":
            break
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()


def still_running(folder):
    """Return the commands of processes that have to do with a folder."""
    commands = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has just ended
            commands.append(path.read_text())
    return [command for command in commands if str(folder) in command]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
@pytest.mark.parametrize("step", ["subword-model", "binary"])
def test_told_to_end_it_leaves_nothing_running(command, tmp_path, step):
    with subprocess.Popen(command("ended"), stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line == f"{step} ...\n":
                break
        time.sleep(1)
        assert len(still_running(tmp_path / "ended")) > 1
        process.terminate()
    deadline = time.monotonic() + 20
    while still_running(tmp_path / "ended"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not (tmp_path / "ended" / "binary").exists()


def files(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.suffix != ".log")


def test_killed_in_every_step(command, tmp_path):
    for step, result in STEPS.items():
        kill_in(step, command("killed"))
        found = tmp_path / "killed" / result
        assert not (found.is_file() or any(path.suffix != ".part" for path in found.glob("*")))
    for out in ("killed", "whole"):
        done = python_m(*command(out)[3:])
        assert done.returncode == 0, done.stderr
    expected = files(tmp_path / "whole")
    assert files(tmp_path / "killed") == expected and len(expected) > 20
    _, differ, errors = filecmp.cmpfiles(tmp_path / "whole", tmp_path / "killed", expected, shallow=False)
    assert not errors and all(name.suffix == ".done" for name in differ)


def test_a_full_disk(command, tmp_path):
    def little_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))  # bytes of a file

    done = subprocess.run(command("out"), capture_output=True, text=True, preexec_fn=little_room)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "make room on the disk and give the same command again" in done.stderr.splitlines()[-1]
    assert not list((tmp_path / "out/text").glob("*"))
    done = python_m(*command("out")[3:])
    assert done.returncode == 0, done.stderr
