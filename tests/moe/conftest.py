import pytest
import torch

from moec_fairseq.moe.experts import ExpertSublayer

from .stubs import by_plain_autograd


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
