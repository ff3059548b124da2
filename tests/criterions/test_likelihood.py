import math

import pytest
import torch
from fairseq.criterions.label_smoothed_cross_entropy import label_smoothed_nll_loss
from hypothesis import given
from hypothesis import strategies as st

from moec_fairseq.criterions import likelihood
from moec_fairseq.criterions.likelihood import NegativeLogLikelihood


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(likelihood, "BLOCK_CPU", 14)  # two tokens of seven words at a time


def made(tokens, vocabulary, seed=0, dtype=torch.float32):
    random = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(tokens, vocabulary, generator=random, dtype=torch.float64)
    return logits.to(dtype).requires_grad_(), torch.randint(vocabulary, (tokens,), generator=random)


def test_even_scores_give_the_logarithm_of_the_vocabulary():
    nll_T, smooth_T = NegativeLogLikelihood.apply(torch.zeros(3, 8), torch.tensor([0, 5, 7]))
    torch.testing.assert_close(nll_T, torch.full((3,), math.log(8)))
    torch.testing.assert_close(smooth_T, torch.full((3,), 8 * math.log(8)))


def test_gradient_by_differences(small_blocks):
    logits_TV, target_T = made(5, 7, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda logits: NegativeLogLikelihood.apply(logits, target_T), logits_TV)


def test_one_of_the_two_losses_alone_has_a_gradient(small_blocks):
    logits_TV, target_T = made(5, 7, dtype=torch.float64)
    for which in (0, 1):
        assert torch.autograd.gradcheck(
            lambda logits, which=which: NegativeLogLikelihood.apply(logits, target_T)[which], logits_TV
        )


@given(tokens=st.integers(0, 9), vocabulary=st.integers(2, 20), block=st.integers(1, 64), seed=st.integers(0, 99))
def test_it_is_fairseqs_loss_whatever_the_blocks(tokens, vocabulary, block, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(likelihood, "BLOCK_CPU", block)
        (ours, target_T), (theirs, _) = made(tokens, vocabulary, seed), made(tokens, vocabulary, seed)
        nll_T, smooth_T = NegativeLogLikelihood.apply(ours, target_T)
        share = 0.1 / (vocabulary - 1)
        ((0.9 - share) * nll_T.sum() + share * smooth_T.sum()).backward()
    loss, nll_loss = label_smoothed_nll_loss(theirs.log_softmax(-1), target_T, 0.1)
    loss.backward()
    torch.testing.assert_close(nll_T.sum(), nll_loss)
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype):
    logits_TV, target_T = made(6, 50, dtype=dtype)
    nll_T, smooth_T = NegativeLogLikelihood.apply(logits_TV, target_T)
    nll_T.sum().backward()
    single = logits_TV.detach().float().requires_grad_()
    expected_T = -single.log_softmax(-1).gather(1, target_T[:, None]).squeeze(1)
    expected_T.sum().backward()
    assert nll_T.dtype == smooth_T.dtype == torch.float32
    assert torch.equal(nll_T, expected_T)
    assert torch.equal(logits_TV.grad, single.grad.to(dtype))
