"""The one place where routing records are kept until the criterion takes them."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from moec_fairseq.moe.router import Routing

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LayerRecord:
    """What one MoE layer did in one forward pass.

    Attributes:
        layer: number of the MoE layer in the model.
        routing: the router's decision.
        assigned_N: tokens that wanted each expert, int64.
        overflow: tokens above capacity, int64, shape ().
    """

    layer: int
    routing: Routing
    assigned_N: Tensor
    overflow: Tensor


class RecordBook:
    """Collects the records of all MoE layers of a model while it is open, and nothing otherwise.

    fairseq's layer loops drop extra outputs of a layer, so the records leave on this side road. Generation never opens
    the book, so that decoding keeps nothing.

    Attributes:
        is_dummy: the batch of now only keeps this process in step with others; none of its tokens is routed, forward
            or in what is computed again backward. Set by moec_fairseq.compat.
    """

    def __init__(self) -> None:
        self._records: list[LayerRecord] | None = None
        self.is_dummy = False
        self._warned = False

    @property
    def is_open(self) -> bool:
        """Whether somebody collects."""
        return self._records is not None

    def add(self, record: LayerRecord, training: bool = False) -> None:
        """Keep a record, if somebody collects; warn once where a model is trained and nobody does."""
        if self._records is not None:
            self._records.append(record)
        elif training and not self._warned:
            self._warned = True
            logger.warning(
                "The router gets no balance or variance loss, because the criterion does not ask for it; "
                "train with --criterion moec_label_smoothed_cross_entropy."
            )

    @contextmanager
    def open(self) -> Iterator[list[LayerRecord]]:
        """Collect the records of the forward passes made in this context."""
        outer, self._records = self._records, []
        try:
            yield self._records
        finally:
            self._records = outer
