"""The loss suite: label-smoothed cross-entropy from logits, compared with fairseq's."""

from collections.abc import Callable
from functools import partial

import torch
from fairseq.criterions.label_smoothed_cross_entropy import label_smoothed_nll_loss
from torch import Tensor

from moec_fairseq.bench.measure import Contender, interleave
from moec_fairseq.bench.report import Row, Target, rows_of, with_peaks
from moec_fairseq.bench.sizes import LossSizes
from moec_fairseq.criterions.likelihood import label_smoothed_losses

SUITE = "loss"
EPSILON, PADDING = 0.1, 1

Loss = Callable[[Tensor, Tensor], Tensor]


def _fairseq(logits_TV: Tensor, target_T: Tensor) -> Tensor:
    log_probs = logits_TV.log_softmax(dim=-1, dtype=torch.float32)
    loss: Tensor = label_smoothed_nll_loss(log_probs, target_T, EPSILON, ignore_index=PADDING)[0]
    return loss


def _ours(logits_TV: Tensor, target_T: Tensor) -> Tensor:
    return label_smoothed_losses(logits_TV, target_T, EPSILON, PADDING)[0]


LOSSES: dict[str, Loss] = {"fairseq": _fairseq, "ours": _ours}


def _contender(name: str, sizes: LossSizes, device: torch.device) -> Contender:
    source = torch.Generator().manual_seed(1)
    logits_TV = torch.randn((sizes.tokens, sizes.vocabulary), generator=source).to(device).requires_grad_()
    target_T = torch.randint(sizes.vocabulary, (sizes.tokens,), generator=source).to(device)

    def reset() -> None:
        logits_TV.grad = None

    return Contender(lambda: LOSSES[name](logits_TV, target_T), lambda loss: loss.backward(), reset)


def run(sizes: LossSizes, device: torch.device) -> tuple[list[Row], list[Target]]:
    """Time both, and measure their memory in addition to the logits, which are given."""
    makers = {name: partial(_contender, name, sizes, device) for name in LOSSES}
    case = f"loss, {sizes.tokens} tokens, {sizes.vocabulary} words"
    contenders = {name: make() for name, make in makers.items()}
    times = interleave(case, contenders, sizes.repeats, sizes.warmup, device)
    rows = rows_of(SUITE, case, times, dict.fromkeys(LOSSES, (0, sizes.tokens)))
    return with_peaks(rows, makers, device), []
