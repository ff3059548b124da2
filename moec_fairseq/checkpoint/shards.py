"""A checkpoint as a set of files that fit together."""

from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from moec_fairseq.checkpoint import settings
from moec_fairseq.checkpoint.files import Files, find_files, rank_paths, rank_suffix
from moec_fairseq.checkpoint.loading import State, check_undamaged, load_state
from moec_fairseq.checkpoint.optimizer import BUFFER
from moec_fairseq.checkpoint.places import Place, expert_tensors, place_name, shared_tensors
from moec_fairseq.moe.shards import Shard

Layout = dict[Place, tuple[torch.Size, torch.dtype]]

_ONE_RUN = "all files of a checkpoint must come from the same moment of the same training"


def shard_of(num_experts: int, world_size: int, rank: int) -> Shard:
    """Return the experts of a rank; ranks of a model without experts are copies of each other.

    Raises:
        ValueError: the experts cannot be shared by this number of ranks.
    """
    return Shard(max(num_experts, 1), world_size, rank)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files have been checked.

    Attributes:
        path: NAME.pt; where ranks have files of their own, there need not be a file of this name.
        ranks: the file of each rank.
        num_experts: N, of all ranks together; 0 for a model without experts.
        updates: how many updates the model has seen, if known.
        optimizer: whether the optimizer's state is to be used.
    """

    path: Path
    ranks: list[Path]
    num_experts: int
    updates: int | None
    optimizer: bool

    def shard(self, rank: int) -> Shard:
        """Return which experts the file of a rank holds."""
        return shard_of(self.num_experts, len(self.ranks), rank)

    def load(self, rank: int) -> State:
        """Return what the file of a rank holds."""
        return load_state(self.ranks[rank], self.optimizer)


def open_checkpoint(path: Path, optimizer: bool = True) -> Checkpoint:
    """Find the files of a checkpoint and check that they belong together.

    Args:
        path: NAME.pt, NAME or NAME-rank-R.pt.
        optimizer: whether to use the optimizer's state, where there is one.

    Raises:
        ValueError: a file is missing, torn, or does not fit the others.
    """
    files = find_files(path)
    first_file = next(iter(files.ranks.values()))
    first = load_state(first_file, optimizer)
    world_size = settings.trained_world_size(first) if files.sharded else 1
    check_complete(files, world_size)
    num_experts = settings.num_experts(first)
    for rank, file in enumerate(tqdm(files.ranks.values(), desc="check", unit="file", leave=False, disable=None)):
        state = first if rank == 0 else load_state(file, optimizer)
        check_undamaged(file)
        try:
            _check_rank(state, shard_of(num_experts, world_size, rank), files.sharded)
            if rank > 0:
                _check_same(state, first)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
    return Checkpoint(files.path, list(files.ranks.values()), num_experts, settings.num_updates(first), optimizer)


def check_complete(files: Files, world_size: int) -> None:
    """Raise ValueError unless there is a file for every rank, and no other."""
    missing = [str(path) for rank, path in enumerate(rank_paths(files.path, world_size)) if rank not in files.ranks]
    if missing:
        raise ValueError(
            f"{files.path} was written by {world_size} processes, but {len(missing)} of their files "
            f"({', '.join(missing)}) {'is' if len(missing) == 1 else 'are'} missing; copy what is missing from where "
            "it was trained."
        )
    surplus = [str(path) for rank, path in files.ranks.items() if rank >= world_size]
    if surplus:
        raise ValueError(
            f"{files.path} was written by {world_size} processes, but there are also {', '.join(surplus)}; "
            "they belong to another training: move them away."
        )


def _check_rank(state: State, shard: Shard, sharded: bool) -> None:
    """Raise ValueError unless the file is that of its rank, and holds as many experts as it should."""
    if sharded and settings.suffix(state) not in ("", rank_suffix(shard.rank)):
        raise ValueError(
            f"training named this file with {settings.suffix(state)}, not {rank_suffix(shard.rank)}; "
            "give it its name back."
        )
    for place, tensor in expert_tensors(state).items():
        if tensor.dim() == 0 or len(tensor) != len(shard.experts):
            raise ValueError(
                f"{place_name(place)} has the shape {tuple(tensor.shape)}, but rank {shard.rank} of "
                f"{shard.world_size} should hold {len(shard.experts)} of {shard.num_experts} experts; "
                "give the file the name that training gave it."
            )


def _layout(state: State) -> Layout:
    """Return shape and dtype, without the dimension of experts, of everything that ranks must agree on."""
    shared = {("model", name): (t.shape, t.dtype) for name, t in shared_tensors(state).items()}
    return shared | {place: (t.shape[1:], t.dtype) for place, t in expert_tensors(state).items()}


def check_same_layout(state: State, first: State, reason: str) -> None:
    """Raise ValueError unless both hold tensors of the same names, shapes and dtypes."""
    own, other = _layout(state), _layout(first)
    for place in {**other, **own}:
        if own.get(place) != other.get(place):
            raise ValueError(
                f"{place_name(place)} has {_describe(own.get(place))}, but {_describe(other.get(place))} in the "
                f"first file; {reason}."
            )


def _describe(layout: tuple[torch.Size, torch.dtype] | None) -> str:
    return "no value" if layout is None else f"shape {tuple(layout[0])} and {layout[1]}"


def _check_same(state: State, first: State) -> None:
    """Raise ValueError unless both are files of the same checkpoint."""
    for what, read in (
        ("processes", settings.trained_world_size),
        ("experts", settings.num_experts),
        ("updates", settings.num_updates),
    ):
        if read(state) != read(first):
            raise ValueError(f"this file is of {read(state)} {what}, but the first file of {read(first)}; {_ONE_RUN}.")
    check_same_layout(state, first, _ONE_RUN)
    other = shared_tensors(first)
    for name, tensor in shared_tensors(state).items():
        # ranks on different hardware may differ in the last bits
        if not BUFFER.fullmatch(name) and not torch.allclose(
            tensor.float(), other[name].float(), rtol=1e-3, atol=1e-4, equal_nan=True
        ):
            raise ValueError(f"the shared parameter {name} has other values than in the first file; {_ONE_RUN}.")
