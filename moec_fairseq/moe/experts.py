"""The bank of expert networks."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Activation = Callable[[Tensor], Tensor]


class ExpertSublayer(nn.Module):
    """One residual feed-forward block of N experts: x + W2·act(W1·LayerNorm(x)), W2 = 0 at the start (BASE layers).

    The parameters of all experts are stacked in dimension 0, so that a rank owns a slice of each.

    Args:
        num_experts: N.
        dim: model dimension D.
        ffn_dim: hidden dimension F.
        activation: the non-linearity.
    """

    def __init__(self, num_experts: int, dim: int, ffn_dim: int, activation: Activation) -> None:
        super().__init__()
        self.activation = activation
        self.norm_weight_ND = nn.Parameter(torch.ones(num_experts, dim))
        self.norm_bias_ND = nn.Parameter(torch.zeros(num_experts, dim))
        self.w1_NFD = nn.Parameter(torch.empty(num_experts, ffn_dim, dim))
        self.b1_NF = nn.Parameter(torch.zeros(num_experts, ffn_dim))
        self.w2_NDF = nn.Parameter(torch.zeros(num_experts, dim, ffn_dim))
        self.b2_ND = nn.Parameter(torch.zeros(num_experts, dim))
        # nn.Linear's own initialisation, for each expert
        nn.init.uniform_(self.w1_NFD, -1 / math.sqrt(dim), 1 / math.sqrt(dim))

    def forward(self, tokens_AD: Tensor, counts: list[int]) -> Tensor:
        """Apply expert i to its ``counts[i]`` tokens; ``tokens_AD`` is grouped by expert."""
        # unbind, not indexing: its backward writes every expert's gradient once, where indexing would
        # write a zero-filled gradient of all experts for each expert
        parameters = zip(
            *(
                p.unbind(0)
                for p in (self.norm_weight_ND, self.norm_bias_ND, self.w1_NFD, self.b1_NF, self.w2_NDF, self.b2_ND)
            ),
            strict=True,
        )
        # an empty batch still passes through all experts: every parameter gets a gradient on every rank
        empty = len(tokens_AD) == 0
        return torch.cat(
            [
                self._one_expert(x, *own)
                for x, own in zip(tokens_AD.split(counts), parameters, strict=True)
                if empty or len(x)
            ]
        )

    def _one_expert(self, x: Tensor, g: Tensor, b: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        hidden = self.activation(F.linear(F.layer_norm(x, x.shape[-1:], g, b), w1, b1))
        return x + F.linear(hidden, w2, b2)


class Experts(nn.Module):
    """N experts, each a stack of residual feed-forward blocks; a new expert is the identity.

    Args:
        num_experts: N.
        dim: model dimension D.
        ffn_dim: hidden dimension F.
        sublayers: blocks per expert, 3 in the published WMT recipe.
        activation: the non-linearity.

    Raises:
        ValueError: fewer than one sublayer or hidden unit.
    """

    def __init__(
        self, num_experts: int, dim: int, ffn_dim: int, sublayers: int = 1, activation: Activation = F.relu
    ) -> None:
        super().__init__()
        if sublayers < 1:
            raise ValueError(f"--moec-sublayers is {sublayers}, but an expert needs 1 block or more.")
        if ffn_dim < 1:
            raise ValueError(f"--moec-expert-ffn-embed-dim is {ffn_dim}, but an expert needs 1 hidden unit or more.")
        self.sublayers = nn.ModuleList(ExpertSublayer(num_experts, dim, ffn_dim, activation) for _ in range(sublayers))

    def forward(self, tokens_AD: Tensor, counts_N: Tensor) -> Tensor:
        """Apply expert i to its ``counts_N[i]`` tokens; ``tokens_AD`` is grouped by expert."""
        counts = counts_N.tolist()
        for sublayer in self.sublayers:
            tokens_AD = sublayer(tokens_AD, counts)
        return tokens_AD
