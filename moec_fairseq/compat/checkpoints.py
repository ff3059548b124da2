"""Workarounds for checkpoints: safe loading, and files of several ranks that belong together."""

import argparse
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import open_dict

from moec_fairseq.checkpoint.files import check_processes
from moec_fairseq.checkpoint.together import check_one_update, finish_renaming, whole_files


def allow_fairseq_checkpoints() -> None:
    """Let torch's safe loader read fairseq checkpoints.

    Reason: a fairseq checkpoint holds an ``argparse.Namespace``, and after ``--eval-bleu`` numpy arrays; torch ≥ 2.6
    loads with ``weights_only=True`` and refuses them. Naming these keeps loading safe, where ``weights_only=False``
    would let a checkpoint run code.
    """
    add_safe_globals = getattr(torch.serialization, "add_safe_globals", None)  # torch < 2.5 has none and needs none
    if add_safe_globals is not None:
        # the functions that numpy's pickles name have moved between its versions
        array, scalar = np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0]
        dtypes = {type(np.dtype(code)) for code in "?bhilqBHILQefd"}
        add_safe_globals([argparse.Namespace, array, scalar, np.ndarray, np.dtype, *dtypes])


def save_on_every_rank(config: Any) -> None:
    """Make every rank write and read a file of its own, NAME-rank-R.pt.

    Reason: fairseq does so for models with ``base_layers`` only, and names the files before it knows the model's
    defaults (fairseq-hydra-train); with one file for all, the experts of all ranks but one would be lost.
    """
    with open_dict(config):
        config.model.base_layers = config.distributed_training.distributed_world_size
        suffix = f"-rank-{config.distributed_training.distributed_rank}"
        if not config.checkpoint.checkpoint_suffix.endswith(suffix):
            config.checkpoint.checkpoint_suffix += suffix


def save_whole(save_checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    """Let a checkpoint take the place of the one before when it is whole, and on all ranks together.

    Reason: fairseq writes a file safely, but then copies it over ``checkpoint_last.pt`` in place: who is killed in
    between has lost both. And each rank that saves experts renames its own when it is written; a training killed in
    between would go on from two different updates, and hang at the end.
    """

    @wraps(save_checkpoint)
    def save(cfg: Any, trainer: Any, *args: Any, **kwargs: Any) -> Any:
        with whole_files(on_every_rank=trainer.shares_experts):
            return save_checkpoint(cfg, trainer, *args, **kwargs)

    return save


def load_together(load_checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    """Make sure that all ranks go on from the same update, and with as many processes as before.

    Reason: fairseq loads what each rank finds (see ``save_whole``), and begins anew where it finds nothing: without a
    word, too, when the number of processes, and with it the names of the files, has changed.
    """

    @wraps(load_checkpoint)
    def load(cfg: Any, trainer: Any, **kwargs: Any) -> Any:
        folder, suffix = Path(cfg.save_dir), trainer.checkpoint_suffix
        own = Path(cfg.restore_file.replace(".pt", f"{suffix}.pt"))
        if cfg.restore_file == "checkpoint_last.pt":
            own = folder / own
        if trainer.shares_experts:
            check_processes(own, trainer.cfg.distributed_training.distributed_world_size)
            finish_renaming(folder, suffix)
            check_one_update(own)
        else:
            check_processes(own, 1)
        return load_checkpoint(cfg, trainer, **kwargs)

    return load


def keep_crashes_apart(save_checkpoint: Callable[..., None]) -> Callable[..., None]:
    """Give every rank its own ``crash.pt``.

    Reason: fairseq writes it when gradients are not finite. Ranks that save experts would all write the same file, and
    fail with a FileNotFoundError instead of saying what is wrong.
    """

    @wraps(save_checkpoint)
    def save(trainer: Any, filename: str, extra_state: dict[str, Any]) -> None:
        if trainer.shares_experts and filename.endswith("crash.pt"):
            filename = filename.removesuffix(".pt") + trainer.checkpoint_suffix + ".pt"
        save_checkpoint(trainer, filename, extra_state)

    return save
