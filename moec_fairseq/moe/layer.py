"""The MoE block: route, dispatch, compute, combine."""

import math

import torch
from torch import Tensor, nn

from moec_fairseq.moe.dispatch import Dispatcher, LocalDispatcher
from moec_fairseq.moe.expert_dropout import ExpertDropout
from moec_fairseq.moe.experts import Experts
from moec_fairseq.moe.records import LayerRecord, RecordBook
from moec_fairseq.moe.router import Router
from moec_fairseq.moe.shuffle import TokenShuffle


class MoELayer(nn.Module):
    """y_t = α_t·E_a(t)(h_t) + (1 − α_t)·h_t for every token that is not padding (MoEC, equation 3).

    ::

        (L, B, D) -> padding dropped -> (T, D) -> router -> dispatch -> experts -> combine -> padding restored

    Args:
        router: assigns tokens to experts.
        experts: the bank of experts.
        dispatcher: brings tokens to their experts and back while training.
        dropout: which experts are in play while training.
        capacity_factor: while training an expert takes at most capacity_factor × T tokens; no limit at evaluation.
        layer: number of this MoE layer in the model, from 0; layers draw their survivors independently.
        book: takes the routing records for the criterion.
        shuffle: sends tokens to random ranks before they are routed, while training; None: they stay.
        evaluation_dispatcher: brings tokens to their experts at evaluation; None: all experts are here.

    Raises:
        ValueError: a capacity factor that is not positive and finite.
    """

    def __init__(
        self,
        router: Router,
        experts: Experts,
        dispatcher: Dispatcher,
        dropout: ExpertDropout,
        capacity_factor: float = 2.0,
        layer: int = 0,
        book: RecordBook | None = None,
        shuffle: TokenShuffle | None = None,
        evaluation_dispatcher: Dispatcher | None = None,
    ) -> None:
        super().__init__()
        if not 0 < capacity_factor < math.inf:
            raise ValueError(
                f"--moe-capacity-factor is {capacity_factor}, but must be finite and above 0: an expert takes at "
                "most this many times the tokens of the batch (2 is the published value, 1 and more drop nothing on "
                "one process)."
            )
        self.router = router
        self.experts = experts
        self.dispatcher = dispatcher
        self.evaluation_dispatcher = evaluation_dispatcher or LocalDispatcher(router.clusters.num_experts)
        self.dropout = dropout
        self.capacity_factor = capacity_factor
        self.layer = layer
        self.book = book or RecordBook()
        self.shuffle = shuffle
        self.num_updates = 0

    def set_num_updates(self, num_updates: int) -> None:
        """Take the number of updates made so far; fairseq calls this, also after a restart."""
        self.num_updates = num_updates

    def experts_in_play(self, device: torch.device) -> Tensor:
        """Return the numbers of the experts in play now: all at evaluation, the survivors while training."""
        clusters = self.router.clusters
        if not self.training:
            return torch.arange(clusters.num_experts, device=device)
        return torch.tensor(self.dropout.survivors(clusters, self.layer, self.num_updates), device=device)

    def forward(self, hidden_LBD: Tensor, padding_mask_BL: Tensor | None = None) -> Tensor:
        """Send every token through its expert; padding (True in the mask) passes unchanged and counts nowhere."""
        return hidden_LBD + self.difference(hidden_LBD, padding_mask_BL)

    def difference(self, hidden_LBD: Tensor, padding_mask_BL: Tensor | None = None) -> Tensor:
        """Return y − h = α·(E(h) − h), (L, B, D); 0 for padding and for tokens above capacity."""
        if torch.jit.is_scripting() or torch.jit.is_tracing():  # type: ignore[attr-defined]
            return self._exported_difference(hidden_LBD, padding_mask_BL)
        else:  # TorchScript leaves out this branch, but not what would follow without it
            return self._grouped_difference(hidden_LBD, padding_mask_BL)

    def _exported_difference(self, hidden_LBD: Tensor, padding_mask_BL: Tensor | None) -> Tensor:
        """Do the same at evaluation, where each token goes its own way, in operations that TorchScript knows."""
        assert not self.training, "a model with experts is trained by Python only: call eval() before it is exported"
        hidden_PD = hidden_LBD.reshape(-1, hidden_LBD.shape[-1])
        everyone_N = torch.arange(len(self.router.experts_NK), device=hidden_LBD.device)
        _, expert_P, mix_P = self.router.assign(hidden_PD, everyone_N)
        difference_PD = mix_P.unsqueeze(-1).to(hidden_PD.dtype) * self.experts.difference(hidden_PD, expert_P)
        if padding_mask_BL is not None:
            difference_PD = difference_PD.masked_fill(padding_mask_BL.t().reshape(-1, 1), 0)
        return difference_PD.view_as(hidden_LBD)

    def _grouped_difference(self, hidden_LBD: Tensor, padding_mask_BL: Tensor | None) -> Tensor:
        hidden_PD = hidden_LBD.reshape(-1, hidden_LBD.shape[-1])
        if self.book.is_dummy:
            token_T = torch.arange(0, device=hidden_PD.device)
        elif padding_mask_BL is None:
            return self._shuffled_difference(hidden_PD).view_as(hidden_LBD)
        else:
            token_T = (~padding_mask_BL).t().reshape(-1).nonzero().squeeze(1)
        difference_TD = self._shuffled_difference(hidden_PD.index_select(0, token_T))
        return torch.zeros_like(hidden_PD).index_add(0, token_T, difference_TD).view_as(hidden_LBD)

    def _shuffled_difference(self, tokens_TD: Tensor) -> Tensor:
        if self.shuffle is None or not self.training:
            return self._difference(tokens_TD)
        shuffled = self.shuffle.scatter(tokens_TD)
        return self.shuffle.gather(self._difference(shuffled.tokens_TD), shuffled)

    def _difference(self, tokens_TD: Tensor) -> Tensor:
        routing = self.router(tokens_TD, self.experts_in_play(tokens_TD.device))
        capacity = max(1, int(self.capacity_factor * len(tokens_TD))) if self.training else None
        dispatcher = self.dispatcher if self.training else self.evaluation_dispatcher
        dispatched = dispatcher.dispatch(tokens_TD, routing.expert_T, capacity)
        outputs_AD = self.experts(dispatched.tokens_AD, dispatched.counts_N).to(tokens_TD.dtype)
        difference_TD = dispatcher.combine(outputs_AD - dispatched.tokens_AD, dispatched, len(tokens_TD))
        overflow = dispatched.assigned_N.new_tensor(len(tokens_TD) - len(dispatched.accepted_A))
        self.book.add(LayerRecord(self.layer, routing, dispatched.assigned_N, overflow), self.training)
        return routing.mix_T.unsqueeze(-1).to(tokens_TD.dtype) * difference_TD
