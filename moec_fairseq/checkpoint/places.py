"""Where a checkpoint keeps experts: in the model, in averages of it, and in the optimizer's state."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from moec_fairseq.checkpoint.loading import OPTIMIZER, State
from moec_fairseq.checkpoint.optimizer import optimizer_parameters, optimizer_tensors

MARK = ".experts.sublayers."

# The keys that lead from the top of a checkpoint to a tensor
Place = tuple[Any, ...]


def place_name(place: Place) -> str:
    """Return a place in words."""
    return "/".join(map(str, place))


def _named_experts(tree: object, place: Place) -> Iterator[tuple[Place, Tensor]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            if isinstance(value, Tensor) and MARK in str(key):
                yield (*place, key), value
            else:
                yield from _named_experts(value, (*place, key))


def expert_tensors(state: State) -> dict[Place, Tensor]:
    """Return all tensors that are stacked over experts in dimension 0, by place.

    Raises:
        ValueError: the optimizer's state does not fit the model, or cannot be split by experts.
    """
    found: dict[Place, Tensor] = {}
    for key, tree in state.items():
        if key != OPTIMIZER:
            found.update(_named_experts(tree, (key,)))
    for index, (name, parameter) in optimizer_parameters(state).items():
        if MARK not in name:
            continue
        for key, tensor in optimizer_tensors(state, index).items():
            if tensor.shape != parameter.shape:
                raise ValueError(
                    f"the optimizer's {key} of {name} has the shape {tuple(tensor.shape)}, which cannot be split by "
                    "experts; leave the optimizer out with --no-optimizer."
                )
            found[OPTIMIZER, "state", index, key] = tensor
    return found


def shared_tensors(state: State) -> dict[str, Tensor]:
    """Return the tensors of the model that all ranks have in common."""
    return {key: value for key, value in state["model"].items() if isinstance(value, Tensor) and MARK not in key}


def put(state: State, place: Place, tensor: Tensor) -> None:
    """Replace the tensor at a place."""
    tree: Any = state
    for key in place[:-1]:
        tree = tree[key]
    tree[place[-1]] = tensor
