"""The loss of masked language models with the losses of the MoEC router."""

from dataclasses import dataclass
from typing import Any

from fairseq.criterions import register_criterion
from fairseq.criterions.masked_lm import MaskedLmConfig, MaskedLmLoss

from moec_fairseq.criterions.router_losses import RouterLosses, RouterLossOptions

NAME = "moec_masked_lm"


@dataclass
class MoECMaskedLmConfig(RouterLossOptions, MaskedLmConfig):
    """fairseq's options, and those of the router losses."""


@register_criterion(NAME, dataclass=MoECMaskedLmConfig)
class MoECMaskedLmCriterion(RouterLosses, MaskedLmLoss):
    """fairseq's cross-entropy of masked tokens and the router losses (see ``RouterLosses``).

    Raises:
        ValueError: the task has no MoEC RoBERTa, or its clusters do not fit the variance form.
    """

    name = NAME
    arch = "moec_roberta"

    def __init__(self, cfg: Any, task: Any) -> None:
        super().__init__(cfg, task)
        self.set_up_router_losses(task, cfg)
