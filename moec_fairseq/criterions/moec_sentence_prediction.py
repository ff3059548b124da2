"""The loss of sentence classification and regression with the losses of the MoEC router."""

from dataclasses import dataclass
from typing import Any

from fairseq.criterions import register_criterion
from fairseq.criterions.sentence_prediction import SentencePredictionConfig, SentencePredictionCriterion

from moec_fairseq.criterions.router_losses import RouterLosses, RouterLossOptions

NAME = "moec_sentence_prediction"


@dataclass
class MoECSentencePredictionConfig(RouterLossOptions, SentencePredictionConfig):
    """fairseq's options, and those of the router losses."""


@register_criterion(NAME, dataclass=MoECSentencePredictionConfig)
class MoECSentencePredictionCriterion(RouterLosses, SentencePredictionCriterion):
    """fairseq's loss of a classification head and the router losses (see ``RouterLosses``).

    Raises:
        ValueError: the task has no MoEC RoBERTa, or its clusters do not fit the variance form.
    """

    name = NAME
    arch = "moec_roberta"

    def __init__(self, cfg: Any, task: Any) -> None:
        super().__init__(cfg, task)
        self.set_up_router_losses(task, cfg)
