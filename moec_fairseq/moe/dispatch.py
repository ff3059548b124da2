"""Tokens to their experts and back."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Dispatched:
    """Tokens grouped by expert, and the way back.

    Attributes:
        tokens_AD: the A tokens accepted by their experts, those of expert 0 first.
        accepted_A: position of each accepted token in the input, int64.
        counts_N: accepted tokens of each expert, int64.
        assigned_N: tokens that wanted each expert, overflow included, int64.
    """

    tokens_AD: Tensor
    accepted_A: Tensor
    counts_N: Tensor
    assigned_N: Tensor


def place_among_own(sorted_T: Tensor, counts_N: Tensor) -> Tensor:
    """Return the place of each token among those of its expert, from 0, for expert numbers in ascending order."""
    start_N = counts_N.cumsum(0) - counts_N
    return torch.arange(len(sorted_T), device=sorted_T.device) - start_N[sorted_T]


class Dispatcher(Protocol):
    """Brings tokens to their experts and values back; what ``dispatch`` returns goes to ``combine``."""

    def dispatch(self, tokens_TD: Tensor, expert_T: Tensor, capacity: int | None = None) -> Any:
        """Group tokens by expert."""

    def combine(self, values_AD: Tensor, dispatched: Any, num_tokens: int) -> Tensor:
        """Put values in the places of their tokens, (T, D); 0 for tokens above capacity."""


class LocalDispatcher:
    """All experts live in this process: sort the tokens once by expert.

    Args:
        num_experts: N.
    """

    def __init__(self, num_experts: int) -> None:
        self.num_experts = num_experts

    def dispatch(self, tokens_TD: Tensor, expert_T: Tensor, capacity: int | None = None) -> Dispatched:
        """Group tokens by expert; an expert accepts at most ``capacity`` tokens, the first of the batch (None: all)."""
        sorted_T, order_T = torch.sort(expert_T, stable=True)
        assigned_N = torch.bincount(expert_T, minlength=self.num_experts)
        counts_N = assigned_N
        if capacity is not None and capacity < len(tokens_TD):
            order_T = order_T[place_among_own(sorted_T, assigned_N) < capacity]
            counts_N = assigned_N.clamp(max=capacity)
        return Dispatched(tokens_TD.index_select(0, order_T), order_T, counts_N, assigned_N)

    def combine(self, values_AD: Tensor, dispatched: Dispatched, num_tokens: int) -> Tensor:
        """Put values in the places of their tokens, (T, D) for ``num_tokens``; 0 for tokens above capacity."""
        return values_AD.new_zeros(num_tokens, values_AD.shape[1]).index_add(0, dispatched.accepted_A, values_AD)
