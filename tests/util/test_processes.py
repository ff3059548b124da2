"""Processes that do not outlive the one that started them."""

import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.usefixtures("signals_are_heard")

# Each prints the number of a process that it has started, and would go on for minutes.
CHILD = """
import os, subprocess, sys, time
command = [sys.executable, "-m", "moec_fairseq.util.processes", str(os.getpid()), "http.server", "0"]
print(subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL).pid, flush=True)
time.sleep(300)
"""
WORKER = """
import os, time
from moec_fairseq.util.processes import start_workers
with start_workers(1) as pool:
    print(pool.submit(os.getpid).result(), flush=True)
    time.sleep(300)
"""


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
@pytest.mark.parametrize("code", [CHILD, WORKER])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_who_is_killed_takes_them_along(code, number):
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        time.sleep(0.5)
        assert is_running(pid)
        parent.send_signal(number)
    deadline = time.monotonic() + 30
    while is_running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)
