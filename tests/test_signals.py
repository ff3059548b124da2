"""Tests that send signals pass, too, where a shell has told pytest to ignore them."""

import signal
import subprocess
import sys

import pytest


@pytest.fixture(params=["SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM"])
def ignored(request):
    before = signal.signal(signal.Signals[request.param], signal.SIG_IGN)
    yield request.param
    signal.signal(signal.Signals[request.param], before)


def test_signals_are_heard_although_the_starter_ignores_them(ignored, request):
    request.getfixturevalue("signals_are_heard")
    sends = f"import os, signal, time; os.kill(os.getpid(), signal.{ignored}); time.sleep(60)"
    done = subprocess.run([sys.executable, "-c", sends], capture_output=True, timeout=50)
    assert done.returncode == -signal.Signals[ignored]
    assert signal.getsignal(signal.Signals[ignored]) is not signal.SIG_IGN
