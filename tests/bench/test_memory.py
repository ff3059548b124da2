from functools import partial

import pytest
import torch

from moec_fairseq.bench.measure import Contender, peak

MIB = 2**20


def allocate(mebibytes: int) -> Contender:
    return Contender(lambda: torch.ones(mebibytes * MIB // 4).sum())


def fail() -> Contender:
    raise MemoryError


def test_a_known_amount():
    found = peak(partial(allocate, 300), torch.device("cpu"))
    assert 300 * MIB <= found.torch < 301 * MIB
    assert 280 * MIB <= found.process < 400 * MIB


def test_a_failure_is_told(capfd):
    with pytest.raises(RuntimeError, match="ended with exit code 1"):
        peak(fail, torch.device("cpu"))
    assert "MemoryError" in capfd.readouterr().err
