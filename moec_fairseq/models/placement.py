"""Which layers of a stack get an MoE block."""


def moe_layer_indices(spec: str | None, freq: int, num_layers: int, side: str) -> list[int]:
    """Return the indices, from 0, of the layers with an MoE block.

    Args:
        spec: comma list of layer numbers from 1, ``none``, or None for the default, the middle layer (3 of 6).
        freq: if positive, every freq-th layer, instead of ``spec``.
        num_layers: layers of the stack.
        side: ``encoder`` or ``decoder``, for messages.

    Raises:
        ValueError: layers that do not exist or repeat, something that is no number, or both ways at once.
    """
    option = f"--{side}-moe-layers"
    if freq < 0:
        raise ValueError(f"--moe-freq is {freq}; give 1 or more, or 0 to name the layers with {option}.")
    if freq > 0 and spec is not None:
        raise ValueError(f"Both --moe-freq {freq} and {option} {spec} are given; give one of the two.")
    if freq > num_layers:
        raise ValueError(
            f"--moe-freq is {freq}, but the {side} has {num_layers} layers, so that none would get an MoE block; "
            f"give 1 to {num_layers}."
        )
    if freq > 0:
        return list(range(freq - 1, num_layers, freq))
    if spec is None:
        return [(num_layers - 1) // 2]
    if spec.strip().lower() == "none":
        return []
    allowed = f"give a comma list of different numbers from 1 to {num_layers}, or none."
    try:
        numbers = [int(part) for part in spec.split(",")]
    except ValueError:
        raise ValueError(f"{option} is {spec!r}, which is no list of layer numbers; {allowed}") from None
    missing = [str(n) for n in numbers if not 1 <= n <= num_layers]
    if missing:
        raise ValueError(f"{option} names layer {', '.join(missing)}, which the {side} does not have; {allowed}")
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"{option} is {spec!r}, which names a layer twice; {allowed}")
    return sorted(n - 1 for n in numbers)
