"""Which layers of a stack are kept, and which get an MoE block."""

import re
from collections.abc import Sequence
from typing import Any


def moe_layer_indices(spec: str | None, freq: int, num_layers: int, side: str) -> list[int]:
    """Return the indices, from 0, of the layers with an MoE block.

    Args:
        spec: comma-separated layer numbers from 1, ``none``, or None for the default, the middle layer (3 of 6).
        freq: if positive, every freq-th layer, instead of ``spec``.
        num_layers: layers of the stack before pruning.
        side: ``encoder`` or ``decoder``, for messages.

    Raises:
        ValueError: layers that do not exist or repeat, something that is not a number, or both options at once.
    """
    option = f"--{side}-moe-layers"
    if freq < 0:
        raise ValueError(f"--moe-freq is {freq}; give 1 or more, or 0 to list the layers with {option}.")
    if freq > 0 and spec is not None:
        raise ValueError(
            f"Both --moe-freq {freq} and {option} {spec} are given; give one of the two (in a YAML file, null and 0 "
            "mean that an option is not given)."
        )
    if freq > num_layers:
        raise ValueError(
            f"--moe-freq is {freq}, but the {side} has {num_layers} layers, so that none would get an MoE block; "
            f"give 1 to {num_layers}."
        )
    if freq > 0:
        return list(range(freq - 1, num_layers, freq))
    if spec is None:
        return [(num_layers - 1) // 2] if num_layers else []
    if spec.strip().lower() == "none":
        return []
    return _listed(spec, option, first=1, last=num_layers, side=side, otherwise="none")


def kept_layers(spec: Any, num_layers: int, side: str) -> list[int]:
    """Return the indices, from 0, of the layers that pruning keeps: all if ``spec`` is None or empty.

    Args:
        spec: comma-separated indices (or a list of them) from 0, fairseq's ``--encoder-layers-to-keep``.
        num_layers: layers of the stack before pruning.
        side: ``encoder`` or ``decoder``, for messages.

    Raises:
        ValueError: layers that do not exist or repeat, or something that is not a number.
    """
    listed = "" if spec is None else str(spec).strip("[]() ")
    if not listed:
        return list(range(num_layers))
    return _listed(listed, f"--{side}-layers-to-keep", first=0, last=num_layers - 1, side=side, otherwise="nothing")


def _listed(spec: str, option: str, first: int, last: int, side: str, otherwise: str) -> list[int]:
    """Return the indices, from 0, of the layers in ``spec``, which are numbered from ``first``."""
    allowed = f"give a comma-separated list of different numbers from {first} to {last}, or {otherwise}."
    try:
        numbers = [int(part) for part in spec.split(",")]
    except ValueError:
        raise ValueError(f"{option} is {spec!r}, which is not a list of layer numbers; {allowed}") from None
    missing = [str(n) for n in numbers if not first <= n <= last]
    if missing:
        raise ValueError(f"{option} names layer {', '.join(missing)}, which the {side} does not have; {allowed}")
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"{option} is {spec!r}, which names a layer twice; {allowed}")
    return sorted(n - first for n in numbers)


def keep_layers(state: dict[str, Any], stack: str, kept: Sequence[int]) -> dict[str, Any]:
    """Return the parameters of a model without its pruned layers; those of a model pruned earlier stay as they are.

    Args:
        state: parameters by name; names of those in layer i of the stack begin with ``STACK.layers.i.``.
        stack: name of the stack's module in the model, such as ``encoder``.
        kept: indices of the layers to keep, in order; they become layers 0, 1, …
    """
    layer_of = {name: re.match(rf"{re.escape(stack)}\.layers\.(\d+)\.", name) for name in state}
    if {int(match[1]) for match in layer_of.values() if match} == set(range(len(kept))):
        return state
    remaining = {}
    for name, match in layer_of.items():
        if match is None:
            remaining[name] = state[name]
        elif int(match[1]) in kept:
            position = kept.index(int(match[1]))
            remaining[f"{stack}.layers.{position}.{name[match.end() :]}"] = state[name]
    return remaining
