"""The last checkpoints of a training."""

import re
from pathlib import Path

_KINDS = {
    "epoch": re.compile(r"checkpoint(\d+)(-rank-\d+)?\.pt"),
    "update": re.compile(r"checkpoint_\d+_(\d+)(-rank-\d+)?\.pt"),
}
KINDS = tuple(_KINDS)


def last_checkpoints(folder: Path, last: int, kind: str | None = None, or_fewer: bool = False) -> list[Path]:
    """Return the last numbered checkpoints of a folder, oldest first, without the ranks in their names.

    Args:
        folder: the ``--save-dir`` of a training.
        last: how many.
        kind: ``epoch`` (checkpoint3.pt) or ``update`` (checkpoint_3_80.pt); None where there is only one kind.
        or_fewer: be content with one or more.

    Raises:
        ValueError: there are fewer, or both kinds and none is chosen.
    """
    if last < 1:
        raise ValueError(f"--last is {last}; give 1 or more.")
    names = [path.name for path in folder.iterdir()]
    found = {k: _numbered(names, pattern) for k, pattern in _KINDS.items() if kind in (None, k)}
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
    return [folder / numbered[number] for number in sorted(numbered)[-last:]]


def _numbered(names: list[str], pattern: re.Pattern[str]) -> dict[int, str]:
    """Return the names of checkpoints by number, without ranks."""
    matches = [match for name in names if (match := pattern.fullmatch(name))]
    return {int(match[1]): match.string.removesuffix(".pt").removesuffix(match[2] or "") + ".pt" for match in matches}
