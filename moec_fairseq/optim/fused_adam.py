"""fairseq's Adam in one pass over the parameters."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from fairseq.optim import FairseqOptimizer, register_optimizer
from fairseq.optim.adam import Adam, FairseqAdam, FairseqAdamConfig
from torch import Tensor

from moec_fairseq.compat.versions import FUSED_ADAMW, FUSED_ADAMW_DEVICES

# what a call of torch's kernel has in common: step, device, dtype
Kind = tuple[int, torch.device, torch.dtype]


def _is_fused(parameter: Tensor) -> bool:
    """Whether torch's kernel supports this parameter: it keeps the averages in the parameter's dtype."""
    return parameter.dtype in (torch.float32, torch.float64) and parameter.device.type in FUSED_ADAMW_DEVICES


class SinglePassAdam(Adam):
    """fairseq's ``Adam``: same formula, same state, but torch's fused kernel instead of six passes over all values.

    In every update the optimizer touches all parameters of all experts, so its share of the time of a step grows with
    the number of experts. On a GPU an update is a few launches, whatever the number of parameters; nothing is copied
    there, and nothing waits for it.
    """

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one update."""
        if FUSED_ADAMW is None or not all(_is_fused(p) for group in self.param_groups for p in group["params"]):
            return super().step(closure)
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for kind, parameters in self._advance(group["params"]).items():
                self._update(group, kind, parameters)
        return loss

    def _advance(self, parameters: Iterable[Tensor]) -> dict[Kind, list[Tensor]]:
        """Increment the step of each parameter that has a gradient; return the parameters by what a call takes."""
        by_kind = defaultdict(list)
        for parameter in parameters:
            if parameter.grad is not None:
                state = self.state[parameter]
                if not state:
                    state.update(step=0, exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter))
                state["step"] += 1
                by_kind[state["step"], parameter.device, parameter.dtype].append(parameter)
        return by_kind

    @torch.no_grad()
    def _update(self, group: dict[str, Any], kind: Kind, parameters: list[Tensor]) -> None:
        step, device, _ = kind
        beta1, beta2 = group["betas"]
        # the kernel reads one for each parameter, but they may be the same; filled there: torch.tensor would copy it
        step_there = torch.full((), float(step), dtype=torch.float32, device=device)
        states = [self.state[parameter] for parameter in parameters]
        assert FUSED_ADAMW is not None
        FUSED_ADAMW(
            parameters,
            [parameter.grad for parameter in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [step_there] * len(parameters),
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            # fairseq adds ε to sqrt(v), torch to sqrt(v / (1 − β2^t))
            eps=group["eps"] / math.sqrt(1 - beta2**step),
            amsgrad=False,
            maximize=False,
        )


@register_optimizer("fused_adam", dataclass=FairseqAdamConfig)
class FusedAdam(FairseqAdam):
    """``--optimizer fused_adam``: fairseq's ``adam``, faster for models with many experts.

    Raises:
        ValueError: options of ``adam`` that need apex or a TPU.
    """

    def __init__(self, cfg: Any, params: Iterable[Tensor]) -> None:
        FairseqOptimizer.__init__(self, cfg)
        if cfg.tpu or cfg.fp16_adam_stats:
            raise ValueError(
                "--optimizer fused_adam supports neither --tpu nor --fp16-adam-stats; give --optimizer adam."
            )
        self._optimizer = SinglePassAdam(params, **self.optimizer_config)
