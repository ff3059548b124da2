"""The bank of expert networks."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moec_fairseq.moe.feed_forward import Activation, GroupedFeedForward


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
        norm = (self.norm_weight_ND, self.norm_bias_ND)
        # autocast knows no products inside of an autograd function
        dtype = matmul_dtype(tokens_AD)
        linear = (p.to(dtype) for p in (self.w1_NFD, self.b1_NF, self.w2_NDF, self.b2_ND))
        keep = torch.is_grad_enabled()
        with torch.autocast(tokens_AD.device.type, enabled=False):
            return tokens_AD + GroupedFeedForward.apply(self.activation, counts, keep, tokens_AD, *norm, *linear)


def matmul_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype of products of ``tensor`` here: its own, or that of autocast."""
    one = tensor.new_empty(1, 1)
    return torch.mm(one, one).dtype


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
