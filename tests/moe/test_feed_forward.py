from functools import partial

import pytest
import torch
from torch.nn import functional as F

from moec_fairseq.moe.expert_parallel import Shard
from moec_fairseq.moe.experts import Experts, ExpertSublayer
from moec_fairseq.moe.feed_forward import loop

from .stubs import by_plain_autograd, randomise, segments_of

ACTIVATIONS = [F.relu, F.gelu, torch.tanh, lambda x: x, lambda x: F.relu(x).square()]


def gradients(function, block, tokens, counts):
    block.zero_grad()
    tokens = tokens.clone().requires_grad_()
    outputs = function(tokens, segments_of(counts))
    (outputs * torch.linspace(-1, 1, outputs.numel()).view_as(outputs)).sum().backward()
    return outputs.detach(), tokens.grad, *[p.grad.clone() for p in block.parameters()]


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.float64, 1e-10)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("counts", [[2, 0, 3, 1], [90, 60, 0, 70], [5, 300, 40, 40], [0, 0, 0, 7]])
def test_against_the_reference(activation, counts, dtype, tolerance, threads):
    block = ExpertSublayer(Shard(4), 6, 10, activation).to(dtype)
    randomise(block)
    tokens = torch.randn(sum(counts), 6, dtype=dtype)
    ours = gradients(block, block, tokens, counts)
    theirs = gradients(partial(by_plain_autograd, block), block, tokens, counts)
    for name, a, b in zip(["outputs", "tokens", *dict(block.named_parameters())], ours, theirs, strict=True):
        message = lambda m, name=name: f"{name}: {m}"  # noqa: E731
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=message)


@pytest.mark.parametrize("activation", ACTIVATIONS[1:3])
def test_gradcheck(activation):
    block = ExpertSublayer(Shard(3), 4, 5, activation).double()
    randomise(block)
    tokens = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)

    def function(tokens, *parameters):
        return loop(activation, tokens, segments_of([2, 0, 4]), parameters)

    assert torch.autograd.gradcheck(function, (tokens, *block.parameters()))


def test_nothing_is_kept_without_gradients():
    block = ExpertSublayer(Shard(2), 4, 5, F.relu)
    with torch.no_grad():
        outputs = block(torch.randn(3, 4), segments_of([1, 2]))
    assert outputs.grad_fn is None
    assert block(torch.randn(3, 4), segments_of([1, 2])).requires_grad


def test_autocast_computes_in_its_dtype_and_keeps_that_of_the_stream():
    experts = Experts(2, 16, 32)
    randomise(experts)
    tokens = torch.randn(7, 16, requires_grad=True)
    exact = experts(tokens, segments_of([3, 4]))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = experts(tokens, segments_of([3, 4]))
    assert rounded.dtype == torch.float32
    difference = (rounded - exact).abs().max() / exact.abs().max()
    assert 1e-5 < difference < 3e-2
    rounded.sum().backward()
    w1_NFD = experts.sublayers[0].w1_NFD
    assert w1_NFD.grad.dtype == torch.float32 and w1_NFD.grad.any()


def test_forward_and_backward_of_a_model_in_bfloat16():
    block = ExpertSublayer(Shard(2), 16, 32, F.relu).bfloat16()
    randomise(block)
    tokens = torch.randn(7, 16, dtype=torch.bfloat16, requires_grad=True)
    outputs = block(tokens, segments_of([3, 4]))
    outputs.sum().backward()
    assert outputs.dtype == tokens.grad.dtype == block.w2_NDF.grad.dtype == torch.bfloat16
    assert block.w2_NDF.grad.any()
