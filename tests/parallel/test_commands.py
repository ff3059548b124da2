"""fairseq-train as two processes, through its command line."""

import gc
import os
import random
import re
import socket
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import moec_fairseq  # noqa: F401  (what checkpoints may hold)
from moec_fairseq.checkpoint.state import BUFFER, load_state
from moec_fairseq.compat.versions import FUSED_WEIGHTS
from tests.python import forkserver, python_m

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def fairseq_train(arguments: list[str], log: Path) -> None:
    """Be ``fairseq-train``."""
    gc.freeze()  # or it would copy, in order to look through it, all that the fork server has imported
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with log.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.argv = ["fairseq-train", *arguments]
    from fairseq_cli.train import cli_main

    cli_main()


def start(data: Path, save_dir: Path, world_size: int, *flags: object) -> list[Any]:
    port = free_port()
    save_dir.mkdir(parents=True, exist_ok=True)
    processes = []
    for rank in range(world_size):
        arguments = [
            data, "-s", "src", "-t", "tgt",
            "--user-dir", ROOT / "moec_fairseq", "--arch", "moec_transformer_tiny", "--cpu", "--dropout", "0",
            "--criterion", "moec_label_smoothed_cross_entropy", "--label-smoothing", "0.1", "--optimizer", "adam",
            "--lr", "0.003", "--clip-norm", "1", "--max-tokens", "300", "--seed", "1", "--save-dir", save_dir,
            "--log-format", "simple", "--log-interval", "1", "--num-workers", "0", "--moec-expert-dropout", "0.5",
            "--moec-expert-dropout-interval", "5", *flags,
        ]  # fmt: skip
        if world_size > 1:
            arguments += [
                "--distributed-world-size", world_size, "--distributed-rank", rank, "--distributed-init-method",
                f"tcp://127.0.0.1:{port}", "--distributed-no-spawn", "--distributed-backend", "gloo",
                "--ddp-backend", "legacy_ddp",
            ]  # fmt: skip
        log = save_dir / f"rank-{rank}.log"
        processes.append(forkserver.Process(target=fairseq_train, args=(list(map(str, arguments)), log)))
        processes[-1].start()
    return processes


def finish(processes: list[Any], save_dir: Path) -> None:
    for rank, process in enumerate(processes):
        process.join(120)
        code = process.exitcode
        if code != 0:
            for other in processes:
                other.kill()
        assert code == 0, (save_dir / f"rank-{rank}.log").read_text()[-3000:]


def updates(save_dir: Path) -> int:
    """Return the number of the last update in the log of rank 0."""
    log = save_dir / "rank-0.log"
    return int((re.findall(r"num_updates=(\d+)", log.read_text() if log.exists() else "") or ["0"])[-1])


def model(save_dir: Path, name: str) -> dict[str, torch.Tensor]:
    state = load_state(save_dir / name)["model"]
    # but for what fairseq never sets, and, in 0.12.2, sets only when it loads
    return {n: value for n, value in state.items() if not BUFFER.fullmatch(n) and n.split(".")[-1] not in FUSED_WEIGHTS}


def moec_checkpoint(*arguments: object) -> None:
    done = python_m("moec_fairseq", "checkpoint", *arguments)
    assert done.returncode == 0, done.stderr


SHORT = ("--max-update", 16)
OFTEN = ("--max-update", 30, "--save-interval-updates", 1, "--keep-interval-updates", 1, "--no-epoch-checkpoints",
         "--disable-validation")  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, reversal_data):
    save_dir = tmp_path_factory.mktemp("two") / "run"
    bleu = ("--eval-bleu", "--eval-bleu-args", '{"beam": 2}')
    finish(start(reversal_data, save_dir, 2, *SHORT, *bleu), save_dir)
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
    moec_checkpoint("merge", undisturbed / "checkpoint_last.pt", "--out", merged)
    done = fairseq(
        "validate", reversal_data, "--user-dir", ROOT / "moec_fairseq", "--task", "translation", "--path", merged,
        "--valid-subset", "valid", "--cpu", "--max-tokens", 300,
    )  # fmt: skip
    (here,) = re.findall(r"\| valid on 'valid' subset .*?\| nll_loss ([\d.]+)", done.stderr + done.stdout)
    there = re.findall(r"\| valid \|.*? nll_loss ([\d.]+)", (undisturbed / "rank-0.log").read_text())[-1]
    assert float(here) == pytest.approx(float(there), abs=0.002)


def test_ten_kills_change_nothing(reversal_data, tmp_path):
    undisturbed, save_dir, chance = tmp_path / "undisturbed", tmp_path / "run", random.Random(1)
    finish(start(reversal_data, undisturbed, 2, *OFTEN), undisturbed)
    for until in range(2, 22, 2):
        processes = start(reversal_data, save_dir, 2, *OFTEN)
        while updates(save_dir) < until:
            assert all(process.is_alive() for process in processes), (save_dir / "rank-0.log").read_text()[-3000:]
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.1))
        victim = chance.randrange(2)
        processes[victim].kill()
        processes[1 - victim].join(60)  # does not wait for ever
        assert processes[1 - victim].exitcode not in (0, None)
    finish(start(reversal_data, save_dir, 2, *OFTEN), save_dir)
    for rank in (0, 1):
        resumed, expected = (model(d, f"checkpoint_last-rank-{rank}.pt") for d in (save_dir, undisturbed))
        for name, value in expected.items():
            torch.testing.assert_close(resumed[name], value, rtol=0, atol=0, msg=lambda m, n=name: f"{n}: {m}")


def losses(save_dir: Path) -> dict[int, float]:
    """Return the loss of each update in the log of rank 0."""
    found = re.findall(r" loss=([\d.]+),.* num_updates=(\d+)", (save_dir / "rank-0.log").read_text())
    return {int(update): float(loss) for loss, update in found}


def four_batches(world_size: int) -> tuple[object, ...]:
    """Make an update of four batches, always the same ones; router losses would be those of fewer."""
    flags = ("--max-sentences", 4, "--moec-expert-dropout", 0, "--moe-gate-loss-wt", 0, "--disable-validation")
    return (*flags, "--update-freq", 4 // world_size, "--max-update", 12)


@pytest.fixture(scope="module")
def stayed(tmp_path_factory, reversal_data):
    """Return the folder of two processes that have made their updates, saved after half of them, too."""
    save_dir = tmp_path_factory.mktemp("stayed")
    finish(start(reversal_data, save_dir, 2, *four_batches(2), "--save-interval-updates", 6), save_dir)
    return save_dir


@pytest.mark.parametrize("ranks", [1, 4])
def test_going_on_with_another_number_of_processes(stayed, reversal_data, tmp_path, ranks):
    (name,) = {path.name.replace("-rank-0", "") for path in stayed.glob("checkpoint_*_6-rank-0.pt")}
    moec_checkpoint("reshard", stayed / name, "--ranks", ranks, "--out", tmp_path / "checkpoint_last.pt")
    finish(start(reversal_data, tmp_path, ranks, *four_batches(ranks)), tmp_path)
    there, here = losses(stayed), losses(tmp_path)
    assert list(here) == list(range(7, 13))
    assert here == pytest.approx({update: there[update] for update in here}, rel=1e-3)


def test_translations_do_not_depend_on_ranks_and_batches(undisturbed, reversal_data, fairseq, tmp_path):
    found = []
    for ranks, batch in ((1, 1), (2, 64), (4, 7)):
        many, merged = tmp_path / f"{ranks}.pt", tmp_path / f"{ranks}-merged.pt"
        moec_checkpoint("reshard", undisturbed / "checkpoint_last.pt", "--ranks", ranks, "--out", many)
        moec_checkpoint("merge", many, "--out", merged)
        log = fairseq(
            "generate", reversal_data, "--user-dir", ROOT / "moec_fairseq", "--cpu", "--path", merged, "--beam", 3,
            "--batch-size", batch, "--gen-subset", "valid",
        ).stdout  # fmt: skip
        found.append(dict(re.findall(r"^H-(\d+)\t\S+\t(.*)$", log, flags=re.MULTILINE)))
    assert len(found[0]) == 100 and found[0] == found[1] == found[2]


def test_wrong_numbers_of_processes_end_in_one_sentence(reversal_data, tmp_path):
    processes = start(reversal_data, tmp_path, 2, "--moe-expert-count", 3, "--moec-cluster-count", 1)
    for rank, process in enumerate(processes):
        process.join(60)
        assert process.exitcode not in (0, None)
        said = (tmp_path / f"rank-{rank}.log").read_text().strip().splitlines()[-1]
        assert "3 experts (--moe-expert-count) cannot be shared by 2 processes" in said
