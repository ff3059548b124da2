import pytest
import torch
from fairseq.modules.fairseq_dropout import FairseqDropout
from hypothesis import given
from hypothesis import strategies as st

from moec_fairseq.models.dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
def test_the_share_that_is_asked_for_is_dropped_and_the_mean_stays(p):
    torch.manual_seed(1)
    out = Dropout(p)(torch.ones(1000, 1000))
    assert out.eq(0).float().mean() == pytest.approx(p, abs=2e-3)  # four standard deviations at most
    assert out.mean() == pytest.approx(1, abs=4e-3 / (1 - p))
    torch.testing.assert_close(out.unique(), torch.tensor([0, 1 / (1 - p)]), rtol=1e-4, atol=0)


def test_neighbours_are_dropped_independently():
    torch.manual_seed(1)
    kept = Dropout(0.5)(torch.ones(1 << 20)).bool()
    for distance in (1, 2, 3, 4, 128):
        both = (kept[distance:] & kept[:-distance]).float().mean()
        assert both == pytest.approx(0.25, abs=2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_gradient_passes_where_the_value_passes(dtype):
    x = torch.ones(5, 7, dtype=dtype, requires_grad=True)
    out = Dropout(0.3)(x)
    out.sum().backward()
    assert torch.equal(x.grad, out.detach()) and out.dtype == dtype and {0} < set(out.flatten().tolist())


def test_a_mask_is_the_seeds_and_the_next_is_another():
    dropout, x = Dropout(0.5), torch.ones(64)
    torch.manual_seed(3)
    first, second = dropout(x), dropout(x)
    torch.manual_seed(3)
    assert torch.equal(dropout(x), first) and not torch.equal(second, first)


@pytest.mark.parametrize("p, factor", [(0.0, 1), (1e-7, 1), (1.0, 0)])
def test_shares_at_the_ends_drop_nothing_or_all(p, factor):
    torch.testing.assert_close(Dropout(p)(torch.ones(50)), torch.full((50,), float(factor)))


@given(st.lists(st.integers(0, 5), max_size=3))
def test_every_shape_keeps_its_shape(shape):
    assert Dropout(0.4)(torch.ones(shape)).shape == torch.Size(shape)


def test_without_training_nothing_is_dropped():
    x = torch.ones(50)
    assert Dropout(0.5).eval()(x) is x


def test_all_of_a_models_dropout_is_of_this_kind(build):
    model = build("--dropout", "0.2", "--encoder-moe-layers", "1").model
    kinds = {type(module) for module in model.modules() if isinstance(module, FairseqDropout)}
    assert kinds == {Dropout}
