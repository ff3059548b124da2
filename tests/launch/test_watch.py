"""One process that ends badly takes the others along, and is named."""

import os
import signal
import subprocess
import sys
import time

import pytest

from moec_fairseq.cli.locks import alone_with
from moec_fairseq.cli.logs import last_words
from moec_fairseq.launch.watch import culprit, run

pytestmark = pytest.mark.usefixtures("signals_are_heard")

WELL = "print('done')"
SLEEP = "import time; time.sleep(60)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_all_end_well(tmp_path, capfdbinary):
    run({3: python("print('three')"), 4: python("print('four')")}, tmp_path, os.environ)
    assert (tmp_path / "rank-3.log").read_text() == "three\n" and (tmp_path / "rank-4.log").read_text() == "four\n"


@pytest.mark.parametrize(
    "code, sentence",
    [
        ("raise ValueError('no such data')", "Rank 1 failed with exit code 1: ValueError: no such data"),
        ("import os; os.kill(os.getpid(), 9)", r"Rank 1 was killed \(SIGKILL\), probably because the memory ran out"),
        ("import os; os.kill(os.getpid(), 11)", "Rank 1 was ended by SIGSEGV"),
    ],
)
@pytest.mark.parametrize("other", [SLEEP, STUBBORN])
def test_one_ends_badly(tmp_path, code, sentence, other):
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=sentence) as error:
        run({0: python(other), 1: python("import time; time.sleep(0.5); " + code)}, tmp_path, os.environ, patience=1)
    assert time.monotonic() - start < 20  # not the 60 of the other
    assert f"{tmp_path / 'rank-1.log'}" in str(error.value)


def test_the_killed_one_is_named_not_those_that_lost_it(tmp_path):
    lost = "import time; time.sleep(0.5); raise RuntimeError('Connection closed by peer')"
    killed = "import os, time; time.sleep(0.5); os.kill(os.getpid(), 9)"
    with pytest.raises(RuntimeError, match="Rank 1 was killed"):
        run({0: python(lost), 1: python(killed)}, tmp_path, os.environ, patience=1)


def test_who_only_lost_a_partner_is_not_to_blame():
    words = {0: "RuntimeError: [..] Connection closed by peer [127.0.0.1]:4", 1: "ValueError: no such data", 2: "x"}
    assert culprit({0: 1, 1: 1}, words) == 1
    assert culprit({0: 1, 1: 1, 2: -9}, words) == 2
    assert culprit({0: 1}, words) == 0


def test_a_log_goes_on_where_the_last_run_ended(tmp_path):
    (tmp_path / "rank-0.log").write_text("OldError: yesterday\n")
    with pytest.raises(RuntimeError, match="exit code 3: today"):
        run({0: python("print('today'); raise SystemExit(3)")}, tmp_path, os.environ)
    assert (tmp_path / "rank-0.log").read_text() == "OldError: yesterday\ntoday\n"


def test_a_screen_that_has_gone_holds_up_nobody(tmp_path):
    much = "for n in range(20000): print('line', n)"  # more than a pipe holds
    launcher = "import os; from pathlib import Path; from moec_fairseq.launch.watch import run; "
    launcher += f"run({{0: {python(much)!r}}}, Path({str(tmp_path)!r}), os.environ)"
    with subprocess.Popen(python(launcher), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        process.stdout.close()
        process.wait(timeout=60)
    assert (tmp_path / "rank-0.log").read_text().splitlines()[-1] == "line 19999"


def test_two_trainings_do_not_share_their_logs(tmp_path):
    with alone_with(tmp_path / "rank-1.log"):
        with pytest.raises(
            ValueError, match=r"another training is writing .*rank-1\.log; wait for it, or give this one"
        ):
            run({0: python(WELL), 1: python(WELL)}, tmp_path, os.environ)
        run({0: python(WELL)}, tmp_path, os.environ)
    run({0: python(WELL), 1: python(WELL)}, tmp_path, os.environ)
    assert (tmp_path / "rank-0.log").read_text() == "done\ndone\n"


def test_children_of_a_rank_end_too(tmp_path):
    child = tmp_path / "child"
    code = (
        f"import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', '{SLEEP}']); "
        f"open({str(child)!r}, 'w').write(str(p.pid)); time.sleep(60)"
    )
    dies = (
        f"import os, time\nwhile not os.path.exists({str(child)!r}) or not open({str(child)!r}).read(): "
        "time.sleep(0.05)\nraise SystemExit(3)"
    )
    with pytest.raises(RuntimeError, match="Rank 1 failed with exit code 3"):
        run({0: python(code), 1: python(dies)}, tmp_path, os.environ, patience=1)
    time.sleep(0.2)
    pid = int(child.read_text())
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as stat:
            assert stat.read().split()[2] == "Z"
    except (ProcessLookupError, FileNotFoundError):
        pass


def test_interrupted(tmp_path):
    code = f"import os, signal, time; time.sleep(0.5); os.kill({os.getpid()}, signal.SIGINT); time.sleep(60)"
    with pytest.raises(KeyboardInterrupt):
        run({0: python(SLEEP), 1: python(code)}, tmp_path, os.environ, patience=1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_last_words_prefer_the_error(tmp_path):
    log = tmp_path / "log"
    log.write_text("start\nfairseq.x.SomeError: here\n  at the end\n")
    assert last_words(log) == "fairseq.x.SomeError: here"
    log.write_text("\n")
    assert last_words(log) == "no output"
