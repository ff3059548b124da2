"""The feed-forward blocks of many experts as grouped matrix products; the host reads nothing from the device.

Each expert has one row of zeros more than it has tokens. For an expert without any row, the gradient of the weights is
a product over nothing: torch 2.8 hangs there (https://github.com/pytorch/pytorch/issues/152668), and later versions
return what was left in registers on some devices (https://github.com/pytorch/pytorch/issues/172439).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from moec_fairseq.moe.feed_forward import Activation, masked, normalise
from moec_fairseq.moe.segments import Segments, SpacedSlots
from moec_fairseq.moe.torch_features import grouped_mm

# strides of operands are multiples of this
ALIGNMENT_BYTES = 16


def _sums(ends_N: Tensor, *rows_XM: Tensor) -> list[Tensor]:
    """Return the sums of each expert's rows, (N, M), by a product with ones: it adds in float32, without atomics."""
    ones_XO = rows_XM[0].new_ones(len(rows_XM[0]), ALIGNMENT_BYTES // rows_XM[0].element_size())
    return [grouped_mm(ones_XO.t(), rows, ends_N)[:, 0] for rows in rows_XM]


class _GroupedLinear(torch.autograd.Function):
    """x·Wᵀ + b with the weights of each row's expert."""

    @staticmethod
    def forward(ctx: Any, x_XK: Tensor, w_NMK: Tensor, b_NM: Tensor, slots: SpacedSlots) -> Tensor:
        """Return (X, M)."""
        ctx.save_for_backward(x_XK, w_NMK)
        ctx.ends_N = slots.ends_N
        return grouped_mm(x_XK, w_NMK.transpose(1, 2), slots.ends_N).add_(b_NM.index_select(0, slots.expert_X))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_XM: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Return the gradients of x, W and b."""
        x_XK, w_NMK = ctx.saved_tensors
        gradient_XM, ends_N = gradient_XM.contiguous(), ctx.ends_N
        (d_b_NM,) = _sums(ends_N, gradient_XM)
        return grouped_mm(gradient_XM, w_NMK, ends_N), grouped_mm(gradient_XM.t(), x_XK, ends_N), d_b_NM, None


class _GroupedScale(torch.autograd.Function):
    """x ⊙ weight + bias of each row's expert, as ``dtype``; gradients are summed in ``dtype``, that of the products."""

    @staticmethod
    def forward(
        ctx: Any, x_XD: Tensor, weight_ND: Tensor, bias_ND: Tensor, slots: SpacedSlots, dtype: torch.dtype
    ) -> Tensor:
        """Return (X, D)."""
        ctx.save_for_backward(x_XD, weight_ND)
        ctx.slots = slots
        bias_XD, weight_XD = (parameter.index_select(0, slots.expert_X) for parameter in (bias_ND, weight_ND))
        return torch.addcmul(bias_XD, x_XD, weight_XD).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_XD: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Return the gradients of x, weight and bias."""
        x_XD, weight_ND = ctx.saved_tensors
        gradient_XD = gradient_XD.contiguous()
        d_x_XD = gradient_XD * weight_ND.index_select(0, ctx.slots.expert_X)
        d_weight_XD = torch.mul(gradient_XD, x_XD, out=torch.empty_like(gradient_XD))
        d_weight_ND, d_bias_ND = _sums(ctx.slots.ends_N, d_weight_XD, gradient_XD)
        return d_x_XD, d_weight_ND.to(weight_ND.dtype), d_bias_ND.to(weight_ND.dtype), None, None


def grouped(
    activation: Activation,
    tokens_AD: Tensor,
    segments: Segments,
    parameters: Sequence[Tensor],
    mask_AF: Tensor | None = None,
) -> Tensor:
    """Return the outputs of the blocks, (A, D); see ``feed_forward.loop``.

    D and F are multiples of 16 bytes. The number of kernels does not depend on that of experts.
    """
    *norm, w1_NFD, b1_NF, w2_NDF, b2_ND = parameters
    slots = segments.spaced
    x_AD, *norm = normalise(tokens_AD, *norm) if norm else [tokens_AD]
    x_XD = slots.place(x_AD)
    x_XD = _GroupedScale.apply(x_XD, *norm, slots, w1_NFD.dtype) if norm else x_XD.to(w1_NFD.dtype)
    hidden_XF = _GroupedLinear.apply(x_XD, w1_NFD, b1_NF, slots)
    mask_XF = None if mask_AF is None else slots.place(mask_AF)
    return slots.take(_GroupedLinear.apply(masked(activation(hidden_XF), mask_XF), w2_NDF, b2_ND, slots))
