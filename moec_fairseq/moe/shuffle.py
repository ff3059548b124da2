"""Shuffle tokens across ranks before they are routed."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from moec_fairseq.moe.exchange import UnequalAllToAll
from moec_fairseq.moe.expert_parallel import ExpertParallelGroups
from moec_fairseq.moe.segments import Slots


@dataclass(frozen=True)
class Shuffled:
    """Tokens from random ranks of the expert-parallel group, and what ``gather`` needs to return them.

    Attributes:
        tokens_TD: the tokens that this rank has now.
        sent: order in which this rank's own tokens were sent.
        send: tokens sent to each rank of the group.
        receive: tokens received from each rank of the group.
    """

    tokens_TD: Tensor
    sent: Slots
    send: list[int]
    receive: list[int]


class TokenShuffle:
    """Breaks up batches of similar tokens (BASE layers): each rank routes tokens from the sentences of all ranks.

    fairseq seeds torch at every update, so a resumed run shuffles exactly as an uninterrupted one.

    Args:
        groups: the processes that share the experts.
    """

    def __init__(self, groups: ExpertParallelGroups) -> None:
        self.groups = groups

    def scatter(self, tokens_TD: Tensor) -> Shuffled:
        """Send each token to a random rank, (almost) equally many to each rank that has tokens itself.

        A rank without tokens has a dummy batch, whose gradients fairseq ignores: it must not route tokens of others.
        """
        group = self.groups.parallel
        order_T = torch.randperm(len(tokens_TD), device=tokens_TD.device)
        lengths_R = order_T.new_empty(self.groups.shard.num_ranks)
        dist.all_gather(list(lengths_R.chunk(len(lengths_R))), order_T.new_full((1,), len(tokens_TD)), group=group)
        # the only wait for a GPU: splits are integers, and depend on other ranks
        lengths, rank = lengths_R.tolist(), dist.get_rank(group)
        send = _shares(len(tokens_TD), lengths)
        receive = [_shares(length, lengths)[rank] for length in lengths]
        sent = Slots(order_T, len(tokens_TD))
        rows = UnequalAllToAll.apply(group, sent.take(tokens_TD), send, receive)
        return Shuffled(rows, sent, send, receive)

    def gather(self, values_TD: Tensor, shuffled: Shuffled) -> Tensor:
        """Send values back and return them in the order of their tokens."""
        rows = UnequalAllToAll.apply(self.groups.parallel, values_TD, shuffled.receive, shuffled.send)
        return shuffled.sent.place(rows)


def _shares(tokens: int, lengths: list[int]) -> list[int]:
    """Return how many of a rank's tokens go to each rank, given the number of tokens of each."""
    ranks = [rank for rank, length in enumerate(lengths) if length]
    shares = [0] * len(lengths)
    for i, rank in enumerate(ranks):
        shares[rank] = tokens // len(ranks) + (i < tokens % len(ranks))
    return shares
