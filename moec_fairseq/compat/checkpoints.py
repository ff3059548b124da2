"""Workarounds for checkpoints: safe loading, and files of several ranks that belong together."""

import argparse
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq import checkpoint_utils
from fairseq.utils import apply_to_sample
from omegaconf import open_dict

from moec_fairseq.checkpoint import settings
from moec_fairseq.checkpoint.assemble import assemble
from moec_fairseq.checkpoint.files import Files, check_processes, find_files
from moec_fairseq.checkpoint.loading import load_if_whole
from moec_fairseq.checkpoint.shards import open_checkpoint, shard_of
from moec_fairseq.checkpoint.together import check_one_update, finish_renaming, of_all_ranks, whole_files


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
    """Make sure that all ranks go on from the same update, and with their own experts.

    Reason: fairseq loads what each rank finds (see ``save_whole``), and begins anew where it finds nothing: without a
    word, too, when the number of processes, and with it the names of the files, has changed, or when the file of
    ``--restore-file`` is not there. The file of ``--finetune-from-model`` it loads on every rank, whosever experts it
    holds.
    """

    @wraps(load_checkpoint)
    def load(cfg: Any, trainer: Any, **kwargs: Any) -> Any:
        folder, suffix = Path(cfg.save_dir), trainer.checkpoint_suffix
        last = folder / f"checkpoint_last{suffix}.pt"
        if cfg.restore_file == "checkpoint_last.pt":
            if trainer.shares_experts:
                check_processes(last, trainer.cfg.distributed_training.distributed_world_size)
                finish_renaming(folder, suffix)
                check_one_update(last)
            else:
                check_processes(last, 1)
            named = None if last.is_file() else cfg.finetune_from_model
        else:
            named = cfg.restore_file
        if named is None or not hasattr(trainer.task, "moec_model"):
            return load_checkpoint(cfg, trainer, **kwargs)
        files = find_files(Path(named))
        cfg = deepcopy(cfg)
        if cfg.finetune_from_model is not None:
            cfg.finetune_from_model = str(next(iter(files.ranks.values())))  # fairseq wants to see that it is there
        with own_experts(trainer, files, optimizer=named == cfg.restore_file and not cfg.reset_optimizer):
            return load_checkpoint(cfg, trainer, **kwargs)

    return load


@contextmanager
def own_experts(trainer: Any, files: Files, optimizer: bool) -> Iterator[None]:
    """Let the trainer load, in this context, what ``files`` hold of the parameters of this rank.

    Args:
        trainer: of this rank.
        files: of a checkpoint of any number of ranks.
        optimizer: whether the optimizer's state is wanted, too.

    Raises:
        ValueError: the files do not fit together, or are of another number of experts.
    """
    distributed = trainer.cfg.distributed_training
    rank, world_size = (
        (distributed.distributed_rank, distributed.distributed_world_size) if trainer.shares_experts else (0, 1)
    )
    own = files.ranks.get(rank)
    state = load_if_whole(own) if own is not None and files.sharded == (world_size > 1) else None
    fits = state is not None and (world_size == 1 or settings.trained_world_size(state) == world_size)
    if trainer.shares_experts:
        fits = all(of_all_ranks(fits))
    if not fits:
        source = open_checkpoint(files.path if files.sharded else files.ranks[0], optimizer)
        shard = shard_of(source.num_experts, world_size, rank)
        state = assemble(source, shard.experts)
        settings.set_rank(state, shard, len(source.ranks))
        own = source.ranks[0]
    assert state is not None and own is not None
    saved = settings.num_experts(state)
    for layer in trainer.task.moec_model.moe_layers[:1]:
        if saved != (wanted := layer.router.clusters.num_experts):
            raise ValueError(
                f"{files.path} has {saved} experts in a layer, but the model that is trained {wanted}; give "
                f"--moe-expert-count {saved} (model.moe_expert_count), or another checkpoint."
            )
    if trainer.shares_experts and fits:
        check_one_update(own)

    def load(_: str, *args: Any, **kwargs: Any) -> Any:
        return type(trainer).load_checkpoint(trainer, str(own), *args, **kwargs)

    read = checkpoint_utils.load_checkpoint_to_cpu
    trainer.load_checkpoint = load
    if not fits:
        # apart from the files, in which torch leaves tensors until they are used
        checkpoint_utils.load_checkpoint_to_cpu = lambda *_, **__: apply_to_sample(torch.clone, state)
    try:
        yield
    finally:
        checkpoint_utils.load_checkpoint_to_cpu = read
        del trainer.load_checkpoint


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


def point_to_merge(load_models: Callable[..., Any]) -> Callable[..., Any]:
    """Say how to make one file of those of ranks, where these are given to a command that takes one.

    Reason: of a training on several processes there is no NAME.pt, which fairseq-generate, -interactive, -validate and
    the hub do not find; and the shapes in a file of one rank, which has some of the experts only, do not fit.
    """

    @wraps(load_models)
    def load(filenames: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return load_models(filenames, *args, **kwargs)
        except Exception as error:
            for path in map(Path, filenames):
                if advice := _how_to_merge(path):
                    raise ValueError(f"{path} {advice}") from error
            raise

    return load


def _how_to_merge(path: Path) -> str:
    """Return what to say of a file that has some of the experts only, or of the common name of such files; else ""."""
    try:
        files = find_files(path)
    except ValueError:  # there is nothing of this name
        return ""
    if not files.sharded:
        state = load_if_whole(path) or {"cfg": {}}
        if not settings.suffix(state) or settings.num_experts(state) < 2:
            return ""
        return "holds the experts of one process of its training; moec-checkpoint merge makes one file of those of all"
    merged = files.path.with_name(f"{files.path.stem}-merged.pt")
    command = shlex.join(["moec-checkpoint", "merge", str(path), "--out", str(merged)])
    return f"is there in a file for each process of its training; make one of them, and give that: {command}"
