"""scripts/train.sh: the commands it makes, and a real job of two machines (torchrun agents on this one)."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ..parallel.test_commands import free_port

pytestmark = pytest.mark.usefixtures("signals_are_heard")

SCRIPT = Path(__file__).parents[2] / "scripts" / "train.sh"
SIZES = ("layers=1", "embed_dim=32", "ffn_embed_dim=32")
SMALL = [
    "task.source_lang=src", "task.target_lang=tgt", "dataset.max_tokens=300", "optimization.max_update=4",
    "model.encoder_moe_layers='1'", "model.decoder_moe_layers=1", "model.moec_token_shuffle=true",
    *(f"model.{side}_{size}" for side in ("encoder", "decoder") for size in SIZES),
]  # fmt: skip


def environment(**more: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "2"} | more


def train(*arguments: object, cwd: Path, **more: str) -> "subprocess.CompletedProcess[str]":
    command = ["bash", str(SCRIPT), "--active-env", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(**more), cwd=cwd, timeout=200)


def test_help():
    done = subprocess.run(["bash", str(SCRIPT), "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--processes W" in done.stdout


def test_dry_run_of_two_processes(tmp_path):
    done = train("moec_transformer", "task.data=x", "--processes", 2, "--dry-run", cwd=tmp_path)
    first, second = done.stdout.strip().splitlines()
    assert first.startswith("OMP_NUM_THREADS=1 ")
    for rank, line in enumerate((first, second)):
        assert "distributed_training.distributed_world_size=2" in line
        assert f"distributed_training.distributed_rank={rank} " in line
        assert line.endswith(" task.data=x")
    assert list(tmp_path.iterdir()) == []


SLURM = {
    "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1", "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_JOB_ID": "7",
}  # fmt: skip


def test_dry_run_as_a_task_of_slurm(tmp_path):
    (line,) = train("moec_transformer", "task.data=x", "--dry-run", cwd=tmp_path, **SLURM).stdout.strip().splitlines()
    assert "distributed_rank=3" in line and "tcp://n1:20007" in line


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["missing"], "there is no configuration missing; give the path of a YAML file"),
        (["moec_transformer", "--processes", "0"], "--processes is 0"),
        (["moec_transformer", "word"], "word is no override; give KEY=VALUE"),
        (["moec_transformer", "--patience", "0"], "--patience is 0, but must be 1 second or more"),
        (["moec_transformer"], "task.data is missing"),
        (
            ["moec_transformer", "task.data=nowhere:else"],
            "task.data is nowhere:else, but there is no folder nowhere; make",
        ),
        (["multi30k_en_de_moec"], "is multi30k_en_de-en-de/binary, but there is no folder multi30k_en_de-en-de/binary"),
        (["broken.yaml"], "broken.yaml"),
        (
            ["moec_transformer", "task.data=x", "model.dropuot=0.3"],
            "there is no option model.dropuot; nearest: model.dropout",
        ),
    ],
)
def test_bad_input_ends_in_one_sentence(tmp_path, arguments, sentence):
    (tmp_path / "broken.yaml").write_text("task: {data: [}")
    done = train(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert sentence in done.stderr.strip().splitlines()[-1] and "Traceback" not in done.stderr


def test_numbers_of_processes_are_for_starting_by_hand(tmp_path):
    done = train("moec_transformer", "--processes", 2, cwd=tmp_path, **SLURM)
    assert done.returncode == 1 and "--processes and --nodes are for starting without srun" in done.stderr


def start(*arguments: object, cwd: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "moec_fairseq.launch", *arguments, "--configs", SCRIPT.parents[1] / "configs"]
    return subprocess.Popen(
        list(map(str, command)), cwd=cwd, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def running(folder: Path) -> list[int]:
    """Return the processes that train below a folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").readlink() == folder and b"launch.rank" in (entry / "cmdline").read_bytes():
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
        "--master", f"127.0.0.1:{free_port()}", "--patience", 3, cwd=tmp_path,
    )  # fmt: skip
    _, said = job.communicate(timeout=100)
    assert job.returncode == 1 and "Rank 0 failed" in said and "imed out" in said


def test_a_rank_that_hangs_and_a_launcher_that_dies(tmp_path, reversal_data):
    endless = [*(s for s in SMALL if "max_update" not in s), "optimization.max_update=100000", "common.log_interval=1"]
    run = ("moec_transformer", f"task.data={reversal_data}", *endless, "--processes", 2)
    log = tmp_path / "logs" / "moec_transformer" / "rank-0.log"

    def trains() -> bool:
        return log.exists() and "num_updates=5," in log.read_text().replace('"', "").replace(": ", "=")

    job = start(*run, "--patience", 5, cwd=tmp_path)
    wait_for(trains)
    # as a machine that has vanished: no connection is closed
    os.kill(running(tmp_path)[1], signal.SIGSTOP)
    _, said = job.communicate(timeout=100)
    assert job.returncode == 1 and "Rank 0 failed" in said and "imed out" in said
    assert running(tmp_path) == []

    log.unlink()
    job = start(*run, cwd=tmp_path)
    wait_for(trains)
    job.kill()
    wait_for(lambda: running(tmp_path) == [], 20)


def test_two_machines_started_by_torchrun_train_one_model(tmp_path, reversal_data):
    port = free_port()
    agents = []
    for node in range(2):
        command = [
            sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1",
            "--node-rank", str(node), "--master-addr", "127.0.0.1", "--master-port", str(port), "--no-python",
            "bash", str(SCRIPT), "--active-env", "moec_transformer", f"task.data={reversal_data}",
            "checkpoint.save_dir=saved", *SMALL,
        ]  # fmt: skip
        agents.append(
            subprocess.Popen(
                command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    for agent in agents:
        output, _ = agent.communicate(timeout=200)
        assert agent.returncode == 0, output[-3000:]
    saved = sorted(path.name for path in (tmp_path / "saved").glob("checkpoint_last*"))
    assert saved == ["checkpoint_last-rank-0.pt", "checkpoint_last-rank-1.pt"]
    assert "num_updates 4" in (tmp_path / "logs" / "moec_transformer" / "rank-0.log").read_text()
