"""moec train: the commands it makes, its messages, and real jobs (two machines are torchrun agents on this one)."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.python import python_m

from ..parallel.test_commands import free_port

pytestmark = pytest.mark.usefixtures("signals_are_heard")

MOEC = (sys.executable, "-m", "moec_fairseq", "train")
# Torch gives ranks that hang 30 seconds before it kills them.
IMPATIENT = """
import runpy
from torch.distributed.elastic.multiprocessing.api import PContext
from moec_fairseq.launch import ranks
close, ranks.KILLED_AFTER = PContext.close, 3
PContext.close = lambda ranks, death_sig=None, timeout=30: close(ranks, death_sig, 3)
runpy.run_module("moec_fairseq", run_name="__main__", alter_sys=True)
"""
SIZES = ("layers=1", "embed_dim=32", "ffn_embed_dim=32")
SMALL = [
    "task.source_lang=src", "task.target_lang=tgt", "dataset.max_tokens=300", "optimization.max_update=4",
    "model.encoder_moe_layers='1'", "model.decoder_moe_layers=1", "model.moec_token_shuffle=true",
    *(f"model.{side}_{size}" for side in ("encoder", "decoder") for size in SIZES),
]  # fmt: skip
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
ENVIRONMENT = {"PATH": PATH, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "2"}


def test_dry_run_of_two_processes(tmp_path):
    done = python_m(
        "moec_fairseq", "train", "moec_transformer", "task.data=x", "--processes", 2, "--dry-run", cwd=tmp_path,
        **ENVIRONMENT,
    )  # fmt: skip
    (line,) = done.stdout.strip().splitlines()
    variables, _, command = line.partition(" torchrun ")
    assert "OMP_NUM_THREADS=1" in variables.split() and command.startswith("--nnodes 1 --nproc_per_node 2 ")
    assert "distributed_training.distributed_world_size=2" in line
    assert line.endswith(" task.data=x")
    assert list(tmp_path.iterdir()) == []


def test_bad_input_ends_in_one_sentence(tmp_path):
    done = python_m("moec_fairseq", "train", "moec_transformer", cwd=tmp_path, **ENVIRONMENT)
    assert done.returncode == 1
    assert "task.data is missing" in done.stderr.strip().splitlines()[-1] and "Traceback" not in done.stderr


def start(*arguments: object, cwd: Path, moec: tuple[str, ...] = MOEC) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*moec, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def running(folder: Path) -> list[int]:
    """Return the processes that train below a folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").readlink() == folder and b"launch.worker" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            pass
    return sorted(found)


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_machine_that_never_comes(tmp_path, reversal_data):
    job = start(
        "moec_transformer", f"task.data={reversal_data}", *SMALL, "--nodes", 2, "--node-rank", 0,
        "--master", f"127.0.0.1:{free_port()}", "--rank-timeout", 3, cwd=tmp_path,
    )  # fmt: skip
    _, said = job.communicate(timeout=100)
    assert job.returncode == 1 and "the machines of this training have not met" in said and "imed out" in said


def endless(
    tmp_path: Path, data: Path, processes: int, *options: object, moec: tuple[str, ...] = MOEC
) -> "subprocess.Popen[str]":
    """Start a training that does not end by itself, and wait until it has begun."""
    sizes = [*(s for s in SMALL if "max_update" not in s), "optimization.max_update=100000", "common.log_interval=1"]
    log = tmp_path / "logs" / "moec_transformer" / "rank-0.log"
    log.unlink(missing_ok=True)
    given = ("moec_transformer", f"task.data={data}", *sizes, "--processes", processes, *options)
    job = start(*given, cwd=tmp_path, moec=moec)
    wait_for(lambda: log.exists() and "num_updates=5," in log.read_text().replace('"', "").replace(": ", "="))
    return job


def test_a_rank_that_hangs_and_a_launcher_that_dies(tmp_path, reversal_data):
    job = endless(tmp_path, reversal_data, 2, "--rank-timeout", 5, moec=(sys.executable, "-c", IMPATIENT, "train"))
    began = time.monotonic()
    # as a machine that has vanished: no connection is closed
    os.kill(running(tmp_path)[1], signal.SIGSTOP)
    _, said = job.communicate(timeout=100)
    assert time.monotonic() - began < 60
    assert job.returncode == 1 and "Rank 0 failed" in said and "imed out" in said
    assert running(tmp_path) == []

    job = endless(tmp_path, reversal_data, 2)
    job.kill()
    wait_for(lambda: running(tmp_path) == [], 20)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(tmp_path, reversal_data, number):
    job = endless(tmp_path, reversal_data, 1)
    job.send_signal(number)
    _, said = job.communicate(timeout=30)
    assert job.returncode == 130 and said.strip() == "Interrupted. The same command continues where it was."
    assert running(tmp_path) == []


def test_two_machines_started_by_torchrun_train_one_model(tmp_path, reversal_data):
    port = free_port()
    agents = []
    for node in range(2):
        command = [
            sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1",
            "--node-rank", str(node), "--master-addr", "127.0.0.1", "--master-port", str(port), "--no-python",
            *MOEC, "moec_transformer", f"task.data={reversal_data}",
            "checkpoint.save_dir=saved", *SMALL,
        ]  # fmt: skip
        out = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        agents.append(subprocess.Popen(command, cwd=tmp_path, env=os.environ | ENVIRONMENT, **out))
    outputs = [agent.communicate(timeout=200)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], outputs
    saved = sorted(path.name for path in (tmp_path / "saved").glob("checkpoint_last*"))
    assert saved == ["checkpoint_last-rank-0.pt", "checkpoint_last-rank-1.pt"]
    assert "num_updates 4" in outputs[0]  # torchrun's own --log-dir and --tee are for the logs of its ranks
