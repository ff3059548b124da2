"""Names of checkpoint files: NAME.pt for one process, NAME-rank-0.pt, NAME-rank-1.pt, … for several."""

import re
from dataclasses import dataclass
from pathlib import Path

_RANK = re.compile(r"(?P<name>.+)-rank-(?P<rank>0|[1-9]\d*)")
# kinds of numbered checkpoints: checkpoint3.pt, checkpoint_3_80.pt
KINDS = {
    "epoch": re.compile(r"checkpoint(\d+)(?:-rank-\d+)?\.pt"),
    "update": re.compile(r"checkpoint_\d+_(\d+)(?:-rank-\d+)?\.pt"),
}


def rank_suffix(rank: int) -> str:
    """Return what fairseq adds to the name of a checkpoint on a rank."""
    return f"-rank-{rank}"


def rank_paths(path: Path, world_size: int) -> list[Path]:
    """Return the files of the checkpoint ``path`` (NAME.pt) of that many processes, by rank."""
    if world_size == 1:
        return [path]
    return [path.with_name(f"{path.stem}{rank_suffix(rank)}.pt") for rank in range(world_size)]


def listed(paths: list[Path]) -> str:
    """Return the files of a checkpoint as one would name them in a sentence."""
    return str(paths[0]) if len(paths) == 1 else f"{paths[0]} ... {paths[-1]}"


def _split(path: Path) -> tuple[str, int | None]:
    """Return the name without ``.pt`` and rank, and the rank, None if the name has none."""
    stem = path.name.removesuffix(".pt")
    match = _RANK.fullmatch(stem)
    return (match["name"], int(match["rank"])) if match else (stem, None)


def whole_path(path: Path) -> Path:
    """Return NAME.pt for NAME, NAME.pt or NAME-rank-R.pt."""
    return path.with_name(f"{_split(path)[0]}.pt")


def shard_paths(path: Path) -> dict[int, Path]:
    """Return the existing files NAME-rank-R.pt of the checkpoint ``path`` (NAME.pt), by rank."""
    found = path.parent.glob("*-rank-*.pt") if path.parent.is_dir() else ()
    ranks = {_split(file)[1]: file for file in found if _split(file)[0] == path.stem}
    return {rank: ranks[rank] for rank in sorted(r for r in ranks if r is not None)}


@dataclass(frozen=True)
class Files:
    """The files of one checkpoint.

    Attributes:
        path: NAME.pt.
        ranks: the files that exist, by rank; one file for all experts has rank 0.
        sharded: whether the files have ranks in their names.
    """

    path: Path
    ranks: dict[int, Path]
    sharded: bool


def find_files(path: Path) -> Files:
    """Return the files of a checkpoint.

    Args:
        path: NAME.pt, NAME or NAME-rank-R.pt. Where NAME.pt exists, only the last means the files of ranks.

    Raises:
        ValueError: there is no such file.
    """
    whole = whole_path(path)
    if _split(path)[1] is None:
        for file in (path, whole):
            if file.is_file():
                return Files(whole, {0: file}, sharded=False)
    ranks = shard_paths(whole)
    if not ranks:
        raise ValueError(
            f"there is neither {whole} nor {rank_paths(whole, 2)[0]}; give the name of an existing checkpoint."
        )
    return Files(whole, ranks, sharded=True)


def check_processes(path: Path, world_size: int) -> None:
    """Check that the checkpoint to resume from, if there is one, was written by as many processes as train now.

    A rank looks at its own disk only: others may have disks of their own. Missing files of some ranks are left to
    ``check_ranks``.

    Args:
        path: the file of this process: NAME.pt, or NAME-rank-R.pt if every rank saves a file of its own.
        world_size: number of files, one for each process; 1 if one file holds the whole model.

    Raises:
        ValueError: another number of processes has written it; says how to resume.
    """
    whole = whole_path(path)
    shards = shard_paths(whole)
    if path.is_file():
        wrong = world_size > 1 and max(shards) >= world_size
    else:
        wrong = bool(shards) if world_size == 1 else whole.is_file() and not shards
    if wrong:
        written = max(shards) + 1 if shards else 1
        raise ValueError(
            f"{whole} consists of {written} file(s), one for each process of its training, but this training expects "
            f"{world_size}; give another --save-dir (checkpoint.save_dir), empty or with files made by "
            f"moec checkpoint reshard {whole} --ranks {world_size} --out DIR/"
        )


def last_checkpoints(folder: Path, last: int, kind: str | None = None, or_fewer: bool = False) -> list[Path]:
    """Return the last numbered checkpoints of a folder, oldest first, without the ranks in their names.

    Args:
        folder: the ``--save-dir`` of a training.
        last: how many.
        kind: ``epoch`` (checkpoint3.pt) or ``update`` (checkpoint_3_80.pt); None where there is only one kind.
        or_fewer: accept fewer, but at least one.

    Raises:
        ValueError: there are fewer, or both kinds and none is chosen.
    """
    if last < 1:
        raise ValueError(f"--last is {last}; give 1 or more.")
    files = sorted(folder.iterdir())
    found = {
        k: {int(match[1]): whole_path(file) for file in files if (match := pattern.fullmatch(file.name))}
        for k, pattern in KINDS.items()
        if kind in (None, k)
    }
    kinds = [k for k, numbered in found.items() if numbered]
    if len(kinds) > 1:
        raise ValueError(f"{folder} holds checkpoints of epochs and of updates; give --by epoch or --by update.")
    numbered = found[kinds[0]] if kinds else {}
    if len(numbered) < (1 if or_fewer else last):
        raise ValueError(
            f"--last is {last}, but {folder} holds {len(numbered)} numbered checkpoints"
            f"{'' if kind is None else f' by {kind}'}; give {len(numbered) or 'another folder'}"
            f"{' or less' if numbered else ''}."
        )
    return [numbered[number] for number in sorted(numbered)[-last:]]
