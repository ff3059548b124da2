"""Dropout with masks that are cheap to draw on a CPU."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fairseq.modules.fairseq_dropout import FairseqDropout
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LEVELS = 1 << 16  # values of a 16-bit random number


def _kept(like: Tensor, levels: int) -> Tensor:
    """Draw which elements are kept, in the shape of ``like``, each with probability ``levels`` / 65 536."""
    seed = int(torch.randint(1 << 62, ()))  # torch's generator, so that fairseq can resume
    words = np.random.SFC64(seed).random_raw(-(-like.numel() // 4))
    numbers = torch.from_numpy(words.view(np.int16)[: like.numel()])
    return (numbers < levels - LEVELS // 2).view(like.shape)


def _masked(x: Tensor, kept: Tensor, levels: int) -> Tensor:
    return x * kept.to(x.dtype).mul_(LEVELS / levels)


class _Masked(torch.autograd.Function):
    """Scales the elements that are kept and sets the others to 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, levels: int) -> Tensor:
        kept = _kept(x, levels)
        ctx.save_for_backward(kept)
        ctx.levels = levels
        return _masked(x, kept, levels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return _masked(d_out, kept, ctx.levels), None


def _dropped(x: Tensor, p: float) -> Tensor:
    levels = round((1 - p) * LEVELS)
    return _Masked.apply(x, levels) if 0 < levels < LEVELS else F.dropout(x, p)


class Dropout(FairseqDropout):
    """fairseq's dropout, but on a CPU it draws random numbers four at a time.

    torch draws them one by one, except on Intel processors; that takes 13 % of the training time of a small
    Transformer. The probability is rounded to a multiple of 1 / 65 536.
    """

    def forward(self, x: Tensor, inplace: bool = False) -> Tensor:
        """In training, drop elements of x and scale the others; the shape stays the same."""
        if self.p == 0 or not (self.training or self.apply_during_inference):
            return x
        elif torch.jit.is_scripting() or x.device.type != "cpu":  # type: ignore[attr-defined]
            return F.dropout(x, p=self.p, training=True, inplace=inplace)
        else:  # in a branch, which TorchScript skips, because it does not support numpy
            return _dropped(x, self.p)


def use_cheap_masks(model: nn.Module) -> None:
    """Turn every dropout module of fairseq in ``model`` into this one."""
    for module in model.modules():
        if type(module) is FairseqDropout:
            module.__class__ = Dropout
