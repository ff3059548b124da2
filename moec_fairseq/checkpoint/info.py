"""What a checkpoint holds."""

import re
from pathlib import Path

from moec_fairseq.checkpoint import settings
from moec_fairseq.checkpoint.files import Files, find_files, rank_paths
from moec_fairseq.checkpoint.loading import OPTIMIZER, State, load_state
from moec_fairseq.checkpoint.optimizer import parameters
from moec_fairseq.checkpoint.places import MARK
from moec_fairseq.checkpoint.shards import open_checkpoint, shard_of

_LAYER = re.compile(r".*?\.layers\.\d+")


def info(checkpoint: Path) -> None:
    """Print what a checkpoint holds, then check its files.

    Args:
        checkpoint: NAME.pt, NAME or NAME-rank-R.pt.

    Raises:
        ValueError: a file is missing, torn, or does not fit the others.
    """
    files = find_files(checkpoint)
    state = load_state(next(iter(files.ranks.values())))
    rows = describe(files, state)
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:{width}}  {value}")
    open_checkpoint(checkpoint, optimizer=False)


def describe(files: Files, state: State) -> dict[str, str]:
    """Return what there is to say of a checkpoint.

    Args:
        files: all of its files that exist.
        state: the content of one of them.
    """
    num_experts = settings.num_experts(state)
    ranks = settings.trained_world_size(state) if files.sharded else 1
    shard = shard_of(num_experts, ranks, 0)
    model = parameters(state["model"])
    shared = sum(tensor.numel() for name, tensor in model.items() if MARK not in name)
    experts = sum(tensor[0].numel() for name, tensor in model.items() if MARK in name) * num_experts
    layers = dict.fromkeys(_layer(name) for name in model if MARK in name)
    missing = [str(rank) for rank in range(ranks) if rank not in files.ranks]
    size = sum(file.stat().st_size for file in files.ranks.values())
    return {
        "checkpoint": str(files.path),
        "ranks": str(ranks),
        "missing ranks": ", ".join(missing) or "none",
        "experts": str(num_experts),
        "experts per rank": str(len(shard.experts) if num_experts else 0),
        "copies of each expert": str(shard.num_copies if num_experts else 0),
        "layers with experts": ", ".join(layers) or "none",
        "shared parameters": f"{shared:,}",
        "expert parameters": f"{experts:,}",
        "updates": _known(settings.num_updates(state)),
        "epoch": _known(settings.epoch(state)),
        "size": f"{size / 1e6:,.1f} MB in {len(files.ranks)} of {len(rank_paths(files.path, ranks))} files",
        "optimizer state": "yes" if state.get(OPTIMIZER) else "no",
    }


def _known(number: int | None) -> str:
    return "unknown" if number is None else str(number)


def _layer(name: str) -> str:
    """Return encoder.layers.1 for a parameter in it."""
    match = _LAYER.match(name)
    return match[0] if match else name.partition(MARK)[0]
