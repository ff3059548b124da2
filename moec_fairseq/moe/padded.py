"""The feed-forward blocks of many experts as batched products over equally many slots for each expert."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from moec_fairseq.moe.feed_forward import Activation, masked, normalise
from moec_fairseq.moe.segments import Segments

# What the loop costs for each expert beyond its products: 20 kernels forward and backward, which the host launches one
# after the other.
LOOP_SECONDS_PER_EXPERT = 20 * 5e-6
# What products reach, and what the memory moves, on the slower GPUs in use. The faster ones win more by padding.
FLOP_PER_SECOND = {torch.float16: 1e14, torch.bfloat16: 1e14, torch.float32: 1e13, torch.float64: 1e13}
BYTES_PER_SECOND = 1e12
# There are at most this many times as many slots as tokens, for the sake of memory, unless experts have few tokens.
MAX_MULTIPLE_OF_MEAN, FEW_SLOTS = 8, 128


class _BatchedLinear(torch.autograd.Function):
    """x·Wᵀ + b for each expert.

    Autograd's own gradient of W would be that of Wᵀ, and be copied into the layout of W afterwards.
    """

    @staticmethod
    def forward(ctx: Any, x_NXK: Tensor, w_NMK: Tensor, b_NM: Tensor) -> Tensor:
        """Return (N, X, M)."""
        ctx.save_for_backward(x_NXK, w_NMK)
        return torch.baddbmm(b_NM.unsqueeze(1), x_NXK, w_NMK.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, gradient_NXM: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of x, W and b."""
        x_NXK, w_NMK = ctx.saved_tensors
        return gradient_NXM.bmm(w_NMK), gradient_NXM.transpose(1, 2).bmm(x_NXK), gradient_NXM.sum(1)


class _BatchedScale(torch.autograd.Function):
    """x ⊙ weight + bias for each expert, as ``dtype``; autograd of ``addcmul`` would multiply by its factor 1, too."""

    @staticmethod
    def forward(ctx: Any, x_NXD: Tensor, weight_ND: Tensor, bias_ND: Tensor, dtype: torch.dtype) -> Tensor:
        """Return (N, X, D)."""
        ctx.save_for_backward(x_NXD, weight_ND)
        out_NXD = torch.empty_like(x_NXD, dtype=dtype)
        return torch.addcmul(bias_ND.unsqueeze(1), x_NXD, weight_ND.unsqueeze(1), out=out_NXD)

    @staticmethod
    def backward(ctx: Any, gradient_NXD: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Return the gradients of x, weight and bias."""
        x_NXD, weight_ND = ctx.saved_tensors
        d_weight_ND, d_bias_ND = (gradient_NXD * x_NXD).sum(1), gradient_NXD.sum(1, dtype=weight_ND.dtype)
        return gradient_NXD * weight_ND.unsqueeze(1), d_weight_ND, d_bias_ND, None


def padded(
    activation: Activation,
    tokens_AD: Tensor,
    segments: Segments,
    parameters: Sequence[Tensor],
    mask_AF: Tensor | None = None,
) -> Tensor:
    """Return the outputs of the blocks, (A, D); see ``feed_forward.loop``.

    Any device, dtype and version of torch computes this. The number of kernels does not depend on that of experts.
    """
    *norm, w1_NFD, b1_NF, w2_NDF, b2_ND = parameters
    slots = segments.equal
    x_AD, *norm = normalise(tokens_AD, *norm) if norm else [tokens_AD]
    x_NXD = slots.place(x_AD).view(len(w1_NFD), -1, x_AD.shape[1])
    x_NXD = _BatchedScale.apply(x_NXD, *norm, w1_NFD.dtype) if norm else x_NXD.to(w1_NFD.dtype)
    hidden_NXF = _BatchedLinear.apply(x_NXD, w1_NFD, b1_NF)
    mask_NXF = None if mask_AF is None else slots.place(mask_AF).view_as(hidden_NXF)
    outputs_NXD = _BatchedLinear.apply(masked(activation(hidden_NXF), mask_NXF), w2_NDF, b2_ND)
    return slots.take(outputs_NXD.flatten(0, 1))


def padding_pays(counts: Sequence[int], dim: int, ffn_dim: int, dtype: torch.dtype) -> bool:
    """Whether to compute the rows of zeros takes less time than to launch the kernels of each expert.

    A row costs 12·D·F floating-point operations, forward and backward, and moves about 12·(D + F) numbers; whichever
    takes longer counts. In half precision, with D = 512 and F = 2 048, experts may be padded by 794 rows on average.
    """
    mean, slots = sum(counts) / len(counts), max(counts)
    computing = 12 * dim * ffn_dim / FLOP_PER_SECOND[dtype]
    moving = 12 * (dim + ffn_dim) * torch.finfo(dtype).bits / 8 / BYTES_PER_SECOND
    fast = (slots - mean) * max(computing, moving) <= LOOP_SECONDS_PER_EXPERT
    return fast and slots <= max(MAX_MULTIPLE_OF_MEAN * mean, FEW_SLOTS)
