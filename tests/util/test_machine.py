import os

import pytest

from moec_fairseq.util import machine
from moec_fairseq.util.machine import Gpu

TOOL = """#!/bin/sh
[ "$1" = --query-gpu=name,memory.total,compute_cap ] || exit 2
echo "NVIDIA A100-SXM4-80GB, 81920, 8.0"
echo "Tesla T4, 15360, 7.5"
"""
A100, T4 = Gpu("NVIDIA A100-SXM4-80GB", 80 << 30, 8.0), Gpu("Tesla T4", 15 << 30, 7.5)


@pytest.mark.parametrize("visible, expected", [
    (None, [A100, T4]), ("1", [T4]), ("1,0", [T4, A100]), ("", []), ("GPU-8932f937", [A100, T4]), ("0,7", [A100]),
    ("-1", []), ("0,-1,1", [A100]), ("NoDevFiles", []),
])  # fmt: skip
def test_gpus_are_those_of_the_drivers_tool(tmp_path, monkeypatch, visible, expected):
    (tmp_path / "nvidia-smi").write_text(TOOL)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine.gpus() == expected


def test_a_gpu_without_memory_of_its_own_has_that_of_the_machine(tmp_path, monkeypatch):
    (tmp_path / "nvidia-smi").write_text('#!/bin/sh\necho "NVIDIA GB10, [N/A], 12.1"\n')
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert machine.gpus() == [Gpu("NVIDIA GB10", machine.memory(), 12.1)]


def test_without_the_tool_or_a_driver_there_are_no_gpus(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.gpus() == []
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'no driver' >&2\nexit 9\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert machine.gpus() == []


@pytest.mark.parametrize("contents, cores", [
    (["200000 100000\n"], 2), (["150000 100000\n"], 2), (["50000 100000\n"], 1), (["max 100000\n"], 8),
    (["1600000 100000\n"], 8), (["300000\n", "100000\n"], 3), (["-1\n", "100000\n"], 8),
])  # fmt: skip
def test_cores_are_what_a_container_may_use(tmp_path, monkeypatch, contents, cores):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: range(8), raising=False)
    files = [tmp_path / f"{number}" for number in range(len(contents))]
    for path, content in zip(files, contents, strict=True):
        path.write_text(content)
    monkeypatch.setattr(machine, "QUOTAS", (files, ["/nowhere"]))
    assert machine.cores() == cores


def test_memory_is_what_a_container_may_use(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(machine, "LIMITS", (str(limit), str(tmp_path / "none")))
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert machine.memory() == whole
    for content, expected in (("max\n", whole), ("1000\n", 1000), (f"{1 << 62}\n", whole)):
        limit.write_text(content)
        assert machine.memory() == expected
    assert 1 <= machine.cores() <= (os.cpu_count() or 1)
