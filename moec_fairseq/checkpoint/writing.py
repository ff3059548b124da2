"""Files that appear under their names together, when all are complete."""

import os
from collections.abc import Iterable
from pathlib import Path

import torch

from moec_fairseq.checkpoint.files import rank_paths, shard_paths
from moec_fairseq.checkpoint.loading import State


def output_paths(path: Path, world_size: int) -> list[Path]:
    """Return the files of the new checkpoint ``path`` (NAME.pt), by rank.

    Raises:
        ValueError: there is a folder of this name, or older files would be taken for further ranks of it.
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


def write_together(states: Iterable[tuple[Path, State]]) -> None:
    """Write each state to its path; no file has its name before all are on the disk.

    Raises:
        OSError: a file cannot be written.
    """
    parts: dict[Path, Path] = {}
    try:
        for path, state in states:
            path.parent.mkdir(parents=True, exist_ok=True)
            parts[path] = path.with_name(f".{path.name}.part")
            _write(parts[path], state)
        for path, part in parts.items():
            part.replace(path)
        for folder in {path.parent for path in parts}:
            _sync(folder)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def _write(path: Path, state: State) -> None:
    with path.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # how torch says that a disk is full
            raise OSError(f"{path} cannot be written, is the disk full? ({error})") from error
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Put the names of a folder's files on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
