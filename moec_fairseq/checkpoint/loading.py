"""Reading one checkpoint file, safely and without its tensors in memory where torch can do so."""

import inspect
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

State = dict[str, Any]

OPTIMIZER = "last_optimizer_state"

# mmap came with torch 2.1
_OPTIONS: dict[str, Any] = {"mmap": True} if "mmap" in inspect.signature(torch.load).parameters else {}
if hasattr(torch.serialization, "add_safe_globals"):
    # older versions (before 2.5) cannot be told what a checkpoint of fairseq may hold, and load as fairseq does
    _OPTIONS["weights_only"] = True


def check_undamaged(path: Path) -> None:
    """Read a whole file and compare its checksums, which torch writes beside each tensor.

    Raises:
        ValueError: some of it has changed since it was written.
    """
    if not zipfile.is_zipfile(path):
        return  # how torch wrote before version 1.6: has none
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except zipfile.BadZipFile as error:
        damaged = str(error)
    if damaged is not None:
        raise ValueError(f"{path} is damaged ({damaged}); copy it again or take another checkpoint.")


def load_state(path: Path, optimizer: bool = True) -> State:
    """Return what a file of fairseq holds.

    Args:
        path: the file.
        optimizer: whether to keep the optimizer's state.

    Raises:
        ValueError: the file is torn, or no checkpoint of fairseq.
    """
    try:
        state = torch.load(str(path), map_location="cpu", **_OPTIONS)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise  # no such file, no permission; torch seeking beyond the end of a torn file names none
        reason = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
        raise ValueError(
            f"{path} is torn or no checkpoint ({reason}); copy it again or take another checkpoint."
        ) from error
    if (
        not isinstance(state, dict)
        or not isinstance(state.get("model"), dict)
        or not isinstance(state.get("cfg"), dict)
    ):
        raise ValueError(f"{path} has no model and configuration; give a checkpoint that fairseq-train has written.")
    if not optimizer:
        state.pop(OPTIMIZER, None)
    return state


def load_if_whole(path: Path) -> State | None:
    """Return what a file of fairseq holds, without the optimizer's state; None for one that is missing or torn."""
    try:
        return load_state(path, optimizer=False) if path.is_file() else None
    except ValueError:
        return None
