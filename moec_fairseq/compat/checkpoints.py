"""How fairseq saves and loads: whole files, those of all ranks of one update, and what a process must not inherit.

Every rank writes NAME.pt.tmp; when all have, all rename. A rank that is killed between the renames of two others finds
its file complete under its temporary name, and renames it before it resumes.
"""

import logging
import math
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from fairseq import checkpoint_utils
from fairseq.data.iterators import EpochBatchIterator, ShardedIterator
from fairseq.file_io import PathManager
from fairseq.logging import progress_bar
from fairseq.utils import apply_to_sample

from moec_fairseq.checkpoint import state as contents
from moec_fairseq.checkpoint.names import Files, check_processes, find_files
from moec_fairseq.checkpoint.sharded import assemble, check_together, open_checkpoint, shard_of, summarise
from moec_fairseq.checkpoint.state import load_if_readable
from moec_fairseq.models.layers import MoEFeedForward

TEMPORARY = ".tmp"  # as fairseq adds it
SAMPLE = 64  # values of each shared tensor that ranks compare before they load them

logger = logging.getLogger(__name__)

_save_checkpoint = checkpoint_utils.save_checkpoint
_load_checkpoint = checkpoint_utils.load_checkpoint
_load_models = checkpoint_utils.load_model_ensemble_and_task


def save_whole(cfg: Any, trainer: Any, *args: Any, **kwargs: Any) -> Any:
    """Let a checkpoint replace the one before when it is whole, and on all ranks together.

    Reason: fairseq writes a file safely, but then copies it over ``checkpoint_last.pt`` in place: a training killed in
    between has lost both. And each rank that saves experts renames its own file when it is written; a training killed
    in between would resume from two different updates, and hang at the end.
    """
    with replacing_whole(on_every_rank=trainer.shares_experts):
        return _save_checkpoint(cfg, trainer, *args, **kwargs)


class _CopyWhole(PathManager):
    """What fairseq uses to write checkpoints; a copy gets its name when it is whole."""

    @classmethod
    def copy(cls, src_path: str, dst_path: str, overwrite: bool = False) -> bool:
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
def replacing_whole(on_every_rank: bool) -> Iterator[None]:
    """Let fairseq replace a checkpoint, in this context, by one that is whole.

    Args:
        on_every_rank: all ranks write files of their own, which are to appear together.
    """
    checkpoint_utils.PathManager = _RenameTogether if on_every_rank else _CopyWhole
    try:
        yield
    finally:
        checkpoint_utils.PathManager = PathManager


def load_together(cfg: Any, trainer: Any, **kwargs: Any) -> Any:
    """Make all ranks resume from the same update, with their own experts, as if the training had never stopped.

    Reason: fairseq loads what each rank finds (see ``save_whole``), and starts over where it finds nothing: without a
    word also when the number of processes, and with it the names of the files, has changed, or when the file of
    ``--restore-file`` does not exist. It loads the file of ``--finetune-from-model`` or ``--continue-once`` on every
    rank, whosever experts it holds. For what it forgets, see ``MoECTrainer.resume``.
    """
    forget_other_trainings(trainer)
    trainer.run = of_all_ranks(trainer.run)[0]
    folder, suffix = Path(cfg.save_dir), trainer.checkpoint_suffix
    last = folder / f"checkpoint_last{suffix}.pt"
    named = cfg.restore_file
    if named == "checkpoint_last.pt":
        world_size = trainer.cfg.distributed_training.distributed_world_size if trainer.shares_experts else 1
        check_processes(last, world_size)
        if trainer.shares_experts:
            folder.mkdir(parents=True, exist_ok=True)  # fairseq makes that of rank 0, but machines may have their own
            finish_renaming(folder, suffix)
            finish_removing(folder, suffix)
        if trainer.is_moec:
            check_ranks(last, world_size)
        # fairseq 0.12.2 has no --continue-once
        named = None if last.is_file() else getattr(cfg, "continue_once", None) or cfg.finetune_from_model
    if named is None or not trainer.is_moec:
        extra_state, batches = _load_checkpoint(cfg, trainer, **kwargs)
    else:
        files = find_files(Path(named))
        begins_anew = named == cfg.finetune_from_model or cfg.reset_optimizer
        cfg = deepcopy(cfg)
        if cfg.finetune_from_model is not None:
            cfg.finetune_from_model = str(next(iter(files.ranks.values())))  # fairseq checks that it exists
        with own_experts(trainer, files, optimizer=not begins_anew):
            extra_state, batches = _load_checkpoint(cfg, trainer, **kwargs)
    resets = (cfg.reset_optimizer, cfg.reset_lr_scheduler, cfg.reset_dataloader, cfg.reset_meters)
    if trainer.get_num_updates() > 0 and not any(resets):
        trainer.resume(extra_state)
    return extra_state, batches


def forget_other_trainings(trainer: Any) -> None:
    """Forget what earlier trainings of this process (a sweep of ``fairseq-hydra-train -m``) have left to the next.

    Reason: fairseq keeps the best validation loss and patience in attributes of functions, TensorBoard's files by the
    part of the data alone, and log files forever: the second job of a sweep would write no ``checkpoint_best.pt`` while
    it is worse than the first, and its logs into the folders of the first.
    """
    vars(checkpoint_utils.save_checkpoint).pop("best", None)
    trainer.early_stopping.clear()
    for writer in progress_bar._tensorboard_writers.values():
        writer.close()
    progress_bar._tensorboard_writers.clear()
    of_training, own = logging.getLogger("fairseq_cli.train"), trainer.cfg.common.log_file
    for handler in [h for h in of_training.handlers if isinstance(h, logging.FileHandler)]:
        if own is None or Path(handler.baseFilename) != Path(own).absolute():
            of_training.removeHandler(handler)
            handler.close()


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


def finish_removing(folder: Path, suffix: str) -> None:
    """Remove the files of best checkpoints that another rank has removed already; all must call this.

    Reason: with ``--keep-best-checkpoints``, each rank decides by its own files whether to save another.

    Args:
        folder: where this rank saves.
        suffix: what is added to the names of this rank's files.
    """
    own = {path.name.removesuffix(f"{suffix}.pt") for path in folder.glob(f"checkpoint.best_*{suffix}.pt")}
    for name in own - set.intersection(*of_all_ranks(own)):
        (folder / f"{name}{suffix}.pt").unlink()


def check_ranks(path: Path, world_size: int) -> None:
    """Check that all ranks are about to load whole files that belong together, as the tools do; all must call this.

    Args:
        path: the file of this rank; all or none may be missing.
        world_size: number of files, one for each rank; 1 if rank 0 reads one for all.

    Raises:
        ValueError: a file is damaged, or does not fit the others; all ranks say which.
    """
    summary, error = None, ""
    if path.is_file():
        try:
            summary = summarise(path, optimizer=False, sample=SAMPLE)
        except ValueError as damaged:
            error = str(damaged)
    found = of_all_ranks((path, summary, error))[:world_size]
    for _, _, error in found:
        if error:
            raise ValueError(error)
    summaries = [summary for _, summary, _ in found if summary is not None]
    if not summaries:
        return
    missing = [str(file) for file, summary, _ in found if summary is None]
    try:
        if missing:
            raise ValueError(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing.")
        if world_size > 1 and summaries[0].world_size != world_size:
            raise ValueError(
                f"{path} was written by {summaries[0].world_size} processes, but this training has {world_size}."
            )
        check_together(summaries, sharded=world_size > 1)
    except ValueError as wrong:
        raise ValueError(
            f"the files to resume from are not of one checkpoint: {str(wrong).removesuffix('.')}; give --restore-file "
            "with the name of another checkpoint, remove these to start over, or, if the number of processes has "
            "changed, make files for it with moec checkpoint reshard."
        ) from wrong


def num_updates(path: Path) -> int | None:
    """Return the updates of a checkpoint; None for a file that is missing or cannot be read."""
    state = load_if_readable(path)
    return None if state is None else contents.num_updates(state)


def of_all_ranks(value: Any) -> list[Any]:
    """Return the values of all ranks, by rank; all must call this."""
    if not dist.is_initialized():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


@contextmanager
def own_experts(trainer: Any, files: Files, optimizer: bool) -> Iterator[None]:
    """Let the trainer load, in this context, what ``files`` hold of the parameters of this rank.

    Args:
        trainer: of this rank.
        files: of a checkpoint of any number of ranks.
        optimizer: whether the optimizer's state is wanted, too.

    Raises:
        ValueError: the files do not belong together, or have another number of experts, or another kind of model or
            vocabulary.
    """
    model = trainer.task.moec_model
    first = next(iter(files.ranks.values()))
    begun = load_if_readable(first)
    if begun is not None:
        model.check_origin(files.path, begun)
        if contents.num_experts(begun) == 0 and model.moe_layers and not optimizer:
            with replaced_by(trainer, first, _with_new_blocks(trainer, files.path)):
                yield
            return
    distributed = trainer.cfg.distributed_training
    rank, world_size = (
        (distributed.distributed_rank, distributed.distributed_world_size) if trainer.shares_experts else (0, 1)
    )
    own = files.ranks.get(rank)
    state = load_if_readable(own) if own is not None and files.sharded == (world_size > 1) else None
    fits = state is not None and (world_size == 1 or contents.trained_world_size(state) == world_size)
    if trainer.shares_experts:
        fits = all(of_all_ranks(fits))
    if not fits:
        source = open_checkpoint(files.path if files.sharded else files.ranks[0], optimizer)
        shard = shard_of(source.num_experts, world_size, rank)
        state = assemble(source, shard.experts)
        contents.set_rank(state, shard, len(source.ranks))
        own = source.ranks[0]
    assert state is not None and own is not None
    saved = contents.num_experts(state)
    for layer in model.moe_layers[:1]:
        if saved != (wanted := layer.router.clusters.num_experts):
            start = "" if saved else ", start from it with --finetune-from-model, which adds new experts"
            raise ValueError(
                f"{files.path} has {saved} experts in a layer, but the model to be trained {wanted}; give "
                f"--moe-expert-count {saved} (model.moe_expert_count){start}, or another checkpoint."
            )
    if model.moe_layers:
        check_experts(files.path, contents.group(state, "model"), trainer.cfg.model)
    if fits:
        check_ranks(own, world_size)
    # apart from the files, in which torch leaves tensors until they are used
    with replaced_by(trainer, own, None if fits else lambda *_, **__: apply_to_sample(torch.clone, state)):
        yield


def check_experts(path: Path, saved: Mapping[str, Any], wanted: Any) -> None:
    """Refuse to take experts over into a model in which their parameters would mean something else.

    Args:
        path: of the checkpoint.
        saved: options of the model in the checkpoint; those of an older version have their defaults.
        wanted: options of the model to be trained; None: as in the checkpoint.

    Raises:
        ValueError: says what to give.
    """
    for name in ("moec_router", "moec_layout", "moec_expert_norm", "moec_sublayers"):
        here, there = getattr(wanted, name, None), saved.get(name)
        if None not in (here, there) and str(here) != str(there):
            option = f"--{name.replace('_', '-')} {there} (model.{name}={there})"
            raise ValueError(
                f"{path} has {name}={there}, but the model to be trained {here}; give {option}, or another checkpoint."
            )


@contextmanager
def replaced_by(trainer: Any, source: Path, load: Callable[..., Any] | None) -> Iterator[None]:
    """Let the trainer load another file, in this context, and with another function unless it is None."""
    before = checkpoint_utils.load_checkpoint_to_cpu
    trainer.source = source
    checkpoint_utils.load_checkpoint_to_cpu = load or before
    try:
        yield
    finally:
        checkpoint_utils.load_checkpoint_to_cpu = before
        trainer.source = None


def _with_new_blocks(trainer: Any, path: Path) -> Callable[..., Any]:
    """Return a function that loads a checkpoint without experts for a model with experts.

    Raises:
        ValueError: new experts would take the place of trained feed-forward blocks.
    """
    if any(isinstance(module, MoEFeedForward) for module in trainer.task.moec_model.modules()):
        raise ValueError(
            f"{path} has no experts, and with --moec-layout replaced new ones would take the place of its feed-forward "
            "blocks; give --moec-layout inserted (model.moec_layout), or what moec checkpoint upcycle makes of it."
        )
    read = checkpoint_utils.load_checkpoint_to_cpu

    def load(*args: Any, **kwargs: Any) -> Any:
        state = read(*args, **kwargs)
        blocks = trainer.task.moec_model.add_new_blocks(state)
        logger.warning("%s has no experts; these blocks are new, and change nothing yet: %s", path, ", ".join(blocks))
        return state

    return load


def broadcast_loaded(loaded: Any, source: int, group: Any, device: torch.device | None) -> Any:
    """Send what one rank has loaded for all, but for its tensors, to the others.

    Reason: fairseq does so through a file in memory, and torch ≥ 2.6 refuses to load the configuration in it: a model
    without experts, of which all processes share one checkpoint, could not resume on several.
    """
    objects = [loaded]
    dist.broadcast_object_list(objects, source, group, device)
    return objects[0]


class EpochBatches(EpochBatchIterator):
    """fairseq's batches of all epochs, in the order of the undisturbed training.

    Reason: fairseq keeps the data loader of the first epoch of a process, and with it whether that epoch was shuffled:
    after ``--curriculum`` no later epoch is, unless the training was restarted meanwhile. fairseq 0.12.2 keeps its
    batches, too, in one order for all epochs, and without those that a resumed training has seen before. And
    ``--fix-batches-to-gpus`` is forgotten in the epoch in which a training resumes. And it counts the batches of one
    rank: a training that resumes on more or fewer ranks would repeat some of the epoch, or leave some out.
    """

    num_shards: int
    shard_id: int
    fixed_to_devices = False
    padding = 0  # batches that ranks lack in this epoch, because its first ones were shared by others; come first

    def next_epoch_itr(
        self, shuffle: bool = True, fix_batches_to_gpus: bool = False, set_dataset_epoch: bool = True
    ) -> Any:
        """Return the batches of the next epoch."""
        self.fixed_to_devices = fix_batches_to_gpus
        return super().next_epoch_itr(shuffle, fix_batches_to_gpus, set_dataset_epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the epoch: of this rank, and in the batches that all ranks share."""
        state = super().state_dict()
        iterations = state["iterations_in_epoch"]
        return state | {
            "fix_batches_to_gpus": self.fixed_to_devices,
            "batches_in_epoch": iterations and iterations * self.num_shards - self.padding,
            "num_shards": self.num_shards,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at the position of another one, of any number of ranks."""
        self.fixed_to_devices = state_dict.get("fix_batches_to_gpus", False)
        iterations = state_dict.get("iterations_in_epoch", 0)
        batches = state_dict.get("batches_in_epoch", iterations * self.num_shards)
        iterations = math.ceil(batches / self.num_shards)
        self.padding = iterations * self.num_shards - batches
        if batches and self._ordered_by_ranks and state_dict.get("num_shards", self.num_shards) != self.num_shards:
            logger.warning(
                "The rest of epoch %d repeats some batches and leaves out others, because with --grouped-shuffling or "
                "--fix-batches-to-gpus their order depends on the number of processes, which was %d and is now %d.",
                state_dict["epoch"],
                state_dict["num_shards"],
                self.num_shards,
            )
        super().load_state_dict(state_dict | {"iterations_in_epoch": iterations})

    @property
    def _ordered_by_ranks(self) -> bool:
        return self.grouped_shuffling or (self.fixed_to_devices and self._supports_prefetch)

    def _get_iterator_for_epoch(
        self, epoch: int, shuffle: bool, fix_batches_to_gpus: bool = False, offset: int = 0
    ) -> Any:
        self.dataloader = None  # a new one for each epoch
        if offset == 0:
            self.padding = 0
        return super()._get_iterator_for_epoch(epoch, shuffle, self.fixed_to_devices, offset)

    def ordered_batches(self, epoch: int, fix_batches_to_gpus: bool, shuffle: bool) -> Any:
        """Return the batches of this rank; those that are left of an epoch are shared as if it began with them."""
        if not self.padding or self._ordered_by_ranks:
            return super().ordered_batches(epoch, fix_batches_to_gpus, shuffle)
        num_shards, shard_id = self.num_shards, self.shard_id
        self.num_shards, self.shard_id = 1, 0
        try:
            everyones = super().ordered_batches(epoch, fix_batches_to_gpus, shuffle)
        finally:
            self.num_shards, self.shard_id = num_shards, shard_id
        return list(ShardedIterator([[]] * self.padding + everyones, num_shards, shard_id, fill_value=[]))


def point_to_merge(filenames: Any, *args: Any, **kwargs: Any) -> Any:
    """Load models; where files of ranks are given to a command that takes one file, say how to make one of them.

    Reason: a training on several processes leaves no NAME.pt, so that fairseq-generate, -interactive, -validate and
    the hub do not find it; and the shapes in the file of one rank, which has some of the experts only, do not fit.
    """
    try:
        return _load_models(filenames, *args, **kwargs)
    except Exception as error:
        for path in map(Path, filenames):
            if advice := _how_to_merge(path):
                raise ValueError(f"{path} {advice}") from error
        raise


def _how_to_merge(path: Path) -> str:
    """Return what to say of a file that has some of the experts only, or of the common name of such files; else ""."""
    try:
        files = find_files(path)
    except ValueError:  # there is nothing of this name
        return ""
    if not files.sharded:
        state = load_if_readable(path) or {"cfg": {}}
        if not contents.suffix(state) or contents.num_experts(state) < 2:
            return ""
        return (
            "holds the experts of one process of its training; moec checkpoint merge makes one file of those of all "
            "processes"
        )
    merged = files.path.with_name(f"{files.path.stem}-merged.pt")
    command = shlex.join(["moec", "checkpoint", "merge", str(path), "--out", str(merged)])
    return f"consists of one file for each process of its training; merge them, and give the result: {command}"
