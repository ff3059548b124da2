"""Label-smoothed cross-entropy with the losses of the MoEC router."""

from dataclasses import dataclass
from typing import Any

import torch
from fairseq.criterions import register_criterion
from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterion,
    LabelSmoothedCrossEntropyCriterionConfig,
)

from moec_fairseq.criterions.likelihood import label_smoothed_losses
from moec_fairseq.criterions.router_losses import RouterLosses, RouterLossOptions

NAME = "moec_label_smoothed_cross_entropy"


@dataclass
class MoECLabelSmoothedCrossEntropyConfig(RouterLossOptions, LabelSmoothedCrossEntropyCriterionConfig):
    """fairseq's options for label smoothing, and those of the router losses."""


@register_criterion(NAME, dataclass=MoECLabelSmoothedCrossEntropyConfig)
class MoECLabelSmoothedCrossEntropyCriterion(RouterLosses, LabelSmoothedCrossEntropyCriterion):
    """fairseq's label-smoothed cross-entropy and the router losses (see ``RouterLosses``).

    Raises:
        ValueError: the task has no MoEC Transformer, or its clusters do not fit the variance form.
    """

    name = NAME
    arch = "moec_transformer"
    counts_tokens = True

    def __init__(
        self,
        task: Any,
        sentence_avg: bool,
        label_smoothing: float,
        ignore_prefix_size: int = 0,
        report_accuracy: bool = False,
        moe_gate_loss_wt: float = 0.01,
        moec_variance: str = "intra_cv",
        moec_variance_wt: float = 1.0,
        moec_variance_groups: str = "clusters",
    ) -> None:
        super().__init__(task, sentence_avg, label_smoothing, ignore_prefix_size, report_accuracy)
        options = RouterLossOptions(
            moe_gate_loss_wt=moe_gate_loss_wt,
            moec_variance=moec_variance,
            moec_variance_wt=moec_variance_wt,
            moec_variance_groups=moec_variance_groups,
        )
        self.set_up_router_losses(task, options)
        self.adaptive_softmax = getattr(task.moec_model.decoder, "adaptive_softmax", None) is not None

    def compute_loss(
        self, model: Any, net_output: Any, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return fairseq's label-smoothed loss and the negative log-likelihood, without keeping log-probabilities.

        Sums over the sample, or with ``reduce=False`` (T, 1); padding is 0.
        """
        if self.adaptive_softmax:  # the output is hidden states, not logits
            loss, nll_loss = super().compute_loss(model, net_output, sample, reduce=reduce)
            return loss, nll_loss
        logits, target = (
            t[:, self.ignore_prefix_size :] for t in (net_output[0], model.get_targets(sample, net_output))
        )
        return label_smoothed_losses(
            logits.reshape(-1, logits.shape[-1]), target.reshape(-1), self.eps, self.padding_idx, reduce
        )
