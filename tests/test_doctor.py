"""What moec doctor says of a machine, and how it ends; launch/test_preflight.py tests what it finds in a training."""

import sys
from pathlib import Path

import pytest

from moec_fairseq import doctor
from moec_fairseq.__main__ import main
from moec_fairseq.launch import ranks
from moec_fairseq.launch.preflight import Finding
from moec_fairseq.util import machine

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def a_machine(monkeypatch):
    """Two cores, no GPU; the allocator is that of the scripts."""
    monkeypatch.setattr(machine, "gpus", lambda: [])
    monkeypatch.setattr(machine, "cores", lambda: 2)
    monkeypatch.setattr(ranks.torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv(doctor.ALLOCATOR, "1")


def moec_doctor(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["moec", "doctor", *map(str, words)])
    return main(), capsys.readouterr()


def test_a_machine(monkeypatch, capsys):
    code, said = moec_doctor(monkeypatch, capsys)
    assert code == 0 and not said.err
    lines = [line.split(maxsplit=2) for line in said.out.splitlines()]
    assert [words[:2] for words in lines] == [
        ["ok", "versions"],
        ["slow", "GPU"],
        ["ok", "threads"],
        ["ok", "allocator"],
    ]


def test_what_is_wrong_decides_the_exit_status(monkeypatch, capsys):
    code, said = moec_doctor(monkeypatch, capsys, "small", "model.dropuot=0.3")
    assert code == 1
    assert said.out.splitlines()[-1].startswith(
        "wrong options     there is no option model.dropuot; nearest: model.dropout"
    )
    assert said.err == "error: 1 of 2 checks found what cannot work; the lines that begin with wrong say why\n"
    monkeypatch.setattr(doctor, "findings", lambda job: [Finding("slow", "x", "y"), Finding("ok", "z", job.own[1])])
    code, said = moec_doctor(monkeypatch, capsys, "small", "task.data=x", "--processes", 2, "--nodes", 3)
    assert code == 0 and not said.err
    assert said.out.splitlines()[-2:] == [
        "slow  x           y", "ok    z           distributed_training.distributed_world_size=6"
    ]  # fmt: skip
    for words, sentence in (
        (["small"], "task.data is missing"),
        (["nowhere"], "there is no configuration nowhere"),
        (["small", "task.data=x", "--processes", 0], "--processes is 0, but must be 1 or more"),
    ):
        code, said = moec_doctor(monkeypatch, capsys, *words)
        assert code == 1 and sentence in said.out.splitlines()[-1]


def test_tested_versions_are_those_of_the_constraints(monkeypatch):
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert f"Python {doctor.TESTED['Python']}, Linux" in constraints
    for name in ("torch", "fairseq-fixed"):
        assert f"\n{name}=={doctor.TESTED[name]}" in constraints
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert f'python_requires=">={doctor.OLDEST["Python"]},' in setup and f'"torch>={doctor.OLDEST["torch"]}"' in setup


@pytest.mark.parametrize("python, torch, state, words", [
    ("3.11.9", "2.13.1+cpu", "ok", "Python 3.11.9, torch 2.13.1, "),
    ("3.12.0", "2.13.0", "ok", "(tested: Python 3.11, torch 2.13, fairseq-fixed 0.12.3.1)"),
    ("3.11.9", "2.9.0a0+git", "ok", "(tested: Python 3.11, "),
    ("3.11.9", "1.9.0", "wrong", "torch must be 1.13 or later"),  # 9 is less than 13
    ("3.9.2", "2.13.0", "wrong", "Python must be 3.10 or later"),
])  # fmt: skip
def test_versions(monkeypatch, python, torch, state, words):
    monkeypatch.setattr(doctor.platform, "python_version", lambda: python)
    monkeypatch.setattr(doctor.torch, "__version__", torch)
    seen = doctor.versions()
    assert (seen.state, seen.subject) == (state, "versions") and words in seen.text


@pytest.mark.parametrize("threads, processes, state, words", [
    ("2", 1, "ok", "1 x 2 on 2 cores"),
    ("2", 2, "ok", "2 x 1 on 2 cores"),
    (None, 1, "ok", "1 x 2 on 2 cores"),
    (None, 2, "slow", "2 x 2 on 2 cores (processes, OMP_NUM_THREADS of each); export OMP_NUM_THREADS=2, which"),
    ("8", 1, "slow", "1 x 8 on 2 cores (processes, OMP_NUM_THREADS of each); export OMP_NUM_THREADS=2"),
    ("2", 4, "slow", "4 x 1 on 2 cores (processes, OMP_NUM_THREADS of each); give 2 --processes or fewer"),
])  # fmt: skip
def test_threads(monkeypatch, threads, processes, state, words):
    monkeypatch.delenv("OMP_NUM_THREADS")
    if threads:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    seen = next(doctor.of_cpu(processes))
    assert (seen.state, seen.subject) == (state, "threads") and words in seen.text


def test_the_allocator(monkeypatch):
    monkeypatch.setattr(doctor.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.delenv(doctor.ALLOCATOR)
    _, seen = doctor.of_cpu(1)
    assert (seen.state, seen.subject) == ("slow", "allocator") and "scripts/train.sh" in seen.text
    assert doctor.ALLOCATOR in (ROOT / "scripts" / "env.sh").read_text() + (ROOT / "scripts" / "start.sh").read_text()
    monkeypatch.setattr(doctor.platform, "libc_ver", lambda: ("", ""))  # not of this C library
    assert len(list(doctor.of_cpu(1))) == 1


def test_gpus(monkeypatch):
    card = machine.Gpu("Some GPU", 80 << 30, 9.0)
    assert doctor.gpus(0, asked=False).state == "slow" and doctor.gpus(0, asked=True).state == "ok"
    monkeypatch.setattr(machine, "gpus", lambda: [card, card])
    monkeypatch.setattr(doctor.torch.version, "cuda", "13.0")
    used = doctor.gpus(2, asked=False)
    assert used.state == "ok" and used.text == "2 used, of Some GPU (80 GiB), Some GPU (80 GiB)"
    assert doctor.gpus(0, asked=True).text.endswith(", not used")
    assert doctor.gpus(0, asked=False).text.endswith(
        "for CUDA 13.0 cannot use it; update the driver, or install a torch for an older CUDA"
    )
    monkeypatch.setattr(doctor.torch.version, "cuda", None)
    blind = doctor.gpus(0, asked=False)
    assert blind.state == "slow" and blind.text.endswith("cannot use; install a torch with CUDA")
