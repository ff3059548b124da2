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
        """Send each token to a random partner, (almost) the same number to each."""
        num_ranks = self.ranks.shard.num_ranks
        order_T = torch.randperm(len(tokens_TD), device=tokens_TD.device)
        send = [len(part) for part in torch.arange(len(tokens_TD)).tensor_split(num_ranks)]
        send_R = torch.tensor(send, device=tokens_TD.device)
        receive_R = torch.empty_like(send_R)
        dist.all_to_all_single(receive_R, send_R, group=self.ranks.partners)
        receive = receive_R.tolist()
        rows = UnequalAllToAll.apply(self.ranks.partners, tokens_TD.index_select(0, order_T), send, receive)
        return Shuffled(rows, order_T, send, receive)

    def gather(self, values_TD: Tensor, shuffled: Shuffled) -> Tensor:
        """Bring values back to the places of their tokens."""
        rows = UnequalAllToAll.apply(self.ranks.partners, values_TD, shuffled.receive, shuffled.send)
        return rows.index_select(0, torch.argsort(shuffled.order_T))
