"""Checkpoints that get their names when they are whole; those of several ranks together, all of one update.

Every rank writes NAME.pt.tmp; when all have, all rename. Who is killed between the renames of two ranks finds the rest
complete under its temporary name, and gives it the right one before it goes on.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from fairseq import checkpoint_utils
from fairseq.file_io import PathManager

from moec_fairseq.checkpoint import settings
from moec_fairseq.checkpoint.loading import load_if_whole

TEMPORARY = ".tmp"  # as fairseq adds it


class _CopyWhole(PathManager):
    """What fairseq uses to write checkpoints; a copy gets its name when it is whole."""

    @classmethod
    def copy(cls, src_path: str, dst_path: str, overwrite: bool = False) -> bool:
        # fairseq would write over the old file, and leave a torn one if it is killed
        PathManager.copy(src_path, dst_path + TEMPORARY, overwrite=True)
        cls.rename(dst_path + TEMPORARY, dst_path)
        return True


class _RenameTogether(_CopyWhole):
    """Also waits for all ranks before a file gets its name."""

    @staticmethod
    def rename(src: str, dst: str) -> None:
        dist.barrier()
        PathManager.rename(src, dst)


@contextmanager
def whole_files(on_every_rank: bool) -> Iterator[None]:
    """Let fairseq replace a checkpoint, in this context, by one that is whole.

    Args:
        on_every_rank: all ranks write files of their own, which are to appear together.
    """
    checkpoint_utils.PathManager = _RenameTogether if on_every_rank else _CopyWhole
    try:
        yield
    finally:
        checkpoint_utils.PathManager = PathManager


def finish_renaming(folder: Path, suffix: str) -> None:
    """Bring the checkpoints of a folder to one update on all ranks; all must call this.

    Args:
        folder: where this rank saves.
        suffix: what is added to the names of this rank's files.
    """
    own = {path.name.removesuffix(f"{suffix}.pt{TEMPORARY}") for path in folder.glob(f"*{suffix}.pt{TEMPORARY}")}
    for name in sorted(set().union(*of_all_ranks(own))):
        path = folder / f"{name}{suffix}.pt"
        here = num_updates(path)
        updates = of_all_ranks(here)
        part = path.with_name(path.name + TEMPORARY)
        newest = max((u for u in updates if u is not None), default=None)
        if here != newest and num_updates(part) == newest:
            part.replace(path)
        dist.barrier()
        part.unlink(missing_ok=True)


def check_one_update(path: Path) -> None:
    """Check that all ranks are about to load the same moment of a training; all must call this.

    Args:
        path: the file of this rank; all or none may be missing.

    Raises:
        ValueError: they are not; says which rank has what.
    """
    updates = of_all_ranks(num_updates(path))
    if len(set(updates)) > 1:
        files = of_all_ranks(str(path))
        have = ", ".join(
            f"{file} {'is missing or cannot be read' if update is None else f'has seen {update} updates'}"
            for file, update in zip(files, updates, strict=True)
        )
        raise ValueError(
            f"the files to go on from are not of one checkpoint: {have}; give --restore-file with the name of another "
            "checkpoint, remove these to start anew, or, if the number of processes has changed, make files for it "
            "with moec-checkpoint reshard."
        )


def num_updates(path: Path) -> int | None:
    """Return the updates a checkpoint has seen; None for a file that is missing or cannot be read."""
    state = load_if_whole(path)
    return None if state is None else settings.num_updates(state)


def of_all_ranks(value: Any) -> list[Any]:
    """Return the values of all ranks, by rank; all must call this."""
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
