"""What a training that goes on has changed since its checkpoint was written."""

from collections.abc import Mapping
from typing import Any

# groups and which of their settings to compare, None: all; schedule and length are often changed on purpose
GROUPS = {"common": ("seed",), "model": None, "criterion": None}
# these, and the model's copy of the seed, make no other model
OF_THE_MACHINES = {
    f"model.{name}" for name in ("base_layers", "moec_dispatch", "moec_evaluation", "moec_token_shuffle", "seed", "tpu")
}


def changes(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the settings that differ, each as ``model.dropout=0.3 (now 0.1)``.

    Args:
        saved: fairseq's configuration in the checkpoint, groups of settings.
        now: that of the training that goes on.
    """
    pairs = []
    for group, names in GROUPS.items():
        before, after = saved.get(group), now.get(group)
        if isinstance(before, Mapping) and isinstance(after, Mapping):  # None where a training has no such part
            compared = [name for name in names or before if name in before and name in after]
            pairs += [(f"{group}.{name}", before[name], after[name]) for name in compared]
    return [
        f"{name}={before} (now {after})"
        for name, before, after in pairs
        if before != after and name not in OF_THE_MACHINES
    ]
