"""A training step as a GPU would see it: where the host waits, dtypes that CUDA rejects, number of kernels."""

import json
import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

try:
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend  # noqa: F401
except ImportError:
    pytest.skip("this torch has no back-ends in Python (since 2.9)", allow_module_level=True)


@lru_cache
def step(precision: str, experts: int = 8) -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-W", "ignore", "-m", "tests.device.step", precision, str(experts), folder]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


PRECISIONS = ["fp32", "bf16", "fp16", "amp"]


def ours(waits: list[list[Any]]) -> dict[str, int]:
    return {place: count for _, place, count in waits if place.startswith("moec_fairseq/")}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_where_the_host_waits(precision):
    # each of the two layers reads how many tokens its experts have, and the log everything at once
    found = step(precision)
    assert ours(found["waits"]) == {"moec_fairseq/moe/segments.py:counts": 2}
    assert ours(found["log_waits"]) == {"moec_fairseq/criterions/router_losses.py:on_host": 1}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_nothing_that_cuda_rejects(precision):
    found = step(precision)
    assert found["failing"] == [] and found["mixed"] == []


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_kernels_do_not_depend_on_the_number_of_experts(precision):
    few, many = step(precision, 8), step(precision, 64)
    assert few["kernels"] == many["kernels"]
    assert few["layer_kernels"] == many["layer_kernels"] <= 220
