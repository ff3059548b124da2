"""The few settings of a checkpoint's configuration that tell of ranks and experts."""

from argparse import Namespace
from typing import Any

from moec_fairseq.checkpoint.files import rank_suffix
from moec_fairseq.checkpoint.loading import State
from moec_fairseq.moe.shards import Shard


def group(state: State, name: str) -> dict[str, Any]:
    """Return a group of settings, such that a change of it changes ``state``."""
    values = state["cfg"].setdefault(name, {})
    return vars(values) if isinstance(values, Namespace) else values


def num_experts(state: State) -> int:
    """Return N, the experts of a layer, all ranks together; 0 for a model without experts."""
    return int(group(state, "model").get("moe_expert_count", 0))


def trained_world_size(state: State) -> int:
    """Return the number of processes that the training ran on."""
    return int(group(state, "distributed_training").get("distributed_world_size", 1))


def suffix(state: State) -> str:
    """Return what training added to the file's name."""
    return str(group(state, "checkpoint").get("checkpoint_suffix") or "")


def num_updates(state: State) -> int | None:
    """Return the updates that the model has seen; None if the file does not say so."""
    history = state.get("optimizer_history") or [{}]
    updates = history[-1].get("num_updates")
    return None if updates is None else int(updates)


def epoch(state: State) -> int | None:
    """Return the epoch in which the checkpoint was written; None if the file does not say so."""
    return _iterator(state).get("epoch")


def _iterator(state: State) -> dict[str, Any]:
    return (state.get("extra_state") or {}).get("train_iterator") or {}


def set_rank(state: State, shard: Shard, previous: int) -> None:
    """Make ``state`` that of a rank: its configuration, and how far the rank is in the epoch.

    Args:
        state: changed here.
        shard: rank and number of ranks; a single one leaves what the configuration says of the training.
        previous: number of ranks up to now.
    """
    whole = shard.world_size == 1
    group(state, "checkpoint")["checkpoint_suffix"] = "" if whole else rank_suffix(shard.rank)
    if not whole:
        group(state, "distributed_training").update(
            distributed_world_size=shard.world_size, distributed_rank=shard.rank
        )
    iterator = _iterator(state)
    if "iterations_in_epoch" in iterator:
        # batches of one rank: fewer ranks each have more of the epoch's batches
        iterator["iterations_in_epoch"] = iterator["iterations_in_epoch"] * previous // shard.world_size
