"""The feed-forward blocks of many experts, expert by expert, with a hand-written backward pass."""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from moec_fairseq.moe.products import pad_for_products, product
from moec_fairseq.moe.segments import Segments
from moec_fairseq.moe.threads import for_each_expert

Activation = Callable[[Tensor], Tensor]
NORM_EPS = 1e-5  # nn.LayerNorm's own


def _segments(counts: list[int]) -> list[slice]:
    """Return the slice of each expert's tokens."""
    return [slice(end - count, end) for end, count in zip(accumulate(counts), counts, strict=True)]


def _padded_mask(mask_AF: Tensor | None, segment: slice) -> Tensor | None:
    """Return the mask of an expert's tokens, with rows for those that ``pad_for_products`` appends."""
    return None if mask_AF is None else pad_for_products(mask_AF[segment])


def loop(
    activation: Activation,
    tokens_AD: Tensor,
    segments: Segments,
    parameters: Sequence[Tensor],
    mask_AF: Tensor | None = None,
) -> Tensor:
    """Return W2·act(W1·LayerNorm(x) + b1) + b2 with the weights of each token's expert, (A, D).

    Args:
        activation: the non-linearity.
        tokens_AD: tokens grouped by expert.
        segments: the tokens of each expert.
        parameters: (N, D) weight and (N, D) bias of the LayerNorm, unless there is none, (N, F, D) W1, (N, F) b1,
            (N, D, F) W2, (N, D) b2; the last four have the dtype of the products and of the result.
        mask_AF: factors of the activated hidden units, which dropout draws; None: there is no dropout.
    """
    if tokens_AD.device.type != "cpu":  # there, the kernel takes a norm in float32 of tokens in half precision
        tokens_AD, *norm = of_one_dtype(tokens_AD, *parameters[:-4])
        parameters = [*norm, *parameters[-4:]]
    keep = torch.is_grad_enabled()
    return LoopedFeedForward.apply(activation, segments.counts, keep, mask_AF, tokens_AD, *parameters)


def of_one_dtype(*tensors: Tensor) -> list[Tensor]:
    """Return the tensors in the most precise of their dtypes: kernels of GPUs take no others."""
    dtype = tensors[0].dtype
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return [tensor.to(dtype) for tensor in tensors]


def normalise(tokens_AD: Tensor, weight_ND: Tensor, bias_ND: Tensor) -> list[Tensor]:
    """Return the normalised tokens, (A, D), and the parameters to scale them by, all of one dtype."""
    tokens_AD, weight_ND, bias_ND = of_one_dtype(tokens_AD, weight_ND, bias_ND)
    return [F.layer_norm(tokens_AD, tokens_AD.shape[-1:], eps=NORM_EPS), weight_ND, bias_ND]


def masked(activated: Tensor, mask: Tensor | None) -> Tensor:
    """Return the activated hidden units after dropout, if there is any."""
    return activated if mask is None else activated * mask


class LoopedFeedForward(torch.autograd.Function):
    """What ``loop`` computes.

    Autograd through a loop over experts would write every gradient twice, once per expert and once into the stack of
    all experts, and could not run experts in parallel. Here each gradient is written directly to its place, and the
    tensors of an expert stay in the cache from its first product to its last. ``ExpertSublayer.residual`` is the same
    by plain autograd.
    """

    @staticmethod
    def forward(
        ctx: Any,
        activation: Activation,
        counts: list[int],
        keep: bool,
        mask_AF: Tensor | None,
        tokens_AD: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        """Return the outputs of the blocks, (A, D).

        Args:
            ctx: autograd's.
            activation: the non-linearity.
            counts: tokens of each expert.
            keep: whether to keep what the backward pass needs.
            mask_AF: of dropout; drawn beforehand, because the order of the experts varies, and the backward pass needs
                it again.
            tokens_AD: tokens grouped by expert.
            parameters: those of ``loop``.
        """
        outputs_AD = torch.empty_like(tokens_AD, dtype=parameters[-1].dtype)
        segments = _segments(counts)
        kept: dict[int, tuple[Tensor, ...]] = {}

        def work(i: int) -> None:
            with torch.no_grad():
                *norm, w1, b1, w2, b2 = (p[i] for p in parameters)
                own = tokens_AD[segments[i]]
                x, *moments = torch.ops.aten.native_layer_norm(own, own.shape[-1:], *norm, NORM_EPS) if norm else (own,)
                x = pad_for_products(x.to(w1.dtype))
                hidden = product(x, w1).add_(b1)
                activated = masked(activation(hidden), _padded_mask(mask_AF, segments[i]))
                torch.add(product(activated, w2)[: len(own)], b2, out=outputs_AD[segments[i]])
                if keep:
                    kept[i] = (x, hidden, *moments)

        for_each_expert(work, counts, tokens_AD.device)
        ctx.save_for_backward(mask_AF, tokens_AD, *parameters)
        ctx.activation, ctx.counts, ctx.kept = activation, counts, kept
        return outputs_AD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_outputs_AD: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients; those of experts without tokens are 0."""
        mask_AF, tokens_AD, *parameters = ctx.saved_tensors
        d_tokens_AD = torch.empty_like(tokens_AD)
        gradients = [torch.empty_like(p) for p in parameters]
        segments = _segments(ctx.counts)

        def work(i: int) -> None:
            with torch.no_grad():
                *norm, w1, _, w2, _ = (p[i] for p in parameters)
                *d_norm, d_w1, d_b1, d_w2, d_b2 = (g[i] for g in gradients)
                own, d_y = tokens_AD[segments[i]], pad_for_products(d_outputs_AD[segments[i]])
                x, hidden, *moments = ctx.kept[i]
                # padding rows, act(b1) in the hidden layer, do not affect any gradient: they are 0 in x and d_y;
                # the activation is recomputed, which costs less than the memory for its result
                with torch.enable_grad():
                    activated = masked(ctx.activation(hidden.requires_grad_()), _padded_mask(mask_AF, segments[i]))
                torch.sum(d_y, 0, out=d_b2)
                torch.mm(d_y.t(), activated.detach(), out=d_w2)
                (d_hidden,) = torch.autograd.grad(activated, hidden, product(d_y, w2.t()))
                torch.sum(d_hidden, 0, out=d_b1)
                torch.mm(d_hidden.t(), x, out=d_w1)
                d_x = product(d_hidden, w1.t())[: len(own)].to(own.dtype)
                results = [d_x]
                if norm:
                    results = torch.ops.aten.native_layer_norm_backward(
                        d_x, own, own.shape[-1:], *moments, *norm, [True, True, True]
                    )
                for place, result in zip((d_tokens_AD[segments[i]], *d_norm), results, strict=True):
                    place.copy_(result)

        for i in (i for i, count in enumerate(ctx.counts) if count == 0):
            for gradient in gradients:
                gradient[i].zero_()
        for_each_expert(work, ctx.counts, tokens_AD.device)
        return (None, None, None, None, d_tokens_AD, *gradients)
