import pytest
import torch

from moec_fairseq.moe import experts, grouped
from moec_fairseq.moe.experts import ExpertSublayer
from moec_fairseq.moe.ways import WAYS

from .stubs import by_plain_autograd, grouped_mm_by_loop


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    """Threads of torch, whatever the environment says."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(params=["hand-written backward", "reference"])
def both_experts(request, monkeypatch):
    """Test with experts as they are, and with their reference, which a new kind of expert can start from."""
    if request.param == "reference":
        monkeypatch.setattr(ExpertSublayer, "forward", by_plain_autograd)


@pytest.fixture(params=[*WAYS, "reference"])
def every_way(request, monkeypatch):
    """Test with each way to compute experts, and with their reference."""
    if request.param == "reference":
        monkeypatch.setattr(ExpertSublayer, "forward", by_plain_autograd)
    else:
        monkeypatch.setattr(experts, "choose", lambda work, segments: request.param)
        monkeypatch.setattr(grouped, "grouped_mm", grouped_mm_by_loop)
    return request.param
