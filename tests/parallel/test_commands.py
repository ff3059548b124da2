"""fairseq-train as two processes, through its command line."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import moec_fairseq  # noqa: F401  (what checkpoints may hold)

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start(data: Path, save_dir: Path, world_size: int, *flags: object) -> list["subprocess.Popen[str]"]:
    port = free_port()
    save_dir.mkdir(parents=True, exist_ok=True)
    processes = []
    for rank in range(world_size):
        command = [
            Path(sys.executable).with_name("fairseq-train"), data, "-s", "src", "-t", "tgt",
            "--user-dir", ROOT / "moec_fairseq", "--arch", "moec_transformer_tiny", "--cpu", "--dropout", "0",
            "--criterion", "moec_label_smoothed_cross_entropy", "--label-smoothing", "0.1", "--optimizer", "adam",
            "--lr", "0.003", "--clip-norm", "1", "--max-tokens", "300", "--seed", "1", "--save-dir", save_dir,
            "--log-format", "simple", "--log-interval", "1", "--data-buffer-size", "0", "--moec-expert-dropout", "0.5",
            "--moec-expert-dropout-interval", "5", "--distributed-world-size", world_size, "--distributed-rank", rank,
            "--distributed-init-method", f"tcp://127.0.0.1:{port}", "--distributed-no-spawn",
            "--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp", *flags,
        ]  # fmt: skip
        with (save_dir / f"rank-{rank}.log").open("a") as log:
            processes.append(
                subprocess.Popen(
                    [str(part) for part in command], stdout=log, stderr=log, text=True,
                    env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
                )
            )  # fmt: skip
    return processes


def finish(processes: list["subprocess.Popen[str]"], save_dir: Path) -> None:
    for rank, process in enumerate(processes):
        assert process.wait(180) == 0, (save_dir / f"rank-{rank}.log").read_text()[-3000:]


def model(save_dir: Path, name: str) -> dict[str, torch.Tensor]:
    return torch.load(save_dir / name, weights_only=True)["model"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, reversal_data):
    save_dir = tmp_path_factory.mktemp("two") / "run"
    bleu = ("--eval-bleu", "--eval-bleu-args", '{"beam": 2}')
    finish(start(reversal_data, save_dir, 2, "--max-update", 16, "--save-interval-updates", 8, *bleu), save_dir)
    return save_dir


def test_every_rank_saves_its_experts(undisturbed):
    first, second = (model(undisturbed, f"checkpoint_last-rank-{rank}.pt") for rank in (0, 1))
    experts = [name for name in first if ".experts." in name]
    assert experts
    for name, value in first.items():
        if name in experts:
            assert len(value) == len(second[name]) == 4  # of eight
            assert not name.endswith("w1_NFD") or not torch.equal(value, second[name])
        else:
            assert torch.equal(value, second[name]), name


def test_validation_with_beam_search_gives_a_score(undisturbed):
    log = (undisturbed / "rank-0.log").read_text()
    assert re.search(r"\| valid \|.* bleu [\d.]+", log)


def test_the_merged_checkpoint_is_the_sharded_model(undisturbed, reversal_data, fairseq, tmp_path):
    merged = tmp_path / "merged.pt"
    command = [
        sys.executable,
        "-m",
        "moec_fairseq.checkpoint",
        "merge",
        undisturbed / "checkpoint_last.pt",
        "--out",
        merged,
    ]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    done = fairseq(
        "validate", reversal_data, "--user-dir", ROOT / "moec_fairseq", "--task", "translation", "--path", merged,
        "--valid-subset", "valid", "--cpu", "--max-tokens", 300,
    )  # fmt: skip
    (here,) = re.findall(r"\| valid on 'valid' subset .*?\| nll_loss ([\d.]+)", done.stderr + done.stdout)
    there = re.findall(r"\| valid \|.*? nll_loss ([\d.]+)", (undisturbed / "rank-0.log").read_text())[-1]
    assert float(here) == pytest.approx(float(there), abs=0.002)


def test_resuming_after_a_kill_goes_on_as_if_nothing_had_happened(undisturbed, reversal_data, tmp_path):
    save_dir = tmp_path / "run"
    flags = ("--max-update", 16, "--save-interval-updates", 8)
    processes = start(reversal_data, save_dir, 2, *flags)
    victim = 1
    while (
        not (save_dir / "checkpoint_last-rank-1.pt").exists() or not (save_dir / "checkpoint_last-rank-0.pt").exists()
    ):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.02)
    processes[victim].send_signal(signal.SIGKILL)
    # the other rank does not wait for ever
    assert processes[1 - victim].wait(60) != 0
    finish(start(reversal_data, save_dir, 2, *flags), save_dir)
    for rank in (0, 1):
        resumed, expected = (model(d, f"checkpoint_last-rank-{rank}.pt") for d in (save_dir, undisturbed))
        for name, value in expected.items():
            torch.testing.assert_close(resumed[name], value, rtol=0, atol=0, msg=lambda m, n=name: f"{n}: {m}")


def test_wrong_numbers_of_processes_and_options_end_in_one_sentence(reversal_data, tmp_path):
    for flags, sentence in (
        (
            ("--moe-expert-count", 3, "--moec-cluster-count", 1),
            "3 experts (--moe-expert-count) cannot be shared by 2 processes",
        ),
        (("--zero-sharding", "os"), "--zero-sharding os"),
    ):
        save_dir = tmp_path / sentence[:5].strip()
        processes = start(reversal_data, save_dir, 2, *flags)
        for rank, process in enumerate(processes):
            assert process.wait(60) != 0
            assert sentence in (save_dir / f"rank-{rank}.log").read_text().strip().splitlines()[-1]
