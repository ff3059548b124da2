import pytest
import torch


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    """Threads of torch, whatever the environment says."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
