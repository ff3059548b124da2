"""Workarounds for files of others: no checkpoint, data or archive runs code, or chooses what is written.

Torch's safe loader (see ``allow_fairseq_checkpoints``) keeps code out of a checkpoint's pickle; these keep it out of
its texts, which fairseq takes for its own.
"""

import ast
import os
import shlex
import sys
import tarfile
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fairseq.dataclass import FairseqDataclass
from omegaconf import DictConfig, OmegaConf

from moec_fairseq.checkpoint.loading import readable

LONGEST = 10_000  # items of a list that is written as a product; fairseq's longest has 20
# what imports, writes or runs something as soon as fairseq takes the configuration of a checkpoint for its own
NOT_OF_A_FILE = ("user_dir", "save_predictions", "tensorboard_logdir", "post_save_script")


def evaluate_literals_only() -> None:
    """Let no module of fairseq evaluate Python.

    Reason: fairseq calls ``eval`` on options (``encoder_xformers_att_config``, ``adam_betas``, ``encoder_layers`` of
    convolutional models, …), and on lines of data; those of a checkpoint come from whoever has made it. A module's own
    ``eval`` is found before Python's by all of its functions, whoever has imported them.
    """
    for name, module in list(sys.modules.items()):
        if module is not None and name.partition(".")[0] == "fairseq":
            vars(module)["eval"] = literal
            if getattr(module, "ast", None) is ast:  # for its literal_eval, which does not say what it was given
                vars(module)["ast"] = SimpleNamespace(literal_eval=literal)


def literal(text: Any) -> Any:
    """Return the value of a literal, or of lists that are repeated and joined: ``[(512, 3)] * 4 + [(768, 3)]``.

    Raises:
        TypeError: it is no text, as of Python's ``eval``, which fairseq relies on.
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


def load_without_orders(load_checkpoint_to_cpu: Callable[..., Any]) -> Callable[..., Any]:
    """Load a checkpoint without what its training was told to import, to run and to write; refuse code in a sentence.

    Reason: fairseq builds the task and the criterion of a checkpoint as they were in its training, down to a file of
    predictions that the criterion ``sentence_ranking`` overwrites. Of a file with code, torch says on half a page, of
    which the advice to run it stands out.
    """

    @wraps(load_checkpoint_to_cpu)
    def load(path: str, arg_overrides: dict[str, Any] | None = None, *args: Any, **kwargs: Any) -> Any:
        with readable(Path(path)):
            return load_checkpoint_to_cpu(path, dict.fromkeys(NOT_OF_A_FILE) | (arg_overrides or {}), *args, **kwargs)

    return load


def quote_for_shell(build_index: Callable[..., Any]) -> Callable[..., Any]:
    """Hand the name of a FASTA file to the shell as one word.

    Reason: fairseq lets a shell count the lines of data that it finds in this format, wherever it may be asked for
    others, and a checkpoint's folder and languages are part of the file's name.
    """

    @wraps(build_index)
    def build(dataset: Any, path: str) -> Any:
        return build_index(dataset, shlex.quote(path))  # fairseq adds .fasta, which the quotes do not need to hold

    return build


class InsideTarFile(tarfile.TarFile):
    """An archive that is unpacked into its folder, and nowhere else.

    Reason: fairseq's ``from_pretrained`` unpacks archives wherever their members ask for, and then moves the folder
    that they have in common, which may be one of the user's, to its cache.
    """

    @staticmethod
    def extraction_filter(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo:  # since Python 3.10.12, 3.11.4
        """Refuse a member that is absolute, outside of ``path``, or a device."""
        if os.path.isabs(member.name):
            raise tarfile.AbsolutePathError(member)
        return tarfile.data_filter(member, path)
