"""Files of others: no checkpoint, data or archive runs code, or chooses what is written.

Torch's safe loader (see ``versions.allow_fairseq_checkpoints``) keeps code out of a checkpoint's pickle; these keep it
out of its texts, which fairseq trusts as its own.
"""

import ast
import os
import shlex
import sys
import tarfile
import traceback
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from fairseq import checkpoint_utils
from fairseq.data import FastaDataset
from fairseq.dataclass import FairseqDataclass
from omegaconf import DictConfig, OmegaConf

from moec_fairseq.checkpoint.state import check_checksums, readable, rename_in_checkpoint

LONGEST = 10_000  # items of a list that is written as a product; fairseq's longest has 20
# what imports, writes or runs something as soon as fairseq applies the configuration of a checkpoint
NOT_OF_A_FILE = ("user_dir", "save_predictions", "tensorboard_logdir", "post_save_script")

_load_checkpoint_to_cpu = checkpoint_utils.load_checkpoint_to_cpu
_build_index = FastaDataset._build_index


def modules_of_fairseq(with_ast: bool = False) -> set[ModuleType]:
    """Return fairseq's modules, of which none is to evaluate Python.

    Reason: fairseq calls ``eval`` on options (``encoder_xformers_att_config``, ``adam_betas``, ``encoder_layers`` of
    convolutional models, …), and on lines of data; those of a checkpoint come from whoever made it. All functions of a
    module find its own ``eval`` before Python's, wherever they are called.

    Args:
        with_ast: only those that use ``ast.literal_eval``, which does not say what it was given.
    """
    loaded = {module for name, module in sys.modules.items() if name.partition(".")[0] == "fairseq"}
    return {module for module in loaded if not with_ast or getattr(module, "ast", None) is ast}


def literal(text: Any) -> Any:
    """Return the value of a literal, or of lists that are repeated and joined: ``[(512, 3)] * 4 + [(768, 3)]``.

    Raises:
        TypeError: it is not text, as Python's ``eval`` says, too; fairseq relies on that.
        ValueError: it is anything else.
    """
    if not isinstance(text, str):
        raise TypeError(f"only text is evaluated, not {type(text).__name__}")
    try:
        return _value(ast.parse(text.strip(), mode="eval").body)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise ValueError(
            f"{_option(text)} is {text!r:.200}, which is not evaluated, as it could be any code; "
            "give numbers, quoted texts, True, False, None, or lists, tuples and dicts of these"
        ) from None


class Literals:
    """What fairseq uses of Python's ``ast``."""

    literal_eval = staticmethod(literal)


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left), _value(node.right)
        if isinstance(left, list) and isinstance(right, list) and isinstance(node.op, ast.Add):
            return left + right
        if isinstance(left, list) and isinstance(right, int) and isinstance(node.op, ast.Mult):
            if len(left) * right > LONGEST:
                raise ValueError(f"more than {LONGEST} items")
            return left * right
    return ast.literal_eval(node)


def _option(value: str) -> str:
    """Return the name of the option with this value; only callers, who hold it in ``cfg`` or ``args``, know it."""
    frames = (frame for frame, _ in traceback.walk_stack(sys._getframe()))
    holders = (frame.f_locals.get(name) for frame in frames for name in ("cfg", "args"))
    names = [name for holder in holders for name, held in _leaves(holder) if isinstance(held, str) and held == value]
    return names[-1] if names else "a value"  # the outermost caller holds the whole configuration


def _leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield all options of a configuration with their names, ``model.encoder_layers``."""
    if isinstance(values, DictConfig):
        values = OmegaConf.to_container(values, resolve=False)
    elif isinstance(values, (Namespace, FairseqDataclass)):
        values = vars(values)
    if isinstance(values, Mapping):
        for name, value in values.items():
            yield from _leaves(value, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, values


def load_without_orders(path: str, arg_overrides: dict[str, Any] | None = None, *args: Any, **kwargs: Any) -> Any:
    """Load a whole checkpoint without what its training was told to import, run and write; refuse code in one sentence.

    Reason: fairseq builds the task and the criterion of a checkpoint as they were in its training, down to a file of
    predictions that the criterion ``sentence_ranking`` overwrites. If a file contains code, torch takes half a page to
    say so, from which its advice to run the code stands out. And it does not look at the checksums of a file.
    """
    if Path(path).is_file():  # fairseq loads from elsewhere, too
        check_checksums(Path(path))
    with readable(Path(path)):
        overrides = dict.fromkeys(NOT_OF_A_FILE) | (arg_overrides or {})
        state = _load_checkpoint_to_cpu(path, overrides, *args, **kwargs)
    rename_in_checkpoint(state)
    return state


def quote_for_shell(dataset: Any, path: str) -> Any:
    """Hand the name of a FASTA file to the shell as one word.

    Reason: fairseq lets a shell count the lines of data in this format, and looks for it wherever it looks for data;
    the folder and languages that a checkpoint names are part of the file's name.
    """
    return _build_index(dataset, shlex.quote(path))  # fairseq adds .fasta, which needs no quotes


class InsideTarFile(tarfile.TarFile):
    """An archive that is unpacked into its folder, and nowhere else.

    Reason: fairseq's ``from_pretrained`` unpacks archives to wherever their members ask for, and then moves the folder
    that they have in common, which may be one of the user's, to its cache.
    """

    @staticmethod
    def extraction_filter(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo:  # since Python 3.10.12, 3.11.4
        """Refuse a member that is absolute, outside of ``path``, or a device."""
        if os.path.isabs(member.name):
            raise tarfile.AbsolutePathError(member)
        return tarfile.data_filter(member, path)
