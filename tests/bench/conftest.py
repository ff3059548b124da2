from types import SimpleNamespace

import pytest

from moec_fairseq.bench import measure
from tests.python import forkserver


@pytest.fixture
def memory_of_forks(monkeypatch):
    """Measure memory in processes that need not import torch and fairseq first; there are some twenty of them."""
    monkeypatch.setattr(measure, "multiprocessing", SimpleNamespace(get_context=lambda method: forkserver))
