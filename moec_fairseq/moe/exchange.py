"""Tokens to experts in other processes and back, by all-to-all."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from fairscale.nn.moe.moe_layer import _AllToAll
from torch import Tensor
from torch.autograd.function import once_differentiable

from moec_fairseq.moe.dispatch import Dispatched, Dispatcher, LocalDispatcher, place_among_own
from moec_fairseq.moe.ranks import Ranks, max_over


class UnequalAllToAll(torch.autograd.Function):
    """Send rows to the processes of a group, as many to each as ``send`` says; the gradients come back the same way."""

    @staticmethod
    def forward(ctx: Any, group: dist.ProcessGroup, rows: Tensor, send: list[int], receive: list[int]) -> Tensor:
        """Return the rows that came."""
        ctx.group, ctx.send, ctx.receive = group, send, receive
        received = rows.new_empty(sum(receive), *rows.shape[1:])
        dist.all_to_all_single(received, rows.contiguous(), receive, send, group=group)
        return received

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None, None]:
        """Return the gradients to where their rows are from."""
        back = gradient.new_empty(sum(ctx.send), *gradient.shape[1:])
        dist.all_to_all_single(back, gradient.contiguous(), ctx.send, ctx.receive, group=ctx.group)
        return None, back, None, None


@dataclass(frozen=True)
class Exchanged(Dispatched):
    """Tokens of all partners for the experts of this rank, and the way back.

    Attributes:
        here: the tokens of this rank, grouped by expert.
        send: rows that went to each partner.
        receive: rows that came from each partner.
        order_A: place of each token in what was received.
    """

    here: Dispatched
    send: list[int]
    receive: list[int]
    order_A: Tensor


class ExactDispatcher:
    """Every token goes to its expert's rank: all-to-all with unequal splits, nothing dropped, no padding sent.

    Args:
        ranks: the processes that share the experts.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.local = LocalDispatcher(ranks.shard.num_experts)

    def dispatch(self, tokens_TD: Tensor, expert_T: Tensor, capacity: int | None = None) -> Exchanged:
        """Bring the tokens of all partners to the experts of this rank; ``capacity`` does not bind."""
        here = self.local.dispatch(tokens_TD, expert_T)
        send_RE = here.counts_N.view(self.ranks.shard.num_ranks, -1)
        receive_RE = torch.empty_like(send_RE)
        dist.all_to_all_single(receive_RE, send_RE, group=self.ranks.partners)
        send, receive = torch.stack([send_RE.sum(1), receive_RE.sum(1)]).tolist()
        rows = UnequalAllToAll.apply(self.ranks.partners, here.tokens_AD, send, receive)
        # what came is ordered by rank, then expert; experts want it by expert
        expert_RE = torch.arange(send_RE.shape[1], device=send_RE.device).expand_as(receive_RE)
        expert_A = expert_RE.reshape(-1).repeat_interleave(receive_RE.reshape(-1))
        order_A = torch.sort(expert_A, stable=True).indices
        return Exchanged(
            tokens_AD=rows.index_select(0, order_A),
            accepted_A=here.accepted_A,
            counts_N=receive_RE.sum(0),
            assigned_N=here.assigned_N,
            here=here,
            send=send,
            receive=receive,
            order_A=order_A,
        )

    def combine(self, values_AD: Tensor, dispatched: Exchanged, num_tokens: int) -> Tensor:
        """Bring the values back to the places of their tokens, (T, D)."""
        rows = values_AD.index_select(0, torch.argsort(dispatched.order_A))
        back = UnequalAllToAll.apply(self.ranks.partners, rows, dispatched.receive, dispatched.send)
        return self.local.combine(back, dispatched.here, num_tokens)


@dataclass(frozen=True)
class Slotted(Dispatched):
    """Tokens of all partners in slots of equal number for each expert and partner, and the way back.

    Attributes:
        here: the tokens of this rank that got a slot, grouped by expert.
        place_A: slot of each of them.
        slots: slots for each expert that every partner may fill.
    """

    here: Dispatched
    place_A: Tensor
    slots: int


class CapacityDispatcher:
    """Every rank may send each expert the same number of tokens: fairscale's all-to-all with equal splits.

    An expert takes at most capacity tokens, the capacity of the rank with the most tokens; its R partners have equal
    parts of it. Tokens beyond them pass through unchanged; slots that stay empty are sent as zeros.

    Args:
        ranks: the processes that share the experts.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.local = LocalDispatcher(ranks.shard.num_experts)

    def dispatch(self, tokens_TD: Tensor, expert_T: Tensor, capacity: int | None = None) -> Slotted:
        """Bring the tokens of all partners that get a slot to the experts of this rank."""
        shard, partners = self.ranks.shard, self.ranks.partners
        wanted = len(tokens_TD) * shard.num_ranks if capacity is None else capacity
        slots = -(-max_over(partners, wanted, tokens_TD.device) // shard.num_ranks)
        here = self.local.dispatch(tokens_TD, expert_T, slots)
        expert_A = torch.arange(shard.num_experts, device=tokens_TD.device).repeat_interleave(here.counts_N)
        place_A = expert_A * slots + place_among_own(expert_A, here.counts_N)
        dim = tokens_TD.shape[1]
        filled = tokens_TD.new_zeros(shard.num_experts * slots, dim).index_copy(0, place_A, here.tokens_AD)
        received = _AllToAll.apply(partners, filled).view(shard.num_ranks, len(shard.experts), slots, dim)
        counts_N = here.counts_N.new_full((len(shard.experts),), shard.num_ranks * slots)
        tokens_AD = received.transpose(0, 1).reshape(-1, dim)
        return Slotted(tokens_AD, here.accepted_A, counts_N, here.assigned_N, here, place_A, slots)

    def combine(self, values_AD: Tensor, dispatched: Slotted, num_tokens: int) -> Tensor:
        """Bring the values back to the places of their tokens, (T, D); 0 for tokens without a slot."""
        shard, dim = self.ranks.shard, values_AD.shape[1]
        by_rank = values_AD.view(len(shard.experts), shard.num_ranks, dispatched.slots, dim).transpose(0, 1)
        back = _AllToAll.apply(self.ranks.partners, by_rank.reshape(-1, dim))
        return self.local.combine(back.index_select(0, dispatched.place_A), dispatched.here, num_tokens)


# option -> dispatcher of a job of several processes
DISPATCHERS: dict[str, Callable[[Ranks], Dispatcher]] = {"exact": ExactDispatcher, "capacity": CapacityDispatcher}
