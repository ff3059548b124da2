"""Label-smoothed cross-entropy with the losses of the MoEC router."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq.criterions import register_criterion
from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterion,
    LabelSmoothedCrossEntropyCriterionConfig,
)
from fairseq.dataclass import ChoiceEnum
from fairseq.logging import metrics

from moec_fairseq.criterions.likelihood import label_smoothed_losses
from moec_fairseq.moe.expert_parallel import sum_over_ranks
from moec_fairseq.moe.losses import VARIANCES, GateLoss, gate_statistics, over_ranks, share_of_rank
from moec_fairseq.moe.routing_metrics import averages, by_name, model_sums, no_sums
from moec_fairseq.moe.routing_records import RoutingRecord

PREFIX = "moe_"
# key of all sums of routing metrics in the logging output
SUMS = PREFIX + "sums"


def on_host(logs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Add up logging outputs and bring all tensors to the host in one transfer.

    fairseq reads the loss, and other values, one by one when it logs them, and waits for a GPU each time.
    """
    keys = dict.fromkeys(key for log in logs for key in log)
    sums = {key: sum(log[key] for log in logs if key in log) for key in keys}
    tensors = {key: value for key, value in sums.items() if torch.is_tensor(value)}
    if tensors:  # float64 holds every float32, and counts
        everything = torch.cat([value.flatten().double() for value in tensors.values()]).cpu()
        parts = everything.split([value.numel() for value in tensors.values()])
        sums |= {k: part.to(v.dtype).view(v.shape) for (k, v), part in zip(tensors.items(), parts, strict=True)}
    return sums


@dataclass
class MoECLabelSmoothedCrossEntropyConfig(LabelSmoothedCrossEntropyCriterionConfig):
    """fairseq's options for label smoothing, and those of the router losses."""

    moe_gate_loss_wt: float = field(
        default=0.01, metadata={"help": "weight λ of the router losses, relative to the cross-entropy"}
    )
    moec_variance: ChoiceEnum(list(VARIANCES)) = field(  # type: ignore[valid-type]
        default="intra_cv", metadata={"help": "form of the variance loss, which keeps the experts of a cluster similar"}
    )
    moec_variance_wt: float = field(
        default=1.0, metadata={"help": "weight β of the variance loss, relative to the balance loss"}
    )


@register_criterion("moec_label_smoothed_cross_entropy", dataclass=MoECLabelSmoothedCrossEntropyConfig)
class MoECLabelSmoothedCrossEntropyCriterion(LabelSmoothedCrossEntropyCriterion):
    """Cross-entropy + λ · Σ_layers (balance + N · β · variance) (MoEC, equation 9).

    The router losses regularise training; the validation loss is the cross-entropy alone, so that models with and
    without experts can be compared by it.

    Raises:
        ValueError: the task has no MoEC model, or its clusters do not fit the variance form.
    """

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
    ) -> None:
        super().__init__(task, sentence_avg, label_smoothing, ignore_prefix_size, report_accuracy)
        self.gate_loss_weight = moe_gate_loss_wt
        self.gate_loss = GateLoss(moec_variance, moec_variance_wt)
        model = getattr(task, "moec_model", None)
        if model is None:
            raise ValueError(
                "--criterion moec_label_smoothed_cross_entropy needs a model with a MoEC router, but --arch names "
                "another; give --arch moec_transformer or a preset of it, or --criterion label_smoothed_cross_entropy."
            )
        for layer in model.moe_layers:
            self.gate_loss.check_cluster(layer.dropout.fewest_active_in_a_cluster(layer.router.clusters))
        self.adaptive_softmax = getattr(model.decoder, "adaptive_softmax", None) is not None
        self.num_layers = model.num_moe_layers
        self.world_size = model.world_size
        self.num_experts = model.moe_layers[0].router.clusters.num_experts if model.moe_layers else 0

    def forward(self, model: Any, sample: dict[str, Any], reduce: bool = True) -> tuple[Any, Any, dict[str, Any]]:
        """Return (loss, sample size, logging output), sums over the sample."""
        with model.record_routing() as records:
            loss, sample_size, logging_output = super().forward(model, sample, reduce=reduce)
        if self.num_layers:
            gate_loss, sums = self._router_losses(records, loss.device, model.training, model.collector.is_dummy)
            logging_output[SUMS] = sums
            if reduce and model.training:
                loss = loss + self.gate_loss_weight * gate_loss
                logging_output["loss"] = loss.data
        return loss, sample_size, logging_output

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

    def _router_losses(
        self, records: Sequence[RoutingRecord], device: torch.device, training: bool, is_dummy: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the router losses of all layers together, and what one pass adds to the routing metrics."""
        if not records:  # LayerDrop can leave out all layers
            return torch.zeros((), device=device), no_sums(self.num_layers, self.num_experts, device)
        statistics = gate_statistics(records)
        if self.world_size > 1 and training:
            statistics = over_ranks(statistics, sum_over_ranks, is_dummy)
        losses = self.gate_loss(statistics)
        total = torch.stack(losses, dim=-1).sum()
        if statistics.world_size is not None:
            total = share_of_rank(total, statistics.world_size)
        return total, model_sums(records, statistics, losses, self.num_layers)

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Log the losses and the routing metrics; reads the device once."""
        logged = on_host(logging_outputs)
        super().reduce_metrics([logged])
        if SUMS not in logged:
            return
        sums = by_name(logged[SUMS])
        tokens = float(sums["tokens"].sum())
        for key, value in averages(sums).items():
            metrics.log_scalar(PREFIX + key, value, tokens, round=3)
