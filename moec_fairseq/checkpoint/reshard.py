"""The same checkpoint in another number of files."""

import os
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from moec_fairseq.checkpoint.assemble import assemble
from moec_fairseq.checkpoint.files import listed, whole_path
from moec_fairseq.checkpoint.loading import State
from moec_fairseq.checkpoint.settings import set_rank
from moec_fairseq.checkpoint.shards import Checkpoint, open_checkpoint, shard_of
from moec_fairseq.checkpoint.writing import output_paths, write_together


def reshard(checkpoint: Path, ranks: int, out: str, optimizer: bool = True) -> None:
    """Write a checkpoint of any number of ranks as one of another number.

    Args:
        checkpoint: NAME.pt, NAME or NAME-rank-R.pt.
        ranks: number of processes that shall load it; 1 writes NAME.pt.
        out: the new NAME, with or without ``.pt``, or a folder, in which it keeps its name.
        optimizer: whether to take the optimizer's state along.

    Raises:
        ValueError: the files of the checkpoint do not fit together, or this number of ranks cannot share its experts.
    """
    if ranks < 1:
        raise ValueError(f"--ranks is {ranks}; give 1 or more.")
    source = open_checkpoint(checkpoint, optimizer)
    shard_of(source.num_experts, ranks, 0)
    into_folder = out.endswith(os.sep) or Path(out).is_dir()
    path = Path(out) / source.path.name if into_folder else whole_path(Path(out))
    paths = output_paths(path, ranks)
    write_together(_shards(source, paths))
    print(f"{listed(source.ranks)} -> {listed(paths)}")


def _shards(source: Checkpoint, paths: list[Path]) -> Iterator[tuple[Path, State]]:
    for rank, path in enumerate(tqdm(paths, desc="write", unit="file", disable=None)):
        shard = shard_of(source.num_experts, len(paths), rank)
        state = assemble(source, shard.experts)
        set_rank(state, shard, len(source.ranks))
        yield path, state
