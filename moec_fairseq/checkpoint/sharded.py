"""A checkpoint as a set of files that belong together, one for each rank: checked, assembled, written."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from moec_fairseq.checkpoint import state as contents
from moec_fairseq.checkpoint.names import Files, find_files, rank_paths, rank_suffix, shard_paths
from moec_fairseq.checkpoint.state import Place, State, check_checksums, expert_tensors, load_state, shared_tensors
from moec_fairseq.moe.expert_parallel import Shard
from moec_fairseq.util.files import whole_files

Layout = dict[Place, tuple[torch.Size, torch.dtype]]

_ONE_RUN = "all files of a checkpoint must come from the same moment of the same training"


def shard_of(num_experts: int, world_size: int, rank: int) -> Shard:
    """Return the experts of a rank; ranks of a model without experts are copies of each other.

    Raises:
        ValueError: this number of ranks cannot share the experts.
    """
    return Shard(max(num_experts, 1), world_size, rank)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files have been checked.

    Attributes:
        path: NAME.pt; where ranks have files of their own, there need not be a file of this name.
        ranks: the file of each rank.
        num_experts: N, over all ranks; 0 for a model without experts.
        optimizer: whether the optimizer's state is to be used.
    """

    path: Path
    ranks: list[Path]
    num_experts: int
    optimizer: bool

    def load(self, rank: int) -> State:
        """Return the content of the file of a rank."""
        return load_state(self.ranks[rank], self.optimizer)


def open_checkpoint(path: Path, optimizer: bool = True) -> Checkpoint:
    """Find the files of a checkpoint and check that they belong together.

    Args:
        path: NAME.pt, NAME or NAME-rank-R.pt.
        optimizer: whether to use the optimizer's state, if there is one.

    Raises:
        ValueError: a file is missing, truncated or corrupt, or does not fit the others.
    """
    files = find_files(path)
    first = load_state(next(iter(files.ranks.values())), optimizer)
    world_size = contents.trained_world_size(first) if files.sharded else 1
    _check_complete(files, world_size)
    num_experts = contents.num_experts(first)
    for rank, file in enumerate(tqdm(files.ranks.values(), desc="check", unit="file", leave=False, disable=None)):
        state = first if rank == 0 else load_state(file, optimizer)
        check_checksums(file)
        try:
            _check_rank(state, shard_of(num_experts, world_size, rank), files.sharded)
            if rank > 0:
                _check_same(state, first)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
    return Checkpoint(files.path, list(files.ranks.values()), num_experts, optimizer)


def _check_complete(files: Files, world_size: int) -> None:
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
    if sharded and contents.suffix(state) not in ("", rank_suffix(shard.rank)):
        raise ValueError(
            f"its training named this file with {contents.suffix(state)}, not {rank_suffix(shard.rank)}; "
            "restore its name."
        )
    for place, tensor in expert_tensors(state).items():
        if tensor.dim() == 0 or len(tensor) != len(shard.experts):
            raise ValueError(
                f"{contents.place_name(place)} has the shape {tuple(tensor.shape)}, but rank {shard.rank} of "
                f"{shard.world_size} should hold {len(shard.experts)} of {shard.num_experts} experts; "
                "give the file the name that its training gave it."
            )


def _check_same(state: State, first: State) -> None:
    """Raise ValueError unless both are files of the same checkpoint."""
    for what, read in (
        ("processes", contents.trained_world_size),
        ("experts", contents.num_experts),
        ("updates", contents.num_updates),
    ):
        if read(state) != read(first):
            raise ValueError(f"this file has {read(state)} {what}, but the first file {read(first)}; {_ONE_RUN}.")
    check_same_layout(state, first, _ONE_RUN)
    other = shared_tensors(first)
    for name, tensor in shared_tensors(state).items():
        # ranks on different hardware may differ in the last bits
        if not contents.BUFFER.fullmatch(name) and not torch.allclose(
            tensor.float(), other[name].float(), rtol=1e-3, atol=1e-4, equal_nan=True
        ):
            raise ValueError(f"the shared parameter {name} has other values than in the first file; {_ONE_RUN}.")


def check_same_layout(state: State, first: State, reason: str) -> None:
    """Raise ValueError unless both hold tensors of the same names, shapes and dtypes."""
    own, other = _layout(state), _layout(first)
    for place in {**other, **own}:
        if own.get(place) != other.get(place):
            raise ValueError(
                f"{contents.place_name(place)} has {_describe(own.get(place))}, but {_describe(other.get(place))} in "
                f"the first file; {reason}."
            )


def _layout(state: State) -> Layout:
    """Return shape and dtype, without the dimension of experts, of everything that ranks must agree on."""
    shared = {("model", name): (t.shape, t.dtype) for name, t in shared_tensors(state).items()}
    return shared | {place: (t.shape[1:], t.dtype) for place, t in expert_tensors(state).items()}


def _describe(layout: tuple[torch.Size, torch.dtype] | None) -> str:
    return "no value" if layout is None else f"shape {tuple(layout[0])} and {layout[1]}"


def assemble(source: Checkpoint, experts: range) -> State:
    """Return the checkpoint with just these experts; everything else is that of rank 0.

    One file at a time is read beside the result.

    Args:
        source: where the experts come from.
        experts: numbers of experts, 0 to N − 1; a tensor (N, …) of the whole model becomes (len(experts), …).
    """
    state = source.load(0)
    results = {place: t.new_empty(len(experts), *t.shape[1:]) for place, t in expert_tensors(state).items()}
    shards = [shard_of(source.num_experts, len(source.ranks), rank) for rank in range(len(source.ranks))]
    # the first ranks hold every expert once, those after them hold copies
    overlaps = {
        s: range(max(s.experts.start, experts.start), min(s.experts.stop, experts.stop))
        for s in shards[: shards[0].num_ranks]
    }
    needed = {shard: overlap for shard, overlap in overlaps.items() if overlap}
    with tqdm(desc="join", total=len(needed) * len(results), unit="tensor", leave=False, disable=None) as bar:
        for shard, overlap in needed.items():
            tensors = expert_tensors(state if shard.rank == 0 else source.load(shard.rank))
            for place, result in results.items():
                own = tensors[place][overlap.start - shard.experts.start : overlap.stop - shard.experts.start]
                result[overlap.start - experts.start : overlap.stop - experts.start] = own
                bar.update()
    for place, result in results.items():
        contents.put(state, place, result)
    return state


def output_paths(path: Path, world_size: int) -> list[Path]:
    """Return the files of the new checkpoint ``path`` (NAME.pt), by rank.

    Raises:
        ValueError: there is a folder of this name, or older files would be mistaken for further ranks of it.
    """
    paths = rank_paths(path, world_size)
    for file in paths:
        if file.is_dir():
            raise ValueError(f"--out {file} is a folder; give the name of a file in it.")
    leftover = [str(file) for file in shard_paths(path).values() if file not in paths] if world_size > 1 else []
    if leftover:
        raise ValueError(
            f"{', '.join(leftover)} would be mixed up with the {world_size} new files; move them away or "
            "give another --out."
        )
    return paths


def write(files: list[Path], states: Iterable[State]) -> None:
    """Write the states of the ranks; no file has its name before all are on the disk.

    Raises:
        OSError: a file cannot be written.
    """
    with whole_files(files) as parts:
        for part, state in zip(parts, states, strict=True):
            try:
                torch.save(state, part)
            except RuntimeError as error:  # how torch says that a disk is full
                raise OSError(f"{part} cannot be written, is the disk full? ({error})") from error
