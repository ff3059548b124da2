"""The commands ``moec checkpoint merge | reshard | average | info``.

Training on several processes writes a checkpoint as NAME-rank-0.pt, NAME-rank-1.pt, …, each with its own experts. A
checkpoint is given as NAME.pt, NAME or one of these files.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from moec_fairseq.checkpoint import state as contents
from moec_fairseq.checkpoint.names import Files, find_files, last_checkpoints, listed, rank_paths, whole_path
from moec_fairseq.checkpoint.sharded import (
    Checkpoint,
    assemble,
    check_same_layout,
    naming,
    open_checkpoint,
    output_paths,
    shard_of,
    write,
)
from moec_fairseq.checkpoint.state import (
    MARK,
    State,
    first_names,
    leave_out_averages,
    load_state,
    parameters,
    readable,
    set_rank,
)

_ONE_MODEL = "only checkpoints of the same model can be averaged"
_LAYER = re.compile(r".*?\.layers\.\d+")


def merge(checkpoint: Path, out: Path, optimizer: bool = True) -> None:
    """Write the checkpoint of any number of ranks as one file, for generation and training on one process.

    Args:
        checkpoint: NAME.pt, NAME or NAME-rank-R.pt.
        out: the new NAME.pt, or a folder, in which it keeps its name.
        optimizer: whether to keep the optimizer's state.

    Raises:
        ValueError: the files of the checkpoint do not belong together.
    """
    reshard(checkpoint, 1, str(out), optimizer)


def reshard(checkpoint: Path, ranks: int, out: str, optimizer: bool = True) -> None:
    """Write the checkpoint of any number of ranks as one of another number.

    Args:
        checkpoint: NAME.pt, NAME or NAME-rank-R.pt.
        ranks: number of processes that will load it; 1 writes NAME.pt.
        out: the new NAME, with or without ``.pt``, or a folder, in which it keeps its name.
        optimizer: whether to keep the optimizer's state.

    Raises:
        ValueError: the files of the checkpoint do not belong together, or that many ranks cannot share its experts.
    """
    if ranks < 1:
        raise ValueError(f"--ranks is {ranks}; give 1 or more.")
    source = open_checkpoint(checkpoint, optimizer)
    into_folder = out.endswith(os.sep) or Path(out).is_dir()
    path = Path(out) / source.path.name if into_folder else whole_path(Path(out))
    files = write_ranks(source, path, ranks, partial(assemble, source))
    print(f"{listed(source.ranks)} -> {listed(files)}")


def average(
    checkpoints: Sequence[Path],
    out: Path,
    last: int | None = None,
    folder: Path | None = None,
    kind: str | None = None,
    merge: bool = False,
) -> None:
    """Write the mean of the parameters; the optimizer's state and moving averages are left out.

    Args:
        checkpoints: NAME.pt, NAME or NAME-rank-R.pt of each; their numbers of ranks may differ.
        out: NAME.pt of the mean; it has as many ranks as the last checkpoint.
        last: instead of ``checkpoints``, that many of the last of ``folder``.
        folder: see ``last``.
        kind: ``epoch`` or ``update``, where ``folder`` holds numbered checkpoints of both kinds.
        merge: write one file, whatever the number of ranks.

    Raises:
        ValueError: files are missing or do not belong together, or the checkpoints are of different models.
    """
    if not checkpoints and last is not None and folder is not None:
        checkpoints = last_checkpoints(folder, last, kind)
    elif not checkpoints or (last, folder, kind) != (None, None, None):
        raise ValueError("it is not clear what to average; give either checkpoints, or both --last N and --dir DIR.")
    sources = [open_checkpoint(path, optimizer=False) for path in checkpoints]
    _check_one_model(sources)
    ranks = 1 if merge else len(sources[-1].ranks)
    files = write_ranks(sources[-1], whole_path(out), ranks, partial(_mean, sources))
    print(f"mean of {', '.join(str(source.path) for source in sources)} -> {listed(files)}")


def write_ranks(source: Checkpoint, path: Path, ranks: int, content: Callable[[range], State]) -> list[Path]:
    """Write what ``content`` makes for the experts of each rank; return the files."""
    shards = [shard_of(source.num_experts, ranks, rank) for rank in range(ranks)]

    def states() -> Iterator[State]:
        for shard in tqdm(shards, desc="write", unit="file", disable=None):
            state = content(shard.experts)
            set_rank(state, shard, len(source.ranks))
            yield state

    files = output_paths(path, ranks)
    write(files, states())
    return files


def _check_one_model(sources: Sequence[Checkpoint]) -> None:
    """Raise ValueError unless all have the same tensors, tied in the same way."""
    first = sources[0].load(0)
    for source in sources[1:]:
        state = source.load(0)
        if source.num_experts != sources[0].num_experts:
            raise ValueError(
                f"{source.path} has {source.num_experts} experts, but {sources[0].path} {sources[0].num_experts}; "
                f"{_ONE_MODEL}."
            )
        with naming(source.path):
            for content in (state, first):
                content.pop("extra_state", None)  # moving averages
            check_same_layout(state, first, _ONE_MODEL)
            if first_names(state["model"]) != first_names(first["model"]):
                raise ValueError(f"other parameters are tied than in the first file; {_ONE_MODEL}.")


def _mean(sources: Sequence[Checkpoint], experts: range) -> State:
    """Return the last checkpoint with the mean of the parameters of all: see ``assemble``."""
    state = assemble(sources[-1], experts)
    state["model"].update(_mean_of((assemble(source, experts)["model"] for source in sources), len(sources)))
    leave_out_averages(state)
    return state


def _mean_of(models: Iterator[dict[str, Tensor]], count: int) -> dict[str, Tensor]:
    """Return the mean of each tensor, added up in float32 or better; integers are those of the last model."""
    sums: dict[str, Tensor] = {}
    for model in models:
        names = first_names(model)
        for name in set(names.values()):
            value = model[name]
            if not value.is_floating_point():
                sums[name] = value
            elif name in sums:
                sums[name] += value
            else:
                sums[name] = value.to(torch.promote_types(value.dtype, torch.float32), copy=True)
    means = {name: (s / count).to(model[name].dtype) if s.is_floating_point() else s for name, s in sums.items()}
    return {name: means[first] for name, first in names.items()}


def info(checkpoint: Path) -> None:
    """Print what a checkpoint holds, then check its files.

    Args:
        checkpoint: NAME.pt, NAME or NAME-rank-R.pt.

    Raises:
        ValueError: a file is missing, truncated or corrupt, or does not fit the others.
    """
    files = find_files(checkpoint)
    first = next(iter(files.ranks.values()))
    with readable(first):
        rows = _describe(files, load_state(first))
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:{width}}  {value}")
    open_checkpoint(checkpoint, optimizer=False)


def _describe(files: Files, state: State) -> dict[str, str]:
    """Return the rows of ``info``, from one of the files."""
    num_experts = contents.num_experts(state)
    ranks = contents.trained_world_size(state) if files.sharded else 1
    shard = shard_of(num_experts, ranks, 0)
    model = parameters(state["model"])
    shared = sum(tensor.numel() for name, tensor in model.items() if MARK not in name)
    experts = sum(tensor[0].numel() for name, tensor in model.items() if MARK in name) * num_experts
    layers = dict.fromkeys(_layer(name) for name in model if MARK in name)
    missing = [str(rank) for rank in range(ranks) if rank not in files.ranks]
    size = sum(file.stat().st_size for file in files.ranks.values())
    counts = (contents.num_updates(state), contents.epoch(state))
    updates, epoch = ("unknown" if count is None else str(count) for count in counts)
    return {
        "checkpoint": str(files.path),
        "ranks": str(ranks),
        "missing ranks": ", ".join(missing) or "none",
        "experts": str(num_experts),
        "experts per rank": str(len(shard.experts) if num_experts else 0),
        "copies of each expert": str(shard.num_replicas if num_experts else 0),
        "layers with experts": ", ".join(layers) or "none",
        "shared parameters": f"{shared:,}",
        "expert parameters": f"{experts:,}",
        "updates": updates,
        "epoch": epoch,
        "size": f"{size / 1e6:,.1f} MB in {len(files.ranks)} of {len(rank_paths(files.path, ranks))} files",
        "optimizer state": "yes" if state.get(contents.OPTIMIZER) else "no",
    }


def _layer(name: str) -> str:
    """Return encoder.layers.1 for a parameter in it."""
    match = _LAYER.match(name)
    return match[0] if match else name.partition(MARK)[0]
