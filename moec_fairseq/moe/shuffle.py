"""Tokens to random ranks before they are routed."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from moec_fairseq.moe.exchange import UnequalAllToAll
from moec_fairseq.moe.ranks import Ranks


@dataclass(frozen=True)
class Shuffled:
    """Tokens from random places of all partners, and the way back.

    Attributes:
        tokens_TD: tokens that are here now.
        order_T: order in which this rank's own tokens were sent.
        send: tokens that went to each partner.
        receive: tokens that came from each partner.
    """

    tokens_TD: Tensor
    order_T: Tensor
    send: list[int]
    receive: list[int]


class TokenShuffle:
    """Breaks up batches whose tokens are alike (BASE layers): each rank routes tokens of all sentences.

    fairseq seeds torch with the number of the update, so that a resumed run shuffles as the undisturbed one.

    Args:
        ranks: the processes that share the experts.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks

    def scatter(self, tokens_TD: Tensor) -> Shuffled:
        """Send each token to a random partner, (almost) the same number to each that has tokens itself.

        Who has none has a dummy batch, whose gradients fairseq ignores: it must not route the tokens of others.
        """
        partners = self.ranks.partners
        order_T = torch.randperm(len(tokens_TD), device=tokens_TD.device)
        lengths_R = order_T.new_empty(self.ranks.shard.num_ranks)
        dist.all_gather(list(lengths_R.chunk(len(lengths_R))), order_T.new_tensor([len(tokens_TD)]), group=partners)
        lengths, rank = lengths_R.tolist(), dist.get_rank(partners)
        send = _shares(len(tokens_TD), lengths)
        receive = [_shares(length, lengths)[rank] for length in lengths]
        rows = UnequalAllToAll.apply(partners, tokens_TD.index_select(0, order_T), send, receive)
        return Shuffled(rows, order_T, send, receive)

    def gather(self, values_TD: Tensor, shuffled: Shuffled) -> Tensor:
        """Bring values back to the places of their tokens."""
        rows = UnequalAllToAll.apply(self.ranks.partners, values_TD, shuffled.receive, shuffled.send)
        return rows.index_select(0, torch.argsort(shuffled.order_T))


def _shares(tokens: int, lengths: list[int]) -> list[int]:
    """Return how many of a rank's tokens go to each, by the numbers of tokens of all."""
    ranks = [rank for rank, length in enumerate(lengths) if length]
    shares = [0] * len(lengths)
    for place, rank in enumerate(ranks):
        shares[rank] = tokens // len(ranks) + (place < tokens % len(ranks))
    return shares
