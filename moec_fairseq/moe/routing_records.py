"""The one place where routing records are kept until the criterion takes them."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from moec_fairseq.moe.router import Routing

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RoutingRecord:
    """What one MoE layer did in one forward pass.

    Attributes:
        layer_index: index of the MoE layer in the model.
        routing: the router's decision.
        tokens_per_expert_N: tokens routed to each expert, including those above its capacity, int64.
        overflow: tokens above capacity, shape ().
        active_N: 1 for the experts that are active, 0 for the others, float32.
        equal_clusters: equally many experts of each cluster are active; False: perhaps not.
        num_updates: updates made before this pass.
    """

    layer_index: int
    routing: Routing
    tokens_per_expert_N: Tensor
    overflow: Tensor
    active_N: Tensor
    equal_clusters: bool = False
    num_updates: int = 0


class RoutingCollector:
    """Collects the routing records of all MoE layers of a model, inside ``with collector.collect()`` only.

    fairseq's layer loops drop additional outputs of a layer, so the records take this side channel. Generation never
    collects, so decoding keeps nothing in memory.

    Args:
        criterions: those that collect, for a warning.

    Attributes:
        is_dummy: the current batch only keeps this process in step with the others; none of its tokens is routed,
            neither in the forward pass nor when activations are recomputed. Set by the trainer.
        num_tokens: tokens of the current training batch that are not padding, by stack (``encoder``, ``decoder``), if
            they were counted before the batch went to a GPU; layers then need not wait to learn them.
    """

    def __init__(self, criterions: str = "moec_label_smoothed_cross_entropy") -> None:
        self.criterions = criterions
        self._records: list[RoutingRecord] | None = None
        self.is_dummy = False
        self.num_tokens = dict[str, int]()
        self._warned = False

    @property
    def is_collecting(self) -> bool:
        """Whether records are being collected."""
        return self._records is not None

    def add(self, record: RoutingRecord, training: bool = False) -> None:
        """Keep a record while collecting; warn once if a model is trained without anyone collecting."""
        if self._records is not None:
            self._records.append(record)
        elif training and not self._warned:
            self._warned = True
            logger.warning(
                "The router gets no balance or variance loss, because the criterion does not ask for it; "
                "train with --criterion %s.",
                self.criterions,
            )

    @contextmanager
    def collect(self) -> Iterator[list[RoutingRecord]]:
        """Collect the records of the forward passes made in this context."""
        outer, self._records = self._records, []
        try:
            yield self._records
        finally:
            self._records = outer
