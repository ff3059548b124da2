"""Which state of the optimizer belongs to which parameter."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from moec_fairseq.checkpoint.loading import OPTIMIZER, State

# What fairseq's Transformers keep in a state dict beside parameters; the values of _float_tensor are chance
BUFFER = re.compile(r"(.*\.)?(version|_float_tensor)")
_HINT = "leave it out with --no-optimizer"


def first_names(tensors: Mapping[str, Any]) -> dict[str, str]:
    """Return for each tensor the first name of the same memory: tied parameters have several names."""
    first: dict[tuple[int, torch.Size], str] = {}
    return {
        name: first.setdefault((tensor.data_ptr(), tensor.shape), name)
        for name, tensor in tensors.items()
        if isinstance(tensor, Tensor)
    }


def parameters(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the parameters of a state dict, each once, in the order of ``Module.parameters()``."""
    return {
        name: tensors[name]
        for name, first in first_names(tensors).items()
        if name == first and tensors[name].is_floating_point() and not BUFFER.fullmatch(name)
    }


def optimizer_parameters(state: State) -> dict[int, tuple[str, Tensor]]:
    """Return name and value of the parameter that each number in the optimizer's state stands for.

    torch numbers the trainable parameters of model and criterion in their order, which is that of the state dict.

    Raises:
        ValueError: number or shapes of the optimizer's tensors are not those of the parameters.
    """
    optimizer = state.get(OPTIMIZER)
    if not optimizer:
        return {}
    named = [*parameters(state["model"]).items(), *parameters(state.get("criterion") or {}).items()]
    groups = optimizer.get("param_groups", [])
    if len(groups) != 1 or sorted(groups[0]["params"]) != list(range(len(named))):
        numbers = sum(len(group["params"]) for group in groups)
        raise ValueError(
            f"the optimizer's state has {len(groups)} groups with {numbers} parameters, but the model {len(named)} "
            "parameters in one group, so that the state of the experts cannot be told (--fp16 needs "
            f"--fp16-no-flatten-grads, and frozen parameters are not known here); {_HINT}."
        )
    for index, (name, parameter) in enumerate(named):
        shapes = [tensor.shape for tensor in optimizer_tensors(state, index).values()]
        if shapes and parameter.shape not in shapes:
            raise ValueError(
                f"the optimizer's state of parameter {index} has the shape {tuple(shapes[0])}, but {name} has "
                f"{tuple(parameter.shape)}, so that the state of the experts cannot be told; {_HINT}."
            )
    return dict(enumerate(named))


def optimizer_tensors(state: State, index: int) -> dict[str, Tensor]:
    """Return the tensors, except for scalars, that the optimizer keeps of a parameter."""
    kept = state[OPTIMIZER]["state"].get(index, {})
    return {key: value for key, value in kept.items() if isinstance(value, Tensor) and value.dim() > 0}
