"""The MoE block: route, dispatch, compute, combine."""

import math

import torch
from torch import Tensor, nn

from moec_fairseq.moe.dispatch import Dispatcher, LocalDispatcher
from moec_fairseq.moe.expert_dropout import ExpertDropout
from moec_fairseq.moe.experts import Experts
from moec_fairseq.moe.fused import gated
from moec_fairseq.moe.router import Router
from moec_fairseq.moe.routing_records import RoutingCollector, RoutingRecord
from moec_fairseq.moe.segments import Slots
from moec_fairseq.moe.shuffle import TokenShuffle


class MoELayer(nn.Module):
    """y_t = α_t·E_a(t)(h_t) + (1 − α_t)·h_t for every token that is not padding (MoEC, equation 3).

    ::

        (L, B, D) -> padding dropped -> (T, D) -> router -> dispatch -> experts -> combine -> padding restored

    Args:
        router: routes tokens to experts.
        experts: the bank of experts.
        dispatcher: sends tokens to their experts and the results back in training.
        dropout: selects the active experts in training.
        capacity_factor: in training an expert takes at most capacity_factor × T tokens; no limit at evaluation.
        layer_index: index of this MoE layer in the model, from 0; expert dropout is independent between layers.
        stack: the stack that it is in, ``encoder`` or ``decoder``.
        collector: takes the routing records for the criterion.
        shuffle: sends tokens to random ranks before they are routed, in training; None: they stay.
        evaluation_dispatcher: the dispatcher at evaluation; None: all experts are in this process.

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
        layer_index: int = 0,
        stack: str = "encoder",
        collector: RoutingCollector | None = None,
        shuffle: TokenShuffle | None = None,
        evaluation_dispatcher: Dispatcher | None = None,
    ) -> None:
        super().__init__()
        if not 0 < capacity_factor < math.inf:
            raise ValueError(
                f"--moe-capacity-factor is {capacity_factor}, but must be finite and above 0: an expert takes at "
                "most this many times the tokens of the batch (2 is the published value; with one process, 1 or more "
                "drops no tokens)."
            )
        self.router = router
        self.experts = experts
        self.dispatcher = dispatcher
        self.evaluation_dispatcher = evaluation_dispatcher or LocalDispatcher(router.clusters.num_experts)
        self.dropout = dropout
        self.capacity_factor = capacity_factor
        self.layer_index = layer_index
        self.stack = stack
        self.collector = collector or RoutingCollector()
        self.shuffle = shuffle
        self.num_updates = 0
        self._active = dict[tuple[int, torch.device], tuple[Tensor, Tensor]]()

    def set_num_updates(self, num_updates: int) -> None:
        """Set the number of updates made so far; fairseq calls this, also after a restart."""
        self.num_updates = num_updates

    def active_experts(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the IDs of the active experts, (S,), and 1 for them and 0 for all others, (N,).

        They are those that dropout keeps in training, and all at evaluation.
        """
        clusters = self.router.clusters
        if not self.training:
            return torch.arange(clusters.num_experts, device=device), torch.ones(clusters.num_experts, device=device)
        draw = self.num_updates // self.dropout.interval, device
        if draw not in self._active:  # copied to a GPU once for each draw
            ids_S = torch.tensor(self.dropout.active_ids(clusters, self.layer_index, self.num_updates), device=device)
            self._active = {draw: (ids_S, torch.zeros(clusters.num_experts, device=device).index_fill_(0, ids_S, 1))}
        return self._active[draw]

    def forward(self, hidden_LBD: Tensor, padding_mask_BL: Tensor | None = None) -> Tensor:
        """Send every token through its expert; padding (True in the mask) passes unchanged and is never counted."""
        return hidden_LBD + self.residual(hidden_LBD, padding_mask_BL)

    def residual(self, hidden_LBD: Tensor, padding_mask_BL: Tensor | None = None) -> Tensor:
        """Return y − h = α·(E(h) − h), (L, B, D); 0 for padding and for tokens above capacity."""
        if torch.jit.is_scripting() or torch.jit.is_tracing():  # type: ignore[attr-defined]
            return self._exported_residual(hidden_LBD, padding_mask_BL)
        else:  # TorchScript skips this branch, but would compile the same code after an early return
            return self._grouped_residual(hidden_LBD, padding_mask_BL)

    def _exported_residual(self, hidden_LBD: Tensor, padding_mask_BL: Tensor | None) -> Tensor:
        """Do the same at evaluation, in operations that TorchScript supports; padding is routed, then masked."""
        assert not self.training, "a model with experts can only be trained in Python: call eval() before exporting it"
        hidden_PD = hidden_LBD.reshape(-1, hidden_LBD.shape[-1])
        all_ids_N = torch.arange(len(self.router.expert_embeddings_NK), device=hidden_LBD.device)
        _, expert_P, gate_P = self.router.assign(hidden_PD, all_ids_N)
        residual_PD = gate_P.unsqueeze(-1).to(hidden_PD.dtype) * self.experts.residual(hidden_PD, expert_P)
        if padding_mask_BL is not None:
            residual_PD = residual_PD.masked_fill(padding_mask_BL.t().reshape(-1, 1), 0)
        return residual_PD.view_as(hidden_LBD)

    def _grouped_residual(self, hidden_LBD: Tensor, padding_mask_BL: Tensor | None) -> Tensor:
        hidden_PD = hidden_LBD.reshape(-1, hidden_LBD.shape[-1])
        if self.collector.is_dummy:
            token_T = torch.arange(0, device=hidden_PD.device)
        elif padding_mask_BL is None:
            return self._shuffled_residual(hidden_PD).view_as(hidden_LBD)
        else:
            token_T = self._positions(padding_mask_BL.t().reshape(-1))
        tokens = Slots(token_T, len(hidden_PD))
        return tokens.place(self._shuffled_residual(tokens.take(hidden_PD))).view_as(hidden_LBD)

    def _positions(self, is_padding_P: Tensor) -> Tensor:
        """Return the positions of tokens that are not padding, (T,)."""
        num_tokens = self.collector.num_tokens.get(self.stack) if self.training else None
        if num_tokens is None or is_padding_P.device.type == "cpu":
            return (~is_padding_P).nonzero().squeeze(1)
        # nonzero would wait for a GPU, to learn how many there are
        return torch.sort(is_padding_P.to(torch.uint8), stable=True).indices[:num_tokens]

    def _shuffled_residual(self, tokens_TD: Tensor) -> Tensor:
        if self.shuffle is None or not self.training:
            return self._residual(tokens_TD)
        shuffled = self.shuffle.scatter(tokens_TD)
        return self.shuffle.gather(self._residual(shuffled.tokens_TD), shuffled)

    def _residual(self, tokens_TD: Tensor) -> Tensor:
        active_ids_S, active_N = self.active_experts(tokens_TD.device)
        routing = self.router(tokens_TD, active_ids_S)
        capacity = max(1, int(self.capacity_factor * len(tokens_TD))) if self.training else None
        dispatcher = self.dispatcher if self.training else self.evaluation_dispatcher
        dispatched = dispatcher.dispatch(tokens_TD, routing.expert_T, capacity)
        residual_AD = self.experts(dispatched.tokens_AD, dispatched.segments)
        residual_TD = dispatcher.combine(residual_AD, dispatched, len(tokens_TD))
        overflow = active_N.new_full((), len(tokens_TD) - len(dispatched.accepted_A))
        counts_N, equal = dispatched.tokens_per_expert_N, self.dropout.equal_clusters
        record = RoutingRecord(self.layer_index, routing, counts_N, overflow, active_N, equal, self.num_updates)
        self.collector.add(record, self.training)
        return gated(routing.gate_T.unsqueeze(-1), residual_TD, tokens_TD.dtype)
