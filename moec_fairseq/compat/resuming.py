"""Workarounds for trainings that go on, and for those that follow another in the same process.

A training that is started again must do what it would have done undisturbed, and a training must not see what another
one of the same process (a sweep of ``fairseq-hydra-train -m``) has left in modules and functions.
"""

import logging
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from fairseq import checkpoint_utils
from fairseq.data.iterators import EpochBatchIterator
from fairseq.logging import progress_bar
from fairseq.optim.dynamic_loss_scaler import DynamicLossScaler
from omegaconf import OmegaConf

from moec_fairseq.checkpoint.changes import changes
from moec_fairseq.checkpoint.loading import load_if_whole

logger = logging.getLogger(__name__)


def say_what_changed(load_checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    """Warn when a training goes on with other settings than it began with.

    Reason: fairseq goes on from whatever checkpoint lies in ``--save-dir``, without a word about the options that were
    given this time; who tries one after the other gets a model that is half of this and half of that.
    """

    @wraps(load_checkpoint)
    def load(trainer: Any, filename: str, reset_optimizer: bool = False, *args: Any, **kwargs: Any) -> Any:
        if hasattr(trainer.task, "moec_model") and not reset_optimizer:
            now = OmegaConf.to_container(trainer.cfg, resolve=True, enum_to_str=True)  # as fairseq saves it
            saved = load_if_whole(Path(filename))
            changed = changes(saved["cfg"], now) if saved else []
            if changed:
                logger.warning(
                    "%s was trained with %s; for a model of its own give another --save-dir (checkpoint.save_dir).",
                    filename,
                    ", ".join(changed),
                )
        return load_checkpoint(trainer, filename, reset_optimizer, *args, **kwargs)

    return load


def training_loop() -> Any:
    """Return the module of fairseq-train that runs: it is the main one after ``python -m fairseq_cli.train``."""
    main = sys.modules["__main__"]
    return main if hasattr(main, "should_stop_early") else sys.modules.get("fairseq_cli.train")


class EpochBatches(EpochBatchIterator):
    """fairseq's batches of all epochs, in the order of the undisturbed training.

    Reason: fairseq keeps the data loader of the first epoch of a process, and with it whether that epoch was shuffled:
    after ``--curriculum`` no later epoch is, unless the training was started again meanwhile. fairseq 0.12.2 keeps its
    batches, too, in one order for all epochs, and without those that a training which goes on has seen before. And
    ``--fix-batches-to-gpus`` is forgotten in the epoch in which a training goes on.
    """

    fixed_to_devices = False

    def next_epoch_itr(
        self, shuffle: bool = True, fix_batches_to_gpus: bool = False, set_dataset_epoch: bool = True
    ) -> Any:
        """Return the batches of the next epoch."""
        self.fixed_to_devices = fix_batches_to_gpus
        return super().next_epoch_itr(shuffle, fix_batches_to_gpus, set_dataset_epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return where in which epoch this is."""
        return super().state_dict() | {"fix_batches_to_gpus": self.fixed_to_devices}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where another one was."""
        self.fixed_to_devices = state_dict.get("fix_batches_to_gpus", False)
        super().load_state_dict(state_dict)

    def _get_iterator_for_epoch(
        self, epoch: int, shuffle: bool, fix_batches_to_gpus: bool = False, offset: int = 0
    ) -> Any:
        self.dataloader = None  # a new one for each epoch
        return super()._get_iterator_for_epoch(epoch, shuffle, self.fixed_to_devices, offset)


def begin_with_the_first_epoch(get_train_iterator: Callable[..., Any]) -> Callable[..., Any]:
    """Make a training that is started again load the data, and put them into batches, as in its first epoch.

    Reason: fairseq makes both once in a process, from ``--seed`` and the number of that process's first epoch, so that
    a training which goes on from its second epoch has other batches. Data in several folders are loaded anew in each
    epoch, in every training.
    """

    @wraps(get_train_iterator)
    def get(trainer: Any, epoch: int, combine: bool = True, load_dataset: bool = True, **options: Any) -> Any:
        if load_dataset and epoch > 1 and not trainer.task.has_sharded_data("train"):
            get_train_iterator(trainer, 1, combine, load_dataset, **options)
            load_dataset = False
        return get_train_iterator(trainer, epoch, combine, load_dataset, **options)

    return get


def save_counters(state_dict: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Save for how many epochs in vain ``--lr-scheduler reduce_lr_on_plateau`` has waited.

    Reason: fairseq saves the best loss only, and gives a training that is started again the whole ``--lr-patience``.
    """

    @wraps(state_dict)
    def save(scheduler: Any) -> dict[str, Any]:
        counted = scheduler.lr_scheduler
        counters = {"num_bad_epochs": counted.num_bad_epochs, "cooldown_counter": counted.cooldown_counter}
        return state_dict(scheduler) | counters

    return save


def load_counters(load_state_dict: Callable[..., None]) -> Callable[..., None]:
    """Load what ``save_counters`` has saved."""

    @wraps(load_state_dict)
    def load(scheduler: Any, state: dict[str, Any]) -> None:
        load_state_dict(scheduler, state)
        for name in ("num_bad_epochs", "cooldown_counter"):
            if name in state:
                setattr(scheduler.lr_scheduler, name, state[name])

    return load


def is_scheduled(trainer: Any, iterator: dict[str, Any]) -> bool:
    """Whether an undisturbed training would validate now, too, and not only one that is about to end here."""
    dataset, checkpoint, updates = trainer.cfg.dataset, trainer.cfg.checkpoint, trainer.get_num_updates()

    def is_due(interval: int) -> bool:
        return interval > 0 and updates % interval == 0

    if is_due(dataset.validate_interval_updates):
        return True
    if iterator["iterations_in_epoch"] == 0:
        return (iterator["epoch"] - 1) % dataset.validate_interval == 0
    return is_due(checkpoint.save_interval_updates)


def save_progress(save_checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    """Save for how many validations the loss has not fallen, and how the loss scale of fp16 has fared.

    Reason: fairseq counts for ``--patience`` in attributes of a function, and the updates since an overflow in the loss
    scaler, and forgets both when the process ends. A validation that is made only because the process ends does not
    count: the undisturbed training would not make it.
    """

    @wraps(save_checkpoint)
    def save(trainer: Any, filename: str, extra_state: dict[str, Any]) -> Any:
        counted: Any = getattr(training_loop(), "should_stop_early", None)
        iterator = extra_state.get("train_iterator")  # crash.pt has none
        if trainer.cfg.checkpoint.patience > 0 and counted is not None and iterator is not None:
            now = vars(counted) if is_scheduled(trainer, iterator) else counted.before
            if "best" in now:
                extra_state["patience"] = {"best": now["best"], "runs": now["num_runs"]}
        if scaler := loss_scaler(trainer):
            # its counts; the rest are options, which may be others next time
            extra_state["loss_scaler"] = {n: count for n, count in vars(scaler).items() if n.startswith("_")}
        return save_checkpoint(trainer, filename, extra_state)

    return save


def loss_scaler(trainer: Any) -> Any:
    """Return what chooses the loss scale of fp16; None in other precisions."""
    scaler = getattr(trainer.optimizer, "scaler", None)
    return scaler if isinstance(scaler, DynamicLossScaler) else None


def resets_something(cfg: Any) -> bool:
    """Whether a training begins with a part of a checkpoint only."""
    return any((cfg.reset_optimizer, cfg.reset_lr_scheduler, cfg.reset_dataloader, cfg.reset_meters))


def end_of(trainer: Any, runs: int) -> str:
    """Return which option has ended the training that was loaded, after so many validations in vain; "" for none."""
    if 0 < trainer.cfg.optimization.max_update <= trainer.get_num_updates():
        return f"--max-update {trainer.cfg.optimization.max_update}, optimization.max_update"
    if 0 < trainer.cfg.checkpoint.patience <= runs:
        return f"--patience {trainer.cfg.checkpoint.patience}, checkpoint.patience"
    return ""


def go_on_as_if_never_stopped(load_checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    """Take up all that fairseq forgets where it was, and train no more where the training was at its end.

    Reason: fairseq gives a training that is started again the whole patience anew. One that was at its end makes one
    more update, or the epochs of that patience, and overwrites its last checkpoints. And the learning rate does not
    hear of the last validation of an epoch, because checkpoints are written between the two.
    """

    @wraps(load_checkpoint)
    def load(cfg: Any, trainer: Any, **kwargs: Any) -> Any:
        loop = training_loop()
        forget_other_trainings(trainer, loop)
        extra_state, epoch_itr = load_checkpoint(cfg, trainer, **kwargs)
        if trainer.get_num_updates() > 0 and not resets_something(cfg):
            resume(trainer, extra_state)
            if loop is not None and cfg.restore_file == "checkpoint_last.pt":
                go_on_counting(cfg, trainer, loop, extra_state.get("patience"))
        return extra_state, epoch_itr

    return load


def resume(trainer: Any, extra_state: dict[str, Any]) -> None:
    """Bring learning rate, loss scale and moving average to where they were, beyond what fairseq has loaded."""
    iterator = extra_state["train_iterator"]
    if iterator["iterations_in_epoch"] == 0:
        loss = extra_state["val_loss"] if is_scheduled(trainer, iterator) else None
        trainer.lr_step(iterator["epoch"] - 1, loss)
    if scaler := loss_scaler(trainer):
        vars(scaler).update(extra_state.get("loss_scaler", {}))
    if trainer.cfg.ema.store_ema:
        # counts from 0 to --ema-update-freq, and only in the process
        trainer.ema.update_freq_counter = trainer.get_num_updates() % max(1, trainer.cfg.ema.ema_update_freq)


def go_on_counting(cfg: Any, trainer: Any, loop: Any, patience: dict[str, Any] | None) -> None:
    """Take patience up where it was, and train no more if it, or the number of updates, has come to its end."""
    if patience is not None:
        loop.should_stop_early.best, loop.should_stop_early.num_runs = patience["best"], patience["runs"]
    if end := end_of(trainer, patience["runs"] if patience else 0):
        logger.warning(
            "The training in %s was at its end (%s) and stays as it is, at update %d; raise that option to go on.",
            cfg.save_dir,
            end,
            trainer.get_num_updates(),
        )
        skip_training(loop)


def skip_training(loop: Any) -> None:
    """Let the function that trains an epoch do nothing, in this training, and say that it was the last epoch."""

    def nothing(*_: Any) -> Any:
        return [None], True

    replacement: Any = nothing
    replacement.original = loop.train
    loop.train = replacement


def forget_other_trainings(trainer: Any, loop: Any) -> None:
    """Forget what earlier trainings of this process have left where the next one would find it.

    Reason: fairseq keeps the best validation loss and patience in attributes of functions, TensorBoard's files by the
    part of the data alone, and log files for ever: the second job of a sweep would write no ``checkpoint_best.pt``
    while it is worse than the first, and its logs into the folders of the first.
    """
    vars(checkpoint_utils.save_checkpoint).pop("best", None)
    for writer in progress_bar._tensorboard_writers.values():
        writer.close()
    progress_bar._tensorboard_writers.clear()
    if loop is None:
        return
    loop.train = getattr(loop.train, "original", loop.train)
    loop.should_stop_early = remember_before(getattr(loop.should_stop_early, "original", loop.should_stop_early))
    own = trainer.cfg.common.log_file
    for handler in [h for h in loop.logger.handlers if isinstance(h, logging.FileHandler)]:
        if own is None or Path(handler.baseFilename) != Path(own).absolute():
            loop.logger.removeHandler(handler)
            handler.close()


def remember_before(should_stop_early: Callable[..., bool]) -> Callable[..., bool]:
    """Return a function of fresh counts, whose attribute ``before`` is what was counted before the last validation."""

    def stop(cfg: Any, valid_loss: float | None) -> bool:
        counted: Any = stop
        counted.before = {name: vars(stop)[name] for name in ("best", "num_runs") if name in vars(stop)}
        return should_stop_early(cfg, valid_loss)

    counted: Any = stop
    counted.original, counted.before = should_stop_early, {}
    return stop
