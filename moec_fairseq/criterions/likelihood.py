"""Negative log-likelihoods computed directly from the logits."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK_CPU = 1 << 20  # logits processed at a time: 4 MiB of float32, which stay in the cache
BLOCK = 1 << 24  # on other devices, where few large steps are faster than many small ones


def _blocks(logits_TV: Tensor) -> Iterator[slice]:
    """Yield the slices of tokens that are processed at a time."""
    tokens, vocabulary = logits_TV.shape
    size = max(1, (BLOCK_CPU if logits_TV.device.type == "cpu" else BLOCK) // vocabulary)
    return (slice(start, start + size) for start in range(0, tokens, size))


class NegativeLogLikelihood(torch.autograd.Function):
    """Negative log-likelihood of each token's target, and its sum over the whole vocabulary, for smoothing.

    Autograd through ``log_softmax`` keeps the log-probabilities, a tensor as large as the logits, and allocates three
    more of that size in the backward pass: for the target, for the sum, and for both. Here only the logits are kept,
    and only their gradient is allocated.
    """

    @staticmethod
    def forward(ctx: Any, logits_TV: Tensor, target_T: Tensor) -> tuple[Tensor, Tensor]:
        """Return −log p(target), (T,), and −Σ_v log p(v), (T,), both at least in float32.

        Args:
            ctx: autograd's.
            logits_TV: logits of the vocabulary for each token.
            target_T: index of the correct subword.
        """
        dtype = torch.promote_types(logits_TV.dtype, torch.float32)
        nll_T, smooth_T = (logits_TV.new_empty(len(target_T), dtype=dtype) for _ in range(2))
        for rows in _blocks(logits_TV):
            log_probs = F.log_softmax(logits_TV[rows], dim=-1, dtype=dtype)
            nll_T[rows] = -log_probs.gather(1, target_T[rows, None]).squeeze(1)
            smooth_T[rows] = -log_probs.sum(dim=1)
        ctx.save_for_backward(logits_TV, target_T)
        return nll_T, smooth_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_nll_T: Tensor, d_smooth_T: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of the logits: p·(d_nll + V·d_smooth) − d_smooth − [target]·d_nll."""
        logits_TV, target_T = ctx.saved_tensors
        d_logits_TV = torch.empty_like(logits_TV)
        d_both_T = d_nll_T + logits_TV.shape[1] * d_smooth_T
        for rows in _blocks(logits_TV):
            gradient = F.softmax(logits_TV[rows], dim=-1, dtype=d_both_T.dtype)
            gradient.mul_(d_both_T[rows, None]).sub_(d_smooth_T[rows, None])
            gradient.scatter_add_(1, target_T[rows, None], -d_nll_T[rows, None])
            d_logits_TV[rows] = gradient
        return d_logits_TV, None


def label_smoothed_losses(
    logits_TV: Tensor, target_T: Tensor, epsilon: float, padding: int, reduce: bool = True
) -> tuple[Tensor, Tensor]:
    """Return the label-smoothed cross-entropy and −log p(target): sums over the tokens, or (T, 1); padding is 0.

    The loss is fairseq's: (1 − ε − ε/(V−1))·nll − ε/(V−1)·Σ_v log p(v), which gives ε to the V − 1 other subwords. It
    is also summed in fairseq's order, and is identical to the last digit.

    Args:
        logits_TV: logits of the vocabulary for each token.
        target_T: index of the correct subword.
        epsilon: ε, the probability mass of the other subwords.
        padding: index of the padding symbol.
        reduce: whether to sum over the tokens.
    """
    losses = NegativeLogLikelihood.apply(logits_TV, target_T)
    nll, smooth = (loss.masked_fill(target_T == padding, 0).unsqueeze(1) for loss in losses)
    if reduce:
        nll, smooth = nll.sum(), smooth.sum()
    share = epsilon / (logits_TV.shape[1] - 1)
    return (1 - epsilon - share) * nll + share * smooth, nll
