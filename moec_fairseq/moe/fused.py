"""Cosine router and default losses in few kernels, for devices: backward passes in closed form.

These tensors are small, and a GPU computes each step in less time than the host takes to launch it. From queries to
losses and back, autograd launches 110 kernels, these functions 43. A CPU, which launches nothing, uses autograd
(``Router.assign``, ``losses.intra_cv_variance``), and results there do not change by a rounding.
"""

from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

MIN_NORM: Final[float] = 1e-4
MIN_TEMPERATURE: Final[float] = 1e-4
# Smallest mean of P_i that divides a variance: dot products can push a whole cluster to 0, where the gradient of
# Var/mean² is NaN. Cosines get there only if every token is at the very ends of the scale.
MIN_MEAN: Final[float] = 1e-12


def above(floor: float, x: Tensor, value: Tensor) -> Tensor:
    """Return ``value`` where x > floor, and 0 elsewhere: what passes backward through ``x.clamp(min=floor)``.

    ``where`` would be two kernels.
    """
    result: Tensor = torch.ops.aten.threshold_backward(value, x, floor)
    return result


class CosineRouting(torch.autograd.Function):
    """Queries q and embeddings e -> scores, index of the best expert, gate.

    Forward, x being the rows of q and of e, n their norms, floored, and τ the temperature, floored::

        x̂ = x / n      s_ti = q̂_t·ê_i      z_t = max_i s_ti / τ      α_t = sigmoid(z_t)

    Backward, where a norm or a temperature at its floor is a constant::

        dz = dα α (1 − α)      dτ = −Σ_t z_t dz_t / τ      ds += dz / τ at the best expert
        dq̂ = ds ê      dê = dsᵀ q̂      dx = (dx̂ − x̂ (x̂·dx̂)) / n
    """

    @staticmethod
    def forward(
        ctx: Any, queries_TK: Tensor, embeddings_SK: Tensor, temperature: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return scores (T, S), index of the best expert (T,), gate (T,).

        Args:
            ctx: autograd's.
            queries_TK: a query for each token.
            embeddings_SK: those of the active experts.
            temperature: of the gate, (1,).
        """
        unit_XK = torch.cat([queries_TK, embeddings_SK])
        norm_X1 = torch.linalg.vector_norm(unit_XK, dim=-1, keepdim=True)
        floored_X1 = norm_X1.clamp(min=MIN_NORM)
        unit_XK.div_(floored_X1)
        scores_TS = replace_non_finite_(unit_XK[: len(queries_TK)] @ unit_XK[len(queries_TK) :].t())
        best_T, index_T = scores_TS.max(dim=-1)
        floored = temperature.clamp(min=MIN_TEMPERATURE)
        logit_T = best_T / floored
        gate_T = torch.sigmoid(logit_T)
        ctx.save_for_backward(unit_XK, norm_X1, floored_X1, index_T, temperature, floored, logit_T, gate_T)
        ctx.mark_non_differentiable(index_T)
        ctx.set_materialize_grads(False)  # that of the index would be filled with zeros
        return scores_TS, index_T, gate_T

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_scores_TS: Tensor | None, _: None, d_gate_T: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of queries, embeddings and temperature.

        Scores that were not finite come from a row that is not finite; so are its gradients, and need no mask.
        """
        unit_XK, norm_X1, floored_X1, index_T, temperature, floored, logit_T, gate_T = ctx.saved_tensors
        num_tokens, d_XK = len(index_T), torch.empty_like(unit_XK)
        if d_scores_TS is None:
            d_scores_TS = unit_XK.new_zeros(num_tokens, len(unit_XK) - num_tokens)
        if d_gate_T is None:
            d_gate_T = torch.zeros_like(gate_T)
        d_best_T = torch.ops.aten.sigmoid_backward(d_gate_T, gate_T) / floored
        d_temperature = torch.addmv(temperature, logit_T.unsqueeze(0), d_best_T, beta=0, alpha=-1)
        d_temperature = above(MIN_TEMPERATURE, temperature, d_temperature)
        d_scores_TS = d_scores_TS.scatter_add(1, index_T.unsqueeze(1), d_best_T.unsqueeze(1))
        torch.mm(d_scores_TS, unit_XK[num_tokens:], out=d_XK[:num_tokens])
        torch.mm(d_scores_TS.t(), unit_XK[:num_tokens], out=d_XK[num_tokens:])
        along_X1 = above(MIN_NORM, norm_X1, (d_XK * unit_XK).sum(-1, keepdim=True))
        d_XK.addcmul_(unit_XK, along_X1, value=-1).div_(floored_X1)
        return d_XK[:num_tokens], d_XK[num_tokens:], d_temperature


def replace_non_finite_(scores_TS: Tensor) -> Tensor:
    """Do what ``router.replace_non_finite`` does, in place."""
    if scores_TS.numel() == 0:
        return scores_TS
    inf = torch.inf
    smallest = scores_TS.nan_to_num(inf, inf, inf).amin().nan_to_num_(posinf=0.0)
    return torch.maximum(scores_TS.nan_to_num_(-inf, -inf, -inf), smallest, out=scores_TS)


class IntraCVLosses(torch.autograd.Function):
    """Balance and ``intra_cv`` loss of L layers, C clusters of S/C active experts each.

    Forward, m and v being mean and variance of P_i in a cluster, T the number of tokens, β the variance's weight::

        balance = S Σ_i P_i f_i      variance = S β T mean_c v/m²

    Backward, with s = S/C; where a mean is at its floor, it is a constant, and the last term is 0::

        dP_i = S f_i dbalance + S β T/C · 2/(s − 1) · (P_i − m − m v/m² (s − 1)/s)/m² · dvariance
    """

    @staticmethod
    def forward(
        ctx: Any,
        importance_LS: Tensor,
        load_LS: Tensor,
        num_tokens_L: Tensor,
        mean_LC: Tensor,
        squared_mean_LC: Tensor,
        squared_cv_LC: Tensor,
        variance_weight: float,
    ) -> tuple[Tensor, Tensor]:
        """Return (balance, variance), (L,) each.

        Args:
            ctx: autograd's.
            importance_LS: P_i.
            load_LS: f_i.
            num_tokens_L: T.
            mean_LC: m.
            squared_mean_LC: m², m floored.
            squared_cv_LC: v/m².
            variance_weight: β.
        """
        num_experts = importance_LS.shape[-1]
        slope_LS = num_experts * load_LS
        ctx.save_for_backward(importance_LS, slope_LS, num_tokens_L, mean_LC, squared_mean_LC, squared_cv_LC)
        ctx.scale = num_experts * variance_weight
        return (importance_LS * slope_LS).sum(-1), squared_cv_LC.mean(-1) * num_tokens_L * ctx.scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_balance_L: Tensor, d_variance_L: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of P_i: that of mean and variance is part of it."""
        importance_LS, slope_LS, num_tokens_L, mean_LC, squared_mean_LC, squared_cv_LC = ctx.saved_tensors
        layers, clusters = mean_LC.shape
        size = importance_LS.shape[-1] // clusters
        from_mean_LC = above(MIN_MEAN, mean_LC, squared_cv_LC)
        centre_LC = torch.addcmul(mean_LC, mean_LC, from_mean_LC, value=(size - 1) / size)
        deviation_LCS = importance_LS.view(layers, clusters, size) - centre_LC.unsqueeze(-1)
        slope_LC1 = ((d_variance_L * num_tokens_L).unsqueeze(-1) / squared_mean_LC).unsqueeze(-1)
        of_balance_LCS = (slope_LS * d_balance_L.unsqueeze(-1)).view_as(deviation_LCS)
        factor = 2 * ctx.scale / (clusters * (size - 1))
        gradient_LCS = torch.addcmul(of_balance_LCS, deviation_LCS, slope_LC1, value=factor)
        return gradient_LCS.view_as(importance_LS), None, None, None, None, None, None


class _Gated(torch.autograd.Function):
    """gate · row, rounded once."""

    @staticmethod
    def forward(ctx: Any, gate_T1: Tensor, rows_TD: Tensor, dtype: torch.dtype) -> Tensor:
        """Return (T, D)."""
        ctx.save_for_backward(gate_T1, rows_TD)
        return torch.mul(gate_T1, rows_TD, out=torch.empty_like(rows_TD, dtype=dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_TD: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return the gradients of gate and rows."""
        gate_T1, rows_TD = ctx.saved_tensors
        d_gate_T1 = (gradient_TD * rows_TD).sum(-1, keepdim=True, dtype=gate_T1.dtype)
        return d_gate_T1, torch.mul(gradient_TD, gate_T1, out=torch.empty_like(rows_TD)), None


def gated(gate_T1: Tensor, rows_TD: Tensor, dtype: torch.dtype) -> Tensor:
    """Return gate · row as ``dtype``, (T, D); on devices, no tensor is converted by a kernel of its own."""
    if rows_TD.device.type == "cpu":
        return gate_T1.to(dtype) * rows_TD
    result: Tensor = _Gated.apply(gate_T1, rows_TD, dtype)
    return result
