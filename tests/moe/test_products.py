import pytest
import torch

from moec_fairseq.moe import products
from moec_fairseq.moe.products import product


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rows, columns, inner", [(3, 5, 4), (1, 1, 1), (0, 5, 4), (64, 33, 17)])
@pytest.mark.parametrize("onednn", [True, False])
def test_against_the_definition(dtype, rows, columns, inner, onednn, monkeypatch):
    monkeypatch.setattr(products, "HAS_ONEDNN", onednn and products.HAS_ONEDNN)
    a, b = torch.randn(rows, inner, dtype=dtype), torch.randn(columns, inner, dtype=dtype)
    torch.testing.assert_close(product(a, b), (a.double() @ b.double().t()).to(dtype))


def test_transposed_views():
    a, b = torch.randn(4, 3).t(), torch.randn(4, 5).t()
    torch.testing.assert_close(product(a, b), a @ b.t())


def test_other_torches_do_without_onednn(monkeypatch):
    monkeypatch.setattr(products, "_onednn_product", lambda a, b: a @ b.t() + 1)
    assert not products._onednn_works()

    def missing(a, b):
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")

    monkeypatch.setattr(products, "_onednn_product", missing)
    assert not products._onednn_works()
