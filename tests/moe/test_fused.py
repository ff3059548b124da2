"""Closed forms for devices, on the CPU, against autograd."""

import math

import pytest
import torch

from moec_fairseq.moe.clusters import ExpertClusters
from moec_fairseq.moe.fused import MIN_TEMPERATURE, CosineRouting, _Gated, gated
from moec_fairseq.moe.losses import GROUPS, GateLoss, fused_intra_cv, gate_statistics, over_ranks
from moec_fairseq.moe.router import cosine_scores, replace_non_finite

from .stubs import random_records

DTYPES = [torch.float32, torch.float64]
FLOORED = 3e-5  # a norm and a temperature below their floor of 1e-4


def by_autograd(queries_TK, embeddings_SK, temperature):
    scores_TS = replace_non_finite(cosine_scores(queries_TK, embeddings_SK))
    best_T, index_T = scores_TS.max(dim=-1)
    return scores_TS, index_T, torch.sigmoid(best_T / temperature.clamp(min=MIN_TEMPERATURE))


def operands(case, dtype):
    source = torch.Generator().manual_seed(1)
    queries_TK = torch.randn({"one token": 1, "no token": 0}.get(case, 6), 3, generator=source, dtype=dtype)
    embeddings_SK = 0.1 * torch.randn(1 if case == "one expert" else 4, 3, generator=source, dtype=dtype)
    temperature = torch.tensor([FLOORED if case == "cold" else 0.5], dtype=dtype)
    rows = {"zero": 0.0, "tiny": FLOORED / 3, "nan": math.nan, "inf": math.inf, "huge": 1e30}
    if case in rows:
        queries_TK[1, :] = rows[case]
    elif case == "one inf":
        queries_TK[1, 2] = -math.inf
    elif case == "nothing finite":
        queries_TK[:] = math.nan
    elif case == "zero expert":
        embeddings_SK[2] = 0
    elif case == "broken expert":
        embeddings_SK[2, 1] = math.nan
    return [tensor.requires_grad_() for tensor in (queries_TK, embeddings_SK, temperature)]


def results(function, tensors, used=("scores", "gate")):
    """Return scores, index, gate, and the gradients of a sum of those used, weighted unequally."""
    scores_TS, index_T, gate_T = function(*tensors)
    parts = {"scores": scores_TS, "gate": gate_T}
    total = sum((parts[name] * torch.linspace(-1, 2, parts[name].numel()).view_as(parts[name])).sum() for name in used)
    return scores_TS, index_T, gate_T, *torch.autograd.grad(total, tensors, allow_unused=True)


CASES = ["random", "one token", "no token", "one expert", "cold", "zero", "tiny", "nan", "inf", "one inf", "huge"]
CASES += ["nothing finite", "zero expert", "broken expert"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_routing_is_that_of_autograd(case, dtype):
    ours, expected = (results(function, operands(case, dtype)) for function in (CosineRouting.apply, by_autograd))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)
    assert torch.equal(ours[1], expected[1]) and ours[0].isfinite().all() and ours[2].isfinite().all()


@pytest.mark.parametrize("used", ["scores", "gate"])
def test_routing_of_which_only_a_part_is_used(used):
    ours = results(CosineRouting.apply, operands("random", torch.float64), [used])[3:]
    expected = results(by_autograd, operands("random", torch.float64), [used])[3:]
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b)


@pytest.mark.parametrize("case", ["random", "one token", "one expert", "cold", "tiny"])
def test_gradcheck_of_routing(case):
    tensors = operands(case, torch.float64)
    assert torch.autograd.gradcheck(lambda *t: CosineRouting.apply(*t)[::2], tensors, eps=1e-7, atol=1e-4)


def records_of(case, dtype=torch.float64):
    clusters = ExpertClusters(12, 3)
    tokens, rate = {"no dropout": ([9, 9, 4], 0.0), "one token": ([1], 0.5)}.get(case, ([9, 9, 0, 4], 0.5))
    records = random_records(clusters, tokens, rate, dtype=dtype)
    if case in ("tiny", "underflow"):  # a cluster that nobody wants
        size = records[0].routing.scores_TS.shape[1] // 3
        for record in records:
            record.routing.scores_TS.data[:, :size] -= {"tiny": 2.5, "underflow": 1e3}[case]
    return records


def losses_and_gradients(losses_of, records, statistics_of=gate_statistics):
    balance_L, variance_L = losses_of(statistics_of(records))
    scores = [record.routing.scores_TS for record in records]
    total = (balance_L * torch.linspace(1, 2, len(records))).sum() + 0.3 * (variance_L**2).sum()
    return balance_L, variance_L, *torch.autograd.grad(total, scores)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ["no dropout", "cluster dropout", "one token", "tiny", "underflow"])
def test_losses_are_those_of_autograd(case, dtype):
    ours = losses_and_gradients(lambda statistics: fused_intra_cv(statistics, 0.5), records_of(case, dtype))
    expected = losses_and_gradients(GateLoss("intra_cv", 0.5), records_of(case, dtype))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for a, b in zip(ours, expected, strict=True):
        largest = float(b.detach().abs().amax()) if b.numel() else 0
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * largest)


def test_losses_of_several_ranks():
    def of_two(records):  # the other has the same tokens
        return over_ranks(gate_statistics(records), lambda own: 2 * own)

    ours = losses_and_gradients(lambda statistics: fused_intra_cv(statistics, 0.5), records_of("random"), of_two)
    for a, b in zip(ours, losses_and_gradients(GateLoss("intra_cv", 0.5), records_of("random"), of_two), strict=True):
        torch.testing.assert_close(a, b)


def test_losses_of_random_groups():
    def grouped(records):
        return GROUPS["random"](gate_statistics(records), records, 1)

    ours = losses_and_gradients(lambda statistics: fused_intra_cv(statistics, 0.5), records_of("random"), grouped)
    expected = losses_and_gradients(GateLoss("intra_cv", 0.5), records_of("random"), grouped)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert not torch.equal(ours[1], losses_and_gradients(GateLoss("intra_cv", 0.5), records_of("random"))[1])


@pytest.mark.parametrize("case", ["no dropout", "cluster dropout", "tiny"])
def test_gradcheck_of_losses(case):
    records = records_of(case)
    scores = [record.routing.scores_TS for record in records]
    assert torch.autograd.gradcheck(lambda *_: fused_intra_cv(gate_statistics(records), 0.5), scores)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gate_times_rows(dtype):
    gate_T1, rows_TD = torch.rand(5, 1, requires_grad=True), torch.randn(5, 4).to(dtype).requires_grad_()
    ours, plain = _Gated.apply(gate_T1, rows_TD, dtype), gated(gate_T1, rows_TD, dtype)
    direction = torch.randn(5, 4).to(dtype)
    found, expected = (torch.autograd.grad(out, (gate_T1, rows_TD), direction) for out in (ours, plain))
    for a, b in zip((ours, *found), (plain, *expected), strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)
    assert (ours.float() - (gate_T1 * rows_TD.float())).abs().max() <= torch.finfo(dtype).eps * ours.abs().max() / 2


def test_gradcheck_of_gate_times_rows():
    tensors = [torch.randn(3, k, dtype=torch.float64, requires_grad=True) for k in (1, 2)]
    assert torch.autograd.gradcheck(lambda *t: _Gated.apply(*t, torch.float64), tensors)


def test_second_derivatives_are_refused():
    routing = CosineRouting.apply(*operands("random", torch.float64))
    records = records_of("no dropout")
    losses = fused_intra_cv(gate_statistics(records), 0.5)
    product = _Gated.apply(torch.ones(2, 1, requires_grad=True), torch.ones(2, 3, requires_grad=True), torch.float32)
    for output in (routing[0], losses[1], product):
        leaves = [record.routing.scores_TS for record in records] if output is losses[1] else None
        inputs = leaves or [node.variable for node, _ in output.grad_fn.next_functions if hasattr(node, "variable")]
        (gradient, *_) = torch.autograd.grad(output.square().sum(), inputs, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            gradient.sum().backward()
