"""One rank that fails takes the others along, and is named; what is made of options and of torchrun's variables."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from moec_fairseq.launch import ranks
from moec_fairseq.launch.configuration import configure
from moec_fairseq.launch.ranks import culprit, run, torchrun_command, train
from moec_fairseq.launch.worker import rank_overrides
from moec_fairseq.util.files import alone_with
from moec_fairseq.util.processes import last_words

pytestmark = pytest.mark.usefixtures("signals_are_heard")

CONFIGS = Path(__file__).parents[2] / "configs"
RANK = "import os, signal, sys, time; rank = int(os.environ['RANK']); "
VARIABLES = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}


def python(code: str) -> list[str]:
    return [sys.executable, "-c", RANK + code]


def start(folder: Path, code: str, processes: int = 2, read=ranks._show) -> None:
    """Run Python in each of some processes."""
    logs = [folder / f"rank-{rank}.log" for rank in range(processes)]
    run(torchrun_command(python(code), processes, 1, 0, None, folder, 30), logs, read)


def options(*overrides, **changed):
    default = {
        "config": "moec_transformer", "overrides": overrides, "processes": None, "nodes": 1, "node_rank": 0,
        "master": None, "logs": None, "rank_timeout": 60, "dry_run": True, "configs": CONFIGS,
    }  # fmt: skip
    return default | changed


@pytest.fixture
def shown(monkeypatch, capsys):
    """Return the words of the command that a training would run, and the variables before it."""

    def show(*overrides, **changed):
        train(**options("task.data=x", *overrides, **changed))
        words = shlex.split(capsys.readouterr().out)
        count = next(i for i, word in enumerate(words) if "=" not in word)
        return dict(word.split("=") for word in words[:count]), words[count:]

    return show


def test_all_end_well(tmp_path, capfd):
    start(tmp_path, "print('rank', rank, os.environ['WORLD_SIZE'])")
    for rank in range(2):
        assert (tmp_path / f"rank-{rank}.log").read_text() == f"rank {rank} 2\n"
    assert capfd.readouterr() == ("rank 0 2\n", "")  # the first one only, and nothing of torch


@pytest.mark.parametrize("code, sentence", [
    ("raise_(ValueError('no such data'))", "Rank 1 failed with exit code 1: ValueError: no such data"),
    ("os.kill(os.getpid(), 9)", r"Rank 1 was killed \(SIGKILL\), probably because the memory ran out"),
    ("os.kill(os.getpid(), 11)", "Rank 1 was ended by SIGSEGV"),
    ("os.kill(os.getpid(), 15)", "Rank 1 was ended by SIGTERM"),
])  # fmt: skip
def test_one_fails(tmp_path, capfd, code, sentence):
    start_time = time.monotonic()
    with pytest.raises(RuntimeError, match=sentence) as error:
        start(tmp_path, f"\ndef raise_(error): raise error\ntime.sleep(60) if rank == 0 else (time.sleep(0.5), {code})")
    assert time.monotonic() - start_time < 20  # not the 60 of the other
    assert f"{tmp_path / 'rank-1.log'}" in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_the_killed_one_is_named_not_those_that_lost_it(tmp_path):
    lost = "raise RuntimeError('Connection closed by peer')"
    with pytest.raises(RuntimeError, match="Rank 1 was killed"):
        start(tmp_path, f"time.sleep(0.5)\nif rank == 1: os.kill(os.getpid(), 9)\n{lost}")


def failure(tmp_path, exitcode, message=None, timestamp=100):
    found = ProcessFailure(0, 1, exitcode, str(tmp_path / "none"))
    found.timestamp = timestamp
    if message:
        found.message = {"message": message}
    return found


def test_who_only_lost_a_partner_is_not_to_blame(tmp_path):
    lost = failure(tmp_path, 1, "RuntimeError: [..] Connection closed by peer [127.0.0.1]:4")
    wrong, killed = failure(tmp_path, 1, "ValueError: no such data"), failure(tmp_path, -9)
    assert culprit({0: lost, 1: wrong}) == 1
    assert culprit({0: lost, 1: wrong, 2: killed}) == 2
    assert culprit({0: lost}) == 0
    assert culprit({0: failure(tmp_path, 1), 1: failure(tmp_path, 1)}) == 0


def test_who_was_stopped_by_torch_is_not_to_blame(tmp_path):
    first, stopped = failure(tmp_path, 3), failure(tmp_path, -15)
    hard = failure(tmp_path, -9, timestamp=100 + ranks.KILLED_AFTER)
    assert culprit({2: first, 0: stopped, 1: hard}) == 2
    assert culprit({2: failure(tmp_path, -15), 0: stopped}) == 2  # by somebody else
    # one that was asked to end after its own error, before it had ended
    lost = failure(tmp_path, 1, "RuntimeError: Broken pipe")
    assert culprit({2: lost, 0: failure(tmp_path, -15, "ValueError: x")}) == 0
    assert culprit({2: failure(tmp_path, 1, "ValueError: x"), 0: failure(tmp_path, -15, "Broken pipe")}) == 2


def test_the_reason_comes_from_torchs_error_file(tmp_path):
    code = "from torch.distributed.elastic.multiprocessing.errors import record\n@record\ndef main(): raise {}\nmain()"
    with pytest.raises(RuntimeError, match=r"Rank 0 failed with exit code 1: RuntimeError: first \(its log"):
        start(tmp_path, code.format("RuntimeError('first\\nOtherError: second')"), 1)


def test_a_log_is_appended_to(tmp_path, capfd):
    (tmp_path / "rank-0.log").write_text("OldError: yesterday\n")
    with pytest.raises(RuntimeError, match="exit code 3: today"):
        start(tmp_path, "print('today'); sys.exit(3)", 1)
    assert (tmp_path / "rank-0.log").read_text() == "OldError: yesterday\ntoday\n"
    assert capfd.readouterr().out == "today\n"


def test_lines_are_read_whole_as_they_come(tmp_path):
    seen = []
    code = "print('fir', end='', flush=True); time.sleep(0.5); print('st', flush=True); time.sleep(2); print(2, end='')"
    start(tmp_path, code, 1, lambda lines, _: seen.extend((line, time.monotonic()) for line in lines))
    assert [line for line, _ in seen] == ["first\n", "2"] and seen[1][1] - seen[0][1] > 1


def test_a_screen_that_has_gone_holds_up_nobody(tmp_path):
    much = "\nfor n in range(20000): print('line', n)"  # more than a pipe holds
    launcher = "import sys; from pathlib import Path; from tests.launch.test_ranks import start; "
    command = [sys.executable, "-c", f"{launcher} start(Path(sys.argv[1]), {much!r}, 1)", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=CONFIGS.parent) as process:
        process.stdout.close()
        process.wait(timeout=60)
    assert (tmp_path / "rank-0.log").read_text().splitlines()[-1] == "line 19999"


def test_two_trainings_do_not_share_their_logs(tmp_path):
    well = "print('done')"
    with alone_with(tmp_path / "rank-1.log"):
        with pytest.raises(
            ValueError, match=r"another training is writing .*rank-1\.log; wait for it, or give this one"
        ):
            start(tmp_path, well)
        start(tmp_path, well, 1)
    start(tmp_path, well)
    assert (tmp_path / "rank-0.log").read_text() == "done\ndone\n"


def test_children_of_a_rank_end_too(tmp_path):
    child = tmp_path / "child"
    code = f"""
import subprocess
if rank == 0:
    process = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])
    open({str(child)!r}, 'w').write(str(process.pid))
    time.sleep(60)
while not os.path.exists({str(child)!r}) or not open({str(child)!r}).read():
    time.sleep(0.05)
sys.exit(3)
"""
    with pytest.raises(RuntimeError, match="Rank 1 failed with exit code 3"):
        start(tmp_path, code)
    time.sleep(0.2)
    pid = int(child.read_text())
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as stat:
            assert stat.read().split()[2] == "Z"
    except (ProcessLookupError, FileNotFoundError):
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted(tmp_path, number):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    start_time = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path, f"time.sleep(0.5); rank and os.kill({os.getpid()}, {int(number)}); time.sleep(60)")
    assert time.monotonic() - start_time < 20
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_signals_that_are_ignored_stay_ignored(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as by nohup
    try:
        start(tmp_path, f"time.sleep(0.5); os.kill({os.getpid()}, signal.SIGHUP); time.sleep(0.5); print('done')")
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (tmp_path / "rank-1.log").read_text() == "done\n"


def test_last_words_prefer_the_error(tmp_path):
    log = tmp_path / "log"
    log.write_text("start\nfairseq.x.SomeError: here\n  at the end\n")
    assert last_words(log) == "fairseq.x.SomeError: here"
    log.write_text("\n")
    assert last_words(log) == "no output"


def test_the_command_of_several_machines(shown):
    _, command = shown(processes=2, nodes=3, node_rank=1, master="10.0.0.1:29500", logs=Path("l"))
    assert command[:9] == [
        "torchrun", "--nnodes", "3", "--nproc_per_node", "2", "--node_rank", "1", "--master_addr", "10.0.0.1"
    ]  # fmt: skip
    assert "distributed_training.distributed_world_size=6" in command and "l" in command


def test_logs_are_named_for_the_method(shown):
    assert "logs/moec_transformer" in shown()[1] and "logs/moec_transformer_dense" in shown("method=dense")[1]


def test_a_rank_of_torchrun(shown, monkeypatch):
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    environment, command = shown()
    assert command[:4] == [sys.executable, "-m", "moec_fairseq.launch.worker", "60"]
    assert "distributed_training.distributed_world_size=8" in command
    assert "distributed_training.distributed_init_method=env://" in command
    assert environment["HYDRA_FULL_ERROR"] == "1"  # or hydra's last words would be how to see the reason
    for given in ({"processes": 2}, {"logs": Path("l")}):
        with pytest.raises(ValueError, match="--processes, --nodes and --logs are for starting without torchrun"):
            shown(**given)


def test_several_tasks_of_srun_would_be_several_trainings(shown, monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(ValueError, match="srun has started 4 of this command"):
        shown()
    shown(nodes=4, node_rank=2, master="a:1")  # one for each machine


@pytest.mark.parametrize("gpus, cpu", [(2, False), (2, True), (0, False)])
def test_gpus(shown, monkeypatch, gpus, cpu):
    monkeypatch.setattr(ranks.torch.cuda, "device_count", lambda: gpus)
    environment, command = shown(*(["common.cpu=true"] if cpu else []), processes=2)
    on_gpus = bool(gpus) and not cpu
    assert f"distributed_training.distributed_backend={'nccl' if on_gpus else 'gloo'}" in command
    assert ("common.fp16=false" in command) == (not on_gpus)
    assert environment.get("CUDA_VISIBLE_DEVICES") == (None if on_gpus else "")
    if on_gpus:
        with pytest.raises(ValueError, match=r"--processes is 3, but this machine has 2 GPU\(s\)"):
            shown(processes=3)


@pytest.mark.parametrize(
    "gpus, overrides, expected",
    [
        (2, [], []),  # fairseq's default is pytorch_ddp
        (0, [], ["legacy_ddp"]),
        (2, ["distributed_training.ddp_backend=legacy_ddp"], ["legacy_ddp"]),
        (0, ["distributed_training.ddp_backend=pytorch_ddp"], ["legacy_ddp", "pytorch_ddp"]),  # the last one wins
    ],
)
def test_gradients_are_reduced_as_the_configuration_says(monkeypatch, shown, gpus, overrides, expected):
    monkeypatch.setattr(ranks.torch.cuda, "device_count", lambda: gpus)
    assert configure(CONFIGS / "small.yaml", []).values["distributed_training.ddp_backend"] == "pytorch_ddp"
    _, command = shown(*overrides, processes=2)
    assert [word.split("=")[1] for word in command if "ddp_backend=" in word] == expected


@pytest.mark.parametrize(
    "backend, gpus", [("legacy_ddp", 0), ("legacy_ddp", 2), ("no_c10d", 0), ("no_c10d", 2), ("pytorch_ddp", 2)]
)
def test_so_does_a_file(monkeypatch, shown, tmp_path, backend, gpus):
    monkeypatch.setattr(ranks.torch.cuda, "device_count", lambda: gpus)
    file = tmp_path / "mine.yaml"
    file.write_text(f"{(CONFIGS / '_base.yaml').read_text()}\ndistributed_training:\n  ddp_backend: {backend}\n")
    _, command = shown(config=str(file), processes=2)
    assert not [word for word in command if "ddp_backend=" in word]


@pytest.mark.parametrize("local_rank, gpus, device", [("1", 2, 1), ("1", 1, 0), ("1", 0, 0)])  # SLURM may show one only
def test_what_differs_from_rank_to_rank(local_rank, gpus, device):
    assert rank_overrides(VARIABLES | {"LOCAL_RANK": local_rank}, gpus) == [
        "distributed_training.distributed_rank=5", f"distributed_training.device_id={device}"
    ]  # fmt: skip
    assert rank_overrides(VARIABLES | {"WORLD_SIZE": "1"}, gpus) == []


@pytest.mark.parametrize("changed, message", [
    ({"processes": 0}, "--processes is 0"),
    ({"rank_timeout": 0}, "--rank-timeout is 0, but must be 1 second or more"),
    ({"nodes": 2, "node_rank": 2, "master": "a:1"}, "--node-rank is 2, but must be from 0 to 1"),
    ({"nodes": 2}, "--nodes 2 needs --master HOST:PORT"),
    ({"nodes": 2, "master": "here"}, "--master is 'here', but must be HOST:PORT"),
])  # fmt: skip
def test_bad_options(shown, changed, message):
    with pytest.raises(ValueError, match=message):
        shown(**changed)
