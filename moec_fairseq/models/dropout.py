"""Dropout whose masks are cheap on a CPU."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fairseq.modules.fairseq_dropout import FairseqDropout
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LEVELS = 1 << 16  # values of a 16-bit random number


def _kept(like: Tensor, levels: int) -> Tensor:
    """Draw which elements stay: of the shape of ``like``, each with probability ``levels`` / 65 536."""
    seed = int(torch.randint(1 << 62, ()))  # so that torch's generator decides, and fairseq can go on where it was
    words = np.random.SFC64(seed).random_raw(-(-like.numel() // 4))
    numbers = torch.from_numpy(words.view(np.int16)[: like.numel()])
    return (numbers < levels - LEVELS // 2).view(like.shape)


def _masked(x: Tensor, kept: Tensor, levels: int) -> Tensor:
    return x * kept.to(x.dtype).mul_(LEVELS / levels)


class _Masked(torch.autograd.Function):
    """Elements that are kept, scaled; the others are 0."""

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
    """fairseq's dropout, with masks from four random numbers at a time where it runs on a CPU.

    There torch draws them one by one, unless the processor is Intel's: 13 % of the time in which a small Transformer
    trains. The probability is rounded to a multiple of 1 / 65 536.
    """

    def forward(self, x: Tensor, inplace: bool = False) -> Tensor:
        """Return x with elements dropped and the others scaled, of the same shape, while training."""
        if self.p == 0 or not (self.training or self.apply_during_inference):
            return x
        elif torch.jit.is_scripting() or x.device.type != "cpu":  # type: ignore[attr-defined]
            return F.dropout(x, p=self.p, training=True, inplace=inplace)
        else:  # what is not in a branch of its own, TorchScript would read, and it knows no numpy
            return _dropped(x, self.p)


def use_cheap_masks(model: nn.Module) -> None:
    """Make every dropout of fairseq in ``model`` one of these."""
    for module in model.modules():
        if type(module) is FairseqDropout:
            module.__class__ = Dropout
