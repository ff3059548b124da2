"""What the MoEC criterions have in common: the losses of the router beside that of the task, and its metrics."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.logging import metrics

from moec_fairseq.moe.expert_parallel import sum_over_ranks
from moec_fairseq.moe.losses import GROUPS, VARIANCES, GateLoss, gate_statistics, over_ranks, share_of_rank
from moec_fairseq.moe.routing_metrics import averages, by_name, model_sums, no_sums
from moec_fairseq.moe.routing_records import RoutingRecord

PREFIX = "moe_"
# key of all sums of routing metrics in the logging output
SUMS = PREFIX + "sums"


def on_host(logs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Add up logging outputs, joining lists, and bring all tensors to the host in one transfer.

    fairseq reads the loss, and other values, one by one when it logs them, and waits for a GPU each time.
    """
    found: dict[str, list[Any]] = {}
    for log in logs:
        for key, value in log.items():
            found.setdefault(key, []).append(value)
    sums: dict[str, Any] = {key: sum(values, [] if isinstance(values[0], list) else 0) for key, values in found.items()}
    tensors = {key: value for key, value in sums.items() if torch.is_tensor(value)}
    if tensors:  # float64 holds every float32, and counts
        everything = torch.cat([value.flatten().double() for value in tensors.values()]).cpu()
        parts = everything.split([value.numel() for value in tensors.values()])
        sums |= {k: part.to(v.dtype).view(v.shape) for (k, v), part in zip(tensors.items(), parts, strict=True)}
    return sums


@dataclass
class RouterLossOptions(FairseqDataclass):
    """Options of the router losses."""

    moe_gate_loss_wt: float = field(
        default=0.01, metadata={"help": "weight λ of the router losses, relative to the cross-entropy"}
    )
    moec_variance: ChoiceEnum(list(VARIANCES)) = field(  # type: ignore[valid-type]
        default="intra_cv", metadata={"help": "form of the variance loss, which keeps the experts of a cluster similar"}
    )
    moec_variance_wt: float = field(
        default=1.0, metadata={"help": "weight β of the variance loss, relative to the balance loss"}
    )
    moec_variance_groups: ChoiceEnum(list(GROUPS)) = field(  # type: ignore[valid-type]
        default="clusters",
        metadata={"help": "experts that the variance loss keeps similar; random: as a control, redrawn each update"},
    )


class RouterLosses:
    """A mixin for criterions of fairseq: their loss + λ · Σ_layers (balance + N · β · variance) (MoEC, equation 9).

    The router losses regularise training; the validation loss is that of the task alone, so that models with and
    without experts can be compared by it.

    Router losses are sums over the tokens, and fairseq divides the gradient by the sample size. Where that is not the
    number of tokens, but of masked tokens or of sentences, they are multiplied by sample size / tokens, so that λ is
    always the weight of the mean over tokens. Both numbers are those of all ranks. With ``--update-freq`` each batch
    has a ratio of its own, because later ones are not known yet: the update then has the mean of the batches' router
    losses per token, weighted by their sample sizes.

    Attributes:
        name: of the criterion.
        arch: the model that it is for.
        counts_tokens: the sample size is the number of tokens.
    """

    name: ClassVar[str]
    arch: ClassVar[str]
    counts_tokens: ClassVar[bool] = False

    def set_up_router_losses(self, task: Any, options: Any) -> None:
        """Read the options, and check them against the model that the task has built.

        Raises:
            ValueError: the task has no model for this criterion, or its clusters do not fit the variance form.
        """
        self.gate_loss_weight = options.moe_gate_loss_wt
        self.gate_loss = GateLoss(options.moec_variance, options.moec_variance_wt, options.moec_variance_groups)
        model = getattr(task, "moec_model", None)
        if model is None or self.name not in model.criterions:
            raise ValueError(
                f"--criterion {self.name} needs a model with a MoEC router, but --arch names another; give --arch "
                f"{self.arch} or a preset of it, or --criterion "
                f"{model.criterions if model else self.name.removeprefix('moec_')}."
            )
        for layer in model.moe_layers:
            self.gate_loss.check_cluster(layer.dropout.fewest_active_in_a_cluster(layer.router.clusters))
        self.num_layers = model.num_moe_layers
        self.world_size = model.world_size
        self.num_experts = model.moe_layers[0].router.clusters.num_experts if model.moe_layers else 0
        self.seed = model.moe_layers[0].dropout.seed if model.moe_layers else 0

    def forward(self, model: Any, sample: dict[str, Any], reduce: bool = True) -> tuple[Any, Any, dict[str, Any]]:
        """Return (loss, sample size, logging output), sums over the sample."""
        with model.record_routing() as records:
            loss, sample_size, logging_output = super().forward(model, sample, reduce=reduce)  # type: ignore[misc]
        if self.num_layers:
            gate_loss, sums = self._router_losses(
                records, sample_size, loss.device, model.training, model.collector.is_dummy
            )
            logging_output[SUMS] = sums
            if reduce and model.training:
                loss = loss + self.gate_loss_weight * gate_loss
                logging_output["loss"] = loss.data
        return loss, sample_size, logging_output

    def _router_losses(
        self, records: Sequence[RoutingRecord], sample_size: Any, device: torch.device, training: bool, is_dummy: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the router losses of all layers together, and what one pass adds to the routing metrics."""
        if not records:  # LayerDrop can leave out all layers
            return torch.zeros((), device=device), no_sums(self.num_layers, self.num_experts, device)
        statistics = gate_statistics(records)
        if not self.counts_tokens:
            tokens_L = statistics.num_tokens_L
            statistics = replace(statistics, sample_size_L=torch.ones_like(tokens_L) * sample_size)
        if self.world_size > 1 and training:
            statistics = over_ranks(statistics, sum_over_ranks, is_dummy)
        losses = self.gate_loss(GROUPS[self.gate_loss.groups](statistics, records, self.seed))
        per_layer_L2 = torch.stack(losses, dim=-1)
        if statistics.sample_size_L is not None:
            scale_L = statistics.sample_size_L / statistics.num_tokens_L.clamp(min=1)
            per_layer_L2 = per_layer_L2 * scale_L.unsqueeze(-1)
        total = per_layer_L2.sum()
        if statistics.world_size is not None:
            total = share_of_rank(total, statistics.world_size)
        return total, model_sums(records, statistics, losses, self.num_layers)

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Log the losses and the routing metrics; reads the device once."""
        logged = on_host(logging_outputs)
        super().reduce_metrics([logged])  # type: ignore[misc]
        if SUMS not in logged:
            return
        sums = by_name(logged[SUMS])
        tokens = float(sums["tokens"].sum())
        for key, value in averages(sums).items():
            metrics.log_scalar(PREFIX + key, value, tokens, round=3)
