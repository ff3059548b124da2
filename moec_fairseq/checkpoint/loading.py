"""Reading one checkpoint file, safely and without its tensors in memory where torch can do so."""

import inspect
import os
import pickle
import pickletools
import re
import struct
import zipfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

State = dict[str, Any]

OPTIMIZER = "last_optimizer_state"

_HAS_MMAP = "mmap" in inspect.signature(torch.load).parameters  # came with torch 2.1
_OPTIONS: dict[str, Any] = {}
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
        ValueError: the file is torn, no checkpoint of fairseq, or holds code.
    """
    with readable(path):
        mapped = {"mmap": zipfile.is_zipfile(path)} if _HAS_MMAP else {}
        state = torch.load(str(path), map_location="cpu", **_OPTIONS, **mapped)
    if (
        not isinstance(state, dict)
        or not isinstance(state.get("model"), dict)
        or not isinstance(state.get("cfg"), dict)
    ):
        raise ValueError(f"{path} has no model and configuration; give a checkpoint that fairseq-train has written.")
    _check_names(path, state["cfg"].get("task"))
    if not optimizer:
        state.pop(OPTIMIZER, None)
    return state


def load_if_whole(path: Path) -> State | None:
    """Return what a file of fairseq holds, without the optimizer's state; None for one that is missing or unreadable.

    Whoever asks loads it afterwards, and is then told why it cannot be read.
    """
    try:
        return load_state(path, optimizer=False) if path.is_file() else None
    except ValueError:
        return None


# what torch's loader meets in bytes that are no pickle
_NO_PICKLE = (AssertionError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError, TypeError)
_UNREADABLE = (*_NO_PICKLE, UnicodeError, pickle.UnpicklingError, struct.error, zipfile.BadZipFile)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Say in one sentence why torch cannot load ``path``; its own words are half a page, and advise to run the code.

    Raises:
        ValueError: it is torn, no checkpoint, or holds code.
    """
    try:
        yield
    except _UNREADABLE as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise  # no such file, no permission; torch seeking beyond the end of a torn file names none
        if code := _code(path, str(error)):
            raise ValueError(
                f"{path} contains code ({code}) and was not loaded, as a checkpoint holds none; take another from "
                "someone you trust."
            ) from None
        reason = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
        raise ValueError(
            f"{path} is torn or no checkpoint ({reason}); copy it again or take another checkpoint."
        ) from (None if isinstance(error, pickle.UnpicklingError) else error)


# torch says what it has refused of pickles as it writes them itself; of others these are nobody's code
_REFUSED = re.compile(r"GLOBAL ([\w.]+) (?:was not|whose)")
_HARMLESS = ("_codecs", "argparse", "collections", "numpy", "torch")


def _code(path: Path, reason: str) -> str:
    """Return what of a file is code, in words, by what torch says of it; "" for one that is only torn."""
    if "TorchScript" in reason:
        return "a TorchScript program"
    refused = _REFUSED.search(reason)
    for name in _globals(path):
        if name.partition(".")[0] not in _HARMLESS or (refused and name == refused[1]):
            return f"its pickle names {name!r:.100}"
    return ""


def _globals(path: Path) -> Iterator[str]:
    """Yield the functions and classes that the whole pickles of a file name; nothing is loaded."""
    try:
        with ExitStack() as stack:
            if zipfile.is_zipfile(path):
                archive = stack.enter_context(zipfile.ZipFile(path))
                file = stack.enter_context(archive.open(f"{archive.namelist()[0].partition('/')[0]}/data.pkl"))
            else:
                file = stack.enter_context(path.open("rb"))
            while True:  # files from before torch 1.6 hold several pickles, then tensors
                names: list[str] = []
                texts = ["", ""]  # the last two name a global
                memo: dict[Any, str] = {}  # by which pickle repeats a text
                for opcode, value, _ in pickletools.genops(file):
                    if opcode.name in ("GLOBAL", "INST"):
                        names.append(str(value).replace(" ", "."))
                    elif opcode.name == "STACK_GLOBAL":
                        names.append(".".join(texts[-2:]))
                    elif opcode.name == "MEMOIZE":
                        memo[len(memo)] = texts[-1]
                    elif opcode.name.endswith("GET"):
                        texts.append(memo.get(value, ""))
                    elif isinstance(value, str):
                        texts.append(value)
                yield from names
    except (ValueError, *_UNREADABLE):  # no pickle, or no further one
        return


def _check_names(path: Path, task: Any) -> None:
    """Refuse data and languages that would lead a command elsewhere, of which they become arguments and file names.

    Raises:
        ValueError: says which.
    """
    settings = vars(task) if isinstance(task, Namespace) else task
    for name, value in settings.items() if isinstance(settings, dict) else ():
        elsewhere = name in ("source_lang", "target_lang") and os.sep in str(value)
        if elsewhere or str(value).startswith("--"):
            raise ValueError(
                f"{path} has task.{name}={str(value)!r:.200}, which a command could take for an option or a path; take "
                "another checkpoint from someone you trust."
            )
