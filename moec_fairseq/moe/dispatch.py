"""Tokens to their experts and back."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from moec_fairseq.moe.segments import Segments, Slots


@dataclass(frozen=True)
class Dispatched:
    """Tokens grouped by expert, and what ``combine`` needs to return them.

    Attributes:
        tokens_AD: the A tokens that their experts accept, those of expert 0 first.
        accepted_A: position of each accepted token in the input, int64.
        segments: which of them belong to which expert.
        tokens_per_expert_N: tokens routed to each expert, overflow included, int64.
    """

    tokens_AD: Tensor
    accepted_A: Tensor
    segments: Segments
    tokens_per_expert_N: Tensor


class Dispatcher(Protocol):
    """Sends tokens to their experts and the results back; what ``dispatch`` returns goes to ``combine``."""

    def dispatch(self, tokens_TD: Tensor, expert_T: Tensor, capacity: int | None = None) -> Any:
        """Group tokens by expert."""

    def combine(self, values_AD: Tensor, dispatched: Any, num_tokens: int) -> Tensor:
        """Return the values in the order of their tokens, (T, D); 0 for tokens above capacity."""


class LocalDispatcher:
    """All experts are in this process: sort the tokens by expert, once.

    Args:
        num_experts: N.
    """

    def __init__(self, num_experts: int) -> None:
        self.num_experts = num_experts

    def dispatch(self, tokens_TD: Tensor, expert_T: Tensor, capacity: int | None = None) -> Dispatched:
        """Group tokens by expert; each accepts the first ``capacity`` tokens of the batch (None: all)."""
        sorted_T, order_T = torch.sort(expert_T, stable=True)
        segments = Segments(sorted_T, self.num_experts)
        tokens_per_expert_N = segments.counts_N
        if capacity is not None and capacity < len(tokens_TD):
            accepted_A = (segments.position_in_expert_A < capacity).nonzero().squeeze(1)
            order_T, segments = order_T[accepted_A], Segments(sorted_T[accepted_A], self.num_experts)
        tokens_AD = Slots(order_T, len(tokens_TD)).take(tokens_TD)
        return Dispatched(tokens_AD, order_T, segments, tokens_per_expert_N)

    def combine(self, values_AD: Tensor, dispatched: Dispatched, num_tokens: int) -> Tensor:
        """Return the values in the order of their tokens, (T, D); 0 for tokens above capacity."""
        return Slots(dispatched.accepted_A, num_tokens).place(values_AD)
