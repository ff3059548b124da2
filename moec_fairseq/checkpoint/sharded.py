"""A checkpoint as a set of files that belong together, one for each rank: checked, assembled, written."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from moec_fairseq.checkpoint import state as contents
from moec_fairseq.checkpoint.names import Files, find_files, rank_paths, rank_suffix, shard_paths
from moec_fairseq.checkpoint.state import (
    Place,
    State,
    check_checksums,
    expert_tensors,
    load_state,
    readable,
    shared_tensors,
)
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
class Summary:
    """What one file says of the checkpoint that it belongs to.

    Attributes:
        file: its path.
        suffix: what its training added to its name.
        world_size: W, the number of processes of its training.
        num_experts: N, over all ranks.
        num_updates: at which it was written; None if it does not say.
        run: what its training called itself; None if it does not say.
        settings: groups of those that all ranks have in common.
        layout: shape and dtype of every tensor that ranks must agree on, and, of those of experts, the shape here.
        shared: values that all ranks have in common, by the name of the tensor.
    """

    file: Path
    suffix: str
    world_size: int
    num_experts: int
    num_updates: int | None
    run: str | None
    settings: dict[str, dict[str, Any]]
    layout: Layout
    shared: dict[str, Tensor]


def summarise(file: Path, optimizer: bool, sample: int | None = None) -> Summary:
    """Check that a file is whole, and return what is to be compared with the files of other ranks.

    Args:
        file: of a rank.
        optimizer: whether the optimizer's state is to be used.
        sample: of each shared tensor, no more than about this many values, evenly spread; None: all.

    Raises:
        ValueError: the file is truncated or corrupt, or no checkpoint.
    """
    check_checksums(file)
    state = load_state(file, optimizer)
    with readable(file), naming(file):
        shared = {name: t for name, t in shared_tensors(state).items() if not contents.BUFFER.fullmatch(name)}
        return Summary(
            file,
            contents.suffix(state),
            contents.trained_world_size(state),
            contents.num_experts(state),
            contents.num_updates(state),
            contents.run(state),
            contents.common_settings(state),
            _layout(state),
            {name: _spread(t, sample) if sample else t for name, t in shared.items()},
        )


def _spread(tensor: Tensor, sample: int) -> Tensor:
    return tensor.flatten()[:: max(1, tensor.numel() // sample)].clone()


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """Begin the message of a ValueError with the name of a file."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def check_together(summaries: Iterable[Summary], sharded: bool) -> None:
    """Check that files are those of one checkpoint: its ranks, of one moment of one training.

    Whoever uses the files of a checkpoint asks this: the tools, and trainings that resume or begin with it.

    Args:
        summaries: of all files, by rank.
        sharded: whether ranks have files of their own.

    Raises:
        ValueError: a file does not fit its name, or the first file; says which.
    """
    first: Summary | None = None
    for rank, own in enumerate(summaries):
        first = first or own
        with naming(own.file):
            _check_rank(own, shard_of(first.num_experts, first.world_size if sharded else 1, rank), sharded)
            _check_same(own, first)


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
    found = find_files(path)
    files = list(found.ranks.values())
    first = summarise(files[0], optimizer)
    _check_complete(found, first.world_size if found.sharded else 1)
    others = tqdm(files[1:], desc="check", unit="file", leave=False, disable=None)
    check_together(chain([first], (summarise(file, optimizer) for file in others)), found.sharded)
    return Checkpoint(found.path, files, first.num_experts, optimizer)


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


def _check_rank(own: Summary, shard: Shard, sharded: bool) -> None:
    """Raise ValueError unless the file is that of its rank, and holds as many experts as it should."""
    if sharded and own.suffix and not own.suffix.endswith(rank_suffix(shard.rank)):
        raise ValueError(
            f"its training named this file with {own.suffix}, not {rank_suffix(shard.rank)}; restore its name."
        )
    for place, (shape, _) in own.layout.items():
        if contents.of_experts(place) and shape[:1] != (len(shard.experts),):
            raise ValueError(
                f"{contents.place_name(place)} has the shape {tuple(shape)}, but rank {shard.rank} of "
                f"{shard.world_size} should hold {len(shard.experts)} of {shard.num_experts} experts; "
                "give the file the name that its training gave it."
            )


def _check_same(own: Summary, first: Summary) -> None:
    """Raise ValueError unless both are of files of the same checkpoint."""
    for here, there, what in (
        (own.world_size, first.world_size, "processes"),
        (own.num_experts, first.num_experts, "experts"),
        (own.num_updates, first.num_updates, "updates"),
    ):
        if here != there:
            raise ValueError(f"this file has {here} {what}, but the first file {there}; {_ONE_RUN}.")
    _check_layouts(own.layout, first.layout, _ONE_RUN)
    if None not in (own.run, first.run) and own.run != first.run:
        raise ValueError(f"this file is of the training {own.run}, but the first file of {first.run}; {_ONE_RUN}.")
    for name, here, there in contents.differing(own.settings, first.settings, contents.OF_THE_TRAINING):
        raise ValueError(f"this file was trained with {name}={here}, but the first file with {there}; {_ONE_RUN}.")
    for name, values in own.shared.items():
        # ranks on different hardware may differ in the last bits
        if not torch.allclose(values.float(), first.shared[name].float(), rtol=1e-3, atol=1e-4, equal_nan=True):
            raise ValueError(f"the shared parameter {name} has other values than in the first file; {_ONE_RUN}.")


def check_same_layout(state: State, first: State, reason: str) -> None:
    """Raise ValueError unless both hold tensors of the same names, shapes and dtypes."""
    _check_layouts(_layout(state), _layout(first), reason)


def _check_layouts(own: Layout, first: Layout, reason: str) -> None:
    for place in {**first, **own}:
        here, there = _described(own, place), _described(first, place)
        if here != there:
            raise ValueError(f"{contents.place_name(place)} has {here}, but {there} in the first file; {reason}.")


def _layout(state: State) -> Layout:
    """Return shape and dtype of everything that ranks have in common, but for values of experts."""
    tensors = {("model", name): tensor for name, tensor in shared_tensors(state).items()} | expert_tensors(state)
    return {place: (tensor.shape, tensor.dtype) for place, tensor in tensors.items()}


def _described(layout: Layout, place: Place) -> str:
    """Return what is at a place, without the dimension of experts."""
    if place not in layout:
        return "no value"
    shape, dtype = layout[place]
    return f"shape {tuple(shape[1:] if contents.of_experts(place) else shape)} and {dtype}"


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
