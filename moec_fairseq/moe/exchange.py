"""Dispatch to experts in other processes, by all-to-all."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from fairscale.nn.moe.moe_layer import _AllToAll
from torch import Tensor
from torch.autograd.function import once_differentiable

from moec_fairseq.moe.dispatch import Dispatched, Dispatcher, LocalDispatcher
from moec_fairseq.moe.expert_parallel import ExpertParallelGroups, max_over
from moec_fairseq.moe.segments import Segments, Slots


class UnequalAllToAll(torch.autograd.Function):
    """Send rows to the ranks of a group, ``send[r]`` of them to rank r; backward sends their gradients back."""

    @staticmethod
    def forward(ctx: Any, group: dist.ProcessGroup, rows: Tensor, send: list[int], receive: list[int]) -> Tensor:
        """Return the rows received."""
        ctx.group, ctx.send, ctx.receive = group, send, receive
        received = rows.new_empty(sum(receive), *rows.shape[1:])
        dist.all_to_all_single(received, rows.contiguous(), receive, send, group=group)
        return received

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None, None]:
        """Return the gradients of the rows sent."""
        back = gradient.new_empty(sum(ctx.send), *gradient.shape[1:])
        dist.all_to_all_single(back, gradient.contiguous(), ctx.send, ctx.receive, group=ctx.group)
        return None, back, None, None


@dataclass(frozen=True)
class Exchanged(Dispatched):
    """Tokens of the expert-parallel group for the experts of this rank, and what ``combine`` needs to return them.

    Attributes:
        here: the tokens of this rank, grouped by expert.
        send: rows sent to each rank of the group.
        receive: rows received from each rank of the group.
        received: the place of each token among the rows received.
    """

    here: Dispatched
    send: list[int]
    receive: list[int]
    received: Slots


class ExactDispatcher:
    """Every token goes to its expert's rank: all-to-all with unequal splits, nothing dropped, no padding sent.

    Args:
        groups: the processes that share the experts.
    """

    def __init__(self, groups: ExpertParallelGroups) -> None:
        self.groups = groups
        self.local = LocalDispatcher(groups.shard.num_experts)

    def dispatch(self, tokens_TD: Tensor, expert_T: Tensor, capacity: int | None = None) -> Exchanged:
        """Send every token to the rank of its expert; ``capacity`` is not enforced."""
        here = self.local.dispatch(tokens_TD, expert_T)
        send_RE = here.segments.counts_N.view(self.groups.shard.num_ranks, -1)
        receive_RE = torch.empty_like(send_RE)
        dist.all_to_all_single(receive_RE, send_RE, group=self.groups.parallel)
        # the only wait for a GPU: splits, and the size of what is received, are integers, and depend on other ranks
        found = torch.cat([send_RE.sum(1), receive_RE.sum(1), receive_RE.sum(0)]).tolist()
        ranks = len(send_RE)
        send, receive, counts = found[:ranks], found[ranks : 2 * ranks], found[2 * ranks :]
        rows = UnequalAllToAll.apply(self.groups.parallel, here.tokens_AD, send, receive)
        # rows arrive ordered by rank, then expert; the experts need them ordered by expert
        expert_RE = torch.arange(send_RE.shape[1], device=send_RE.device).expand_as(receive_RE)
        expert_A = expert_RE.reshape(-1).repeat_interleave(receive_RE.reshape(-1), output_size=sum(receive))
        sorted_A, order_A = torch.sort(expert_A, stable=True)
        received = Slots(order_A, len(rows))
        return Exchanged(
            tokens_AD=received.take(rows),
            accepted_A=here.accepted_A,
            segments=Segments(sorted_A, send_RE.shape[1], counts),
            tokens_per_expert_N=here.tokens_per_expert_N,
            here=here,
            send=send,
            receive=receive,
            received=received,
        )

    def combine(self, values_AD: Tensor, dispatched: Exchanged, num_tokens: int) -> Tensor:
        """Send the values back and return them in the order of their tokens, (T, D)."""
        rows = dispatched.received.place(values_AD)
        back = UnequalAllToAll.apply(self.groups.parallel, rows, dispatched.receive, dispatched.send)
        return self.local.combine(back, dispatched.here, num_tokens)


@dataclass(frozen=True)
class Slotted(Dispatched):
    """Tokens in equally many slots for each expert and rank, and what ``combine`` needs to return them.

    Attributes:
        here: the tokens of this rank that have a slot, grouped by expert.
        slots: the slot of each of them.
        size: slots that each rank of the expert-parallel group has at each expert.
    """

    here: Dispatched
    slots: Slots
    size: int


class CapacityDispatcher:
    """Every rank may send each expert the same number of tokens: fairscale's all-to-all with equal splits.

    The capacity of an expert is that of the rank with the most tokens, divided equally among the R ranks of the
    expert-parallel group. Tokens beyond it pass through unchanged; empty slots are sent as zeros.

    Args:
        groups: the processes that share the experts.
    """

    def __init__(self, groups: ExpertParallelGroups) -> None:
        self.groups = groups
        self.local = LocalDispatcher(groups.shard.num_experts)

    def dispatch(self, tokens_TD: Tensor, expert_T: Tensor, capacity: int | None = None) -> Slotted:
        """Send every token that gets a slot to the rank of its expert."""
        shard, group = self.groups.shard, self.groups.parallel
        wanted = len(tokens_TD) * shard.num_ranks if capacity is None else capacity
        # waits for a GPU, as does finding the tokens with a slot: batches of ranks differ, but what is sent does not
        size = -(-max_over(group, wanted, tokens_TD.device) // shard.num_ranks)
        here = self.local.dispatch(tokens_TD, expert_T, size)
        slot_A = here.segments.expert_A * size + here.segments.position_in_expert_A
        slots, dim = Slots(slot_A, shard.num_experts * size), tokens_TD.shape[1]
        received = _AllToAll.apply(group, slots.place(here.tokens_AD))
        received = received.view(shard.num_ranks, len(shard.experts), size, dim)
        tokens_AD = received.transpose(0, 1).reshape(-1, dim)
        expert_A = torch.arange(len(shard.experts), device=tokens_TD.device).repeat_interleave(shard.num_ranks * size)
        segments = Segments(expert_A, len(shard.experts), [shard.num_ranks * size] * len(shard.experts))
        return Slotted(tokens_AD, here.accepted_A, segments, here.tokens_per_expert_N, here, slots, size)

    def combine(self, values_AD: Tensor, dispatched: Slotted, num_tokens: int) -> Tensor:
        """Send the values back and return them in the order of their tokens, (T, D); 0 for tokens without a slot."""
        shard, dim = self.groups.shard, values_AD.shape[1]
        by_rank = values_AD.view(len(shard.experts), shard.num_ranks, dispatched.size, dim).transpose(0, 1)
        back = _AllToAll.apply(self.groups.parallel, by_rank.reshape(-1, dim))
        return self.local.combine(dispatched.slots.take(back), dispatched.here, num_tokens)


# --moec-dispatch -> dispatcher for a job of several processes
DISPATCHERS: dict[str, Callable[[ExpertParallelGroups], Dispatcher]] = {
    "exact": ExactDispatcher,
    "capacity": CapacityDispatcher,
}
