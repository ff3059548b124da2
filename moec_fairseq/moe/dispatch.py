"""Tokens to their experts and back."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Gather(torch.autograd.Function):
    """Rows of a tensor by index, each at most once, so that backward gathers as well.

    The backward pass of ``index_select`` adds up, by atomics on a GPU.
    """

    @staticmethod
    def forward(ctx: Any, rows_TD: Tensor, index_A: Tensor, inverse_T: Tensor) -> Tensor:
        """Return the rows, (A, D).

        Args:
            ctx: autograd's.
            rows_TD: the rows.
            index_A: row of each result; T for a result of zeros.
            inverse_T: result of each row; A for a row that is in none.
        """
        ctx.save_for_backward(index_A, inverse_T)
        return _rows(rows_TD, index_A)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_AD: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of each row."""
        _, inverse_T = ctx.saved_tensors
        return _rows(gradient_AD, inverse_T), None, None


def _rows(rows_TD: Tensor, index_A: Tensor) -> Tensor:
    """Return rows by index, where T, one past the last row, stands for zeros."""
    if len(index_A) > len(rows_TD):  # without zeros there are at most as many results as rows
        rows_TD = torch.cat([rows_TD, rows_TD.new_zeros(1, *rows_TD.shape[1:])])
    return rows_TD.index_select(0, index_A)


def inverse_of(index_A: Tensor, num_rows: int) -> Tensor:
    """Return the result of each of ``num_rows`` rows, (T,), given the row of each result; A for rows in none."""
    inverse_T = index_A.new_full((num_rows,), len(index_A))
    return inverse_T.scatter_(0, index_A, torch.arange(len(index_A), device=index_A.device))


@dataclass(frozen=True)
class Dispatched:
    """Tokens grouped by expert, and what ``combine`` needs to return them.

    Attributes:
        tokens_AD: the A tokens that their experts accept, those of expert 0 first.
        accepted_A: position of each accepted token in the input, int64.
        place_T: position of each token of the input in ``tokens_AD``, int64; A for tokens above capacity.
        counts_N: accepted tokens of each expert, int64.
        tokens_per_expert_N: tokens routed to each expert, overflow included, int64.
    """

    tokens_AD: Tensor
    accepted_A: Tensor
    place_T: Tensor
    counts_N: Tensor
    tokens_per_expert_N: Tensor


def position_in_expert(sorted_T: Tensor, counts_N: Tensor) -> Tensor:
    """Return the position of each token among those of its expert, from 0, given expert IDs in ascending order."""
    start_N = counts_N.cumsum(0) - counts_N
    return torch.arange(len(sorted_T), device=sorted_T.device) - start_N[sorted_T]


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
        # bincount would wait for a GPU
        ids_N = torch.arange(self.num_experts, device=sorted_T.device)
        ends_N = torch.searchsorted(sorted_T, ids_N, right=True)
        counts_N = tokens_per_expert_N = ends_N.diff(prepend=ends_N.new_zeros(1))
        if capacity is not None and capacity < len(tokens_TD):
            order_T = order_T[position_in_expert(sorted_T, tokens_per_expert_N) < capacity]
            counts_N = tokens_per_expert_N.clamp(max=capacity)
        place_T = inverse_of(order_T, len(tokens_TD))
        return Dispatched(Gather.apply(tokens_TD, order_T, place_T), order_T, place_T, counts_N, tokens_per_expert_N)

    def combine(self, values_AD: Tensor, dispatched: Dispatched, num_tokens: int) -> Tensor:
        """Return the values in the order of their tokens, (T, D); 0 for tokens above capacity."""
        return Gather.apply(values_AD, dispatched.place_T, dispatched.accepted_A)
