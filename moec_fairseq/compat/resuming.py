"""Workarounds for trainings that are started again: other settings, patience, and those that were at their end."""

import logging
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

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


def save_patience(save_checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    """Save for how many validations the loss has not fallen.

    Reason: fairseq counts for ``--patience`` in attributes of a function, and forgets them when the process ends.
    """

    @wraps(save_checkpoint)
    def save(trainer: Any, filename: str, extra_state: dict[str, Any]) -> Any:
        counted: Any = getattr(training_loop(), "should_stop_early", None)
        if trainer.cfg.checkpoint.patience > 0 and hasattr(counted, "best"):
            extra_state["patience"] = {"best": counted.best, "runs": counted.num_runs}
        return save_checkpoint(trainer, filename, extra_state)

    return save


def goes_on(cfg: Any) -> bool:
    """Whether the user asks for the same training once more, not for another that begins with its model."""
    resets = (cfg.reset_optimizer, cfg.reset_lr_scheduler, cfg.reset_dataloader, cfg.reset_meters)
    return cfg.restore_file == "checkpoint_last.pt" and not any(resets)


def end_of(trainer: Any, runs: int) -> str:
    """Return which option has ended the training that was loaded, after so many validations in vain; "" for none."""
    if 0 < trainer.cfg.optimization.max_update <= trainer.get_num_updates():
        return f"--max-update {trainer.cfg.optimization.max_update}, optimization.max_update"
    if 0 < trainer.cfg.checkpoint.patience <= runs:
        return f"--patience {trainer.cfg.checkpoint.patience}, checkpoint.patience"
    return ""


def go_on_as_if_never_stopped(load_checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    """Take patience up where it was, and train no more where the training was at its end.

    Reason: fairseq gives a training that is started again the whole patience anew. One that was at its end makes one
    more update, or the epochs of that patience, and overwrites its last checkpoints.
    """

    @wraps(load_checkpoint)
    def load(cfg: Any, trainer: Any, **kwargs: Any) -> Any:
        extra_state, epoch_itr = load_checkpoint(cfg, trainer, **kwargs)
        loop = training_loop()
        if loop is None:
            return extra_state, epoch_itr
        vars(loop.should_stop_early).clear()  # of another training of this process
        if trainer.get_num_updates() > 0 and goes_on(cfg):
            counted = extra_state.get("patience")
            if counted is not None:
                loop.should_stop_early.best, loop.should_stop_early.num_runs = counted["best"], counted["runs"]
            if end := end_of(trainer, counted["runs"] if counted else 0):
                logger.warning(
                    "The training in %s was at its end (%s) and stays as it is, at update %d; raise that option to go "
                    "on.",
                    cfg.save_dir,
                    end,
                    trainer.get_num_updates(),
                )
                skip_training(loop)
        return extra_state, epoch_itr

    return load


def skip_training(loop: Any) -> None:
    """Let the next call of the function that trains an epoch do nothing, and say that it was the last."""
    train = loop.train

    def nothing(*_: Any) -> Any:
        loop.train = train
        return [None], True

    loop.train = nothing
