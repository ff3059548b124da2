import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moec_fairseq.moe import products
from moec_fairseq.moe.products import pad_for_products, product


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


@given(rows=st.integers(0, 5000))
def test_padding_is_zero_and_short(rows):
    padded = pad_for_products(torch.ones(rows, 2))
    assert torch.equal(padded[:rows], torch.ones(rows, 2)) and not padded[rows:].any()
    assert len(padded) - rows <= rows / 16


def test_few_shapes_are_left():
    padded = {0: 0, 1: 1, 31: 31, 33: 34, 64: 64, 65: 68, 1000: 1024, 1025: 1088}
    assert {rows: len(pad_for_products(torch.ones(rows, 1))) for rows in padded} == padded
    # 16 numbers in each of the 7 octaves from 32 on
    assert len({len(pad_for_products(torch.empty(rows, 1))) for rows in range(32, 4096)}) == 16 * 7 + 1


def test_other_devices_need_no_padding():
    assert pad_for_products(torch.empty(1001, 3, device="meta")).shape == (1001, 3)
