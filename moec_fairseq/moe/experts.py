"""The bank of expert networks."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moec_fairseq.moe.expert_parallel import ExpertParallelGroups, Shard
from moec_fairseq.moe.feed_forward import Activation
from moec_fairseq.moe.segments import Segments
from moec_fairseq.moe.torch_features import autocast_dtype
from moec_fairseq.moe.ways import WAYS, Work, choose


class ExpertSublayer(nn.Module):
    """One residual feed-forward block of N experts: x + W2·act(W1·LayerNorm(x)), initially W2 = 0 (BASE layers).

    The parameters of all experts are stacked in dimension 0, so a rank owns a slice of each. Without its LayerNorm,
    x + W2·act(W1·x), a block can be that of a dense Transformer, which has a norm before or behind it.

    Args:
        shard: the experts of this rank, among those of all ranks.
        dim: model dimension D.
        ffn_dim: hidden dimension F.
        activation: the non-linearity.
        activation_dropout: share of the activated hidden units that are dropped in training.
        norm: whether the block has a LayerNorm.
    """

    def __init__(
        self,
        shard: Shard,
        dim: int,
        ffn_dim: int,
        activation: Activation,
        activation_dropout: float = 0.0,
        norm: bool = True,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.activation_dropout = activation_dropout
        num_experts = len(shard.experts)
        self.norm_weight_ND, self.norm_bias_ND = None, None
        if norm:
            self.norm_weight_ND = nn.Parameter(torch.ones(num_experts, dim))
            self.norm_bias_ND = nn.Parameter(torch.zeros(num_experts, dim))
        self.w1_NFD = nn.Parameter(torch.empty(num_experts, ffn_dim, dim))
        self.b1_NF = nn.Parameter(torch.zeros(num_experts, ffn_dim))
        self.w2_NDF = nn.Parameter(torch.zeros(num_experts, dim, ffn_dim))
        self.b2_ND = nn.Parameter(torch.zeros(num_experts, dim))
        # the initialisation of nn.Linear, for each expert
        draw = torch.empty(ffn_dim, dim)
        for expert in range(shard.num_experts):
            # every rank draws all experts, so that they do not depend on the number of ranks
            nn.init.uniform_(draw, -1 / math.sqrt(dim), 1 / math.sqrt(dim))
            if expert in shard.experts:
                self.w1_NFD.data[expert - shard.experts.start].copy_(draw)

    @torch.jit.unused
    def forward(self, tokens_AD: Tensor, segments: Segments, parameters: Sequence[Tensor] | None = None) -> Tensor:
        """Return what each expert adds to its tokens, W2·act(W1·LayerNorm(x)), (A, D).

        Args:
            tokens_AD: tokens grouped by expert.
            segments: the tokens of each expert.
            parameters: used instead of the module's own, in the same order.
        """
        *norm, w1_NFD, b1_NF, w2_NDF, b2_ND = self.parameters() if parameters is None else parameters
        # autocast does not reach products inside an autograd function
        dtype = matmul_dtype(tokens_AD)
        linear = [p.to(dtype) for p in (w1_NFD, b1_NF, w2_NDF, b2_ND)]
        compute = WAYS[choose(Work.of(linear[0]), segments)]
        with torch.autocast(tokens_AD.device.type, enabled=False):
            mask_AF = self._mask(len(tokens_AD), linear[1])
            return compute(self.activation, tokens_AD, segments, [*norm, *linear], mask_AF)

    def _mask(self, num_tokens: int, b1_NF: Tensor) -> Tensor | None:
        """Draw the factors of dropout for each token, in the dtype of ``b1_NF``: the same for all ways to compute."""
        if self.activation_dropout == 0 or not self.training:
            return None
        kept = 1 - self.activation_dropout
        return b1_NF.new_empty(num_tokens, b1_NF.shape[1]).bernoulli_(kept).div_(kept)

    def residual(self, tokens_TD: Tensor, expert_T: Tensor) -> Tensor:
        """Return what expert ``expert_T[t]`` adds to token t, by plain autograd: the reference for ``forward``.

        Tokens may come in any order. TorchScript and tracing use it, too.
        """
        residual_TD = torch.zeros_like(tokens_TD)
        for i in range(len(self.w1_NFD)):
            token_A = (expert_T == i).nonzero().squeeze(1)
            own_AD = tokens_TD[token_A]
            x = own_AD
            if self.norm_weight_ND is not None and self.norm_bias_ND is not None:
                x = F.layer_norm(own_AD, own_AD.shape[-1:], self.norm_weight_ND[i], self.norm_bias_ND[i])
            hidden = self.activation(F.linear(x.to(self.w1_NFD.dtype), self.w1_NFD[i], self.b1_NF[i]))
            result = F.linear(hidden, self.w2_NDF[i], self.b2_ND[i])
            residual_TD = residual_TD.index_copy(0, token_A, result.to(tokens_TD.dtype))
        return residual_TD


def matmul_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype of products of ``tensor`` in the current context: its own, or that of autocast."""
    if tensor.dtype == torch.float64:  # autocast leaves it alone
        return tensor.dtype
    return autocast_dtype(tensor.device.type) or tensor.dtype


class Experts(nn.Module):
    """N experts, each a stack of residual feed-forward blocks; a new expert is the identity.

    In a job of several processes, each rank keeps its shard. Training sends tokens to the experts. Evaluation gathers
    all experts on every rank, once each time the model is switched to evaluation, because there ranks take different
    numbers of steps (beam search) and cannot wait for each other. Where memory is too small for all experts,
    evaluation can send tokens as training does.

    Args:
        num_experts: N, of all ranks together.
        dim: model dimension D.
        ffn_dim: hidden dimension F.
        sublayers: blocks per expert, 3 in the published WMT recipe.
        activation: the non-linearity.
        groups: the processes that share the experts; None if there is only one.
        gather: whether evaluation gathers all experts.
        activation_dropout: share of the activated hidden units that are dropped in training.
        norm: whether blocks have a LayerNorm.

    Raises:
        ValueError: fewer than one sublayer or hidden unit, or a share that is not in [0, 1).
    """

    def __init__(
        self,
        num_experts: int,
        dim: int,
        ffn_dim: int,
        sublayers: int = 1,
        activation: Activation = F.relu,
        groups: ExpertParallelGroups | None = None,
        gather: bool = True,
        activation_dropout: float = 0.0,
        norm: bool = True,
    ) -> None:
        super().__init__()
        if sublayers < 1:
            raise ValueError(f"--moec-sublayers is {sublayers}, but an expert needs 1 block or more.")
        if ffn_dim < 1:
            raise ValueError(f"--moec-expert-ffn-embed-dim is {ffn_dim}, but an expert needs 1 hidden unit or more.")
        if not 0 <= activation_dropout < 1:
            raise ValueError(f"--moec-activation-dropout is {activation_dropout}, but must be 0 or more, and below 1.")
        shard = Shard(num_experts) if groups is None else groups.shard
        self.sublayers = nn.ModuleList(
            ExpertSublayer(shard, dim, ffn_dim, activation, activation_dropout, norm) for _ in range(sublayers)
        )
        self.groups = groups
        self.gather = gather
        self._gathered = list[list[Tensor]]()
        self._versions = list[int]()
        if groups is not None:
            groups.own_gradients(self)

    def train(self, mode: bool = True) -> "Experts":
        """Switch between training and evaluation; training frees the experts of other ranks."""
        if mode:
            self._gathered = []
        return super().train(mode)

    @torch.jit.unused
    def forward(self, tokens_AD: Tensor, segments: Segments) -> Tensor:
        """Return what the experts add to their tokens, E(h) − h, (A, D).

        The experts are those of this rank in training, and all of them in evaluation if they are gathered.

        Args:
            tokens_AD: tokens grouped by expert.
            segments: the tokens of each expert.
        """
        all_here = self.gather and not self.training and self.groups is not None
        parameters = self._gather_parameters() if all_here else [None] * len(self.sublayers)
        if len(self.sublayers) == 1 and tokens_AD.device.type != "cpu":
            # h + r − h would be five kernels more, and rounds r; on a CPU, results stay what they have always been
            result: Tensor = self.sublayers[0](tokens_AD, segments, parameters[0])
            return result
        outputs_AD = tokens_AD
        for sublayer, gathered in zip(self.sublayers, parameters, strict=True):
            outputs_AD = outputs_AD + sublayer(outputs_AD, segments, gathered)
        return outputs_AD.to(tokens_AD.dtype) - tokens_AD

    def residual(self, tokens_TD: Tensor, expert_T: Tensor) -> Tensor:
        """Return E(h) − h of each token, by plain autograd (see ``ExpertSublayer.residual``)."""
        assert self.groups is None, "a model is exported from one process, which has all experts"
        residual_TD = torch.zeros_like(tokens_TD)
        for sublayer in self.sublayers:
            residual_TD = residual_TD + sublayer.residual(tokens_TD + residual_TD, expert_T)  # type: ignore[operator]
        return residual_TD

    @torch.no_grad()
    def _gather_parameters(self) -> Sequence[list[Tensor] | None]:
        """Return the parameters of all experts; all ranks call this together the first time after an update."""
        assert self.groups is not None
        # moving averages of parameters (--store-ema) are updated while their model is in evaluation mode
        versions = [parameter._version for parameter in self.parameters()]
        if not self._gathered or versions != self._versions:
            self._gathered = [[self.groups.gather(p) for p in sublayer.parameters()] for sublayer in self.sublayers]
            self._versions = versions
        return self._gathered
