"""Every workaround for fairseq and torch versions, each with its reason. Importing applies the global ones."""

import argparse
import atexit
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from fairseq import checkpoint_utils, utils
from fairseq.data import data_utils
from fairseq.nan_detector import NanDetector
from fairseq.optim.amp_optimizer import AMPOptimizer
from fairseq.optim.fp16_optimizer import FP16Optimizer
from fairseq.tasks import FairseqTask
from fairseq.trainer import Trainer
from omegaconf import OmegaConf, open_dict
from torch import Tensor

from moec_fairseq import preflight
from moec_fairseq.checkpoint.changes import changes
from moec_fairseq.checkpoint.loading import load_if_whole
from moec_fairseq.checkpoint.together import check_one_update, finish_renaming, renamed_together
from moec_fairseq.moe.ranks import sum_over_ranks

logger = logging.getLogger(__name__)

Batches = Callable[..., list[Any]]
ClipGradNorm = Callable[..., Tensor]

FUSED_WEIGHTS = {
    f"{part}_{kind}" for part in ("in_proj", "out_proj", "fc1", "fc2") for kind in ("weight", "bias")
}  # parameters of an encoder layer itself, beside those of its parts


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


def keep_last_batch(batch_by_size: Batches) -> Batches:
    """Make fairseq's batching return every sentence.

    Reason: fairseq-fixed leaves out the last batch where its number of sentences is no multiple of
    ``--required-batch-size-multiple`` (8 by default), also at validation and generation, without a word: translations
    are missing, and scores are those of fewer sentences. fairseq 0.12.2 keeps it.
    """

    @wraps(batch_by_size)
    def all_batches(indices: Sequence[int], *args: Any, **kwargs: Any) -> list[Any]:
        batches = list(batch_by_size(indices, *args, **kwargs))
        kept = sum(len(batch) for batch in batches)
        return [*batches, indices[kept:]] if kept < len(indices) else batches

    return all_batches


def disable_fused_encoder(encoder: Any) -> None:
    """Make the encoder of fairseq 0.12.2 compute step by step at evaluation.

    Reason: its fused path knows no MoE block, and fails under torch ≥ 1.13 ("Mask Type should be defined").
    Later versions of fairseq have no such path. Its copies of the weights get no gradient, for which torch's
    DistributedDataParallel would wait.
    """
    for layer in encoder.layers:
        layer.can_use_fastpath = False
        for name, parameter in layer.named_parameters(recurse=False):
            parameter.requires_grad_(name not in FUSED_WEIGHTS)


def clip_experts_too(clip_grad_norm_: ClipGradNorm) -> ClipGradNorm:
    """Make the norm that gradients are clipped by that of shared parameters and the experts of all ranks.

    Reason: fairseq leaves parameters marked ``expert`` out of the norm, but scales them by it; the norm of the same
    batch would depend on the number of ranks.
    """

    @wraps(clip_grad_norm_)
    def clip(params: Any, max_norm: float, aggregate_norm_fn: Any = None) -> Tensor:
        params = [params] if isinstance(params, Tensor) else list(params)
        experts = [p for p in params if hasattr(p, "expert")]
        if not experts:
            return clip_grad_norm_(params, max_norm, aggregate_norm_fn)

        def with_experts(norm: Tensor) -> Tensor:
            # each expert is counted by all of its holders
            squares = [norm.new_zeros(())] + [
                p.grad.float().square().sum() / p.expert for p in experts if p.grad is not None
            ]
            if aggregate_norm_fn is not None:
                norm = aggregate_norm_fn(norm)
            return (norm.float().square() + sum_over_ranks(torch.stack(squares).sum())).sqrt()

        return clip_grad_norm_(params, max_norm, with_experts)

    return clip


def keep_expert_marks(build_fp32_params: Callable[..., Any]) -> Callable[..., Any]:
    """Give the float32 copies of parameters the same mark ``expert``.

    Reason: fairseq marks them with True, but clipping needs to know how many ranks hold the same expert.
    """

    @wraps(build_fp32_params)
    def build(cls: Any, args: Any, params: Sequence[Any], flatten: bool = True) -> Any:
        params = list(params)
        copies = build_fp32_params(args, params, flatten=flatten)
        if not flatten:
            for parameter, copy in zip(params, copies, strict=True):
                if hasattr(parameter, "expert"):
                    copy.expert = parameter.expert
        return copies

    return build


def watch_batches(train_step: Callable[..., Any]) -> Callable[..., Any]:
    """Set ``is_dummy_batch`` of criterions that have it, and note whether a loss of this rank was not finite.

    Reason: a rank that has run out of data gets a batch whose gradient fairseq ignores, so that ranks stay in step.
    Only the task hears of it, but its tokens must not enter the sums that the router losses of all ranks are made of.
    And only here are losses still those of one rank; fairseq's message on NaN names none.
    """

    @wraps(train_step)
    def step(
        task: Any, sample: Any, model: Any, criterion: Any, optimizer: Any, update_num: int, ignore_grad: bool = False
    ) -> Any:
        if hasattr(criterion, "is_dummy_batch"):
            criterion.is_dummy_batch = ignore_grad
        loss, sample_size, log = train_step(task, sample, model, criterion, optimizer, update_num, ignore_grad)
        # no synchronisation with a GPU here: read when something has gone wrong
        task.any_loss_not_finite = getattr(task, "any_loss_not_finite", False) | ~torch.isfinite(loss.detach())
        return loss, sample_size, log

    return step


def attention_of_products() -> Any:
    """Return a context in which attention is computed from products of matrices.

    Reason: on a CPU without units for bfloat16 matrices, the way back through torch's own attention takes eight times
    as long in bfloat16 as in float32, more than all that mixed precision wins.
    """
    choices: Any = getattr(torch.nn, "attention", None)
    if not hasattr(choices, "sdpa_kernel"):  # torch < 2.3
        return nullcontext()
    return choices.sdpa_kernel(choices.SDPBackend.MATH)


def amp_on_cpu(train_step: Callable[..., Any]) -> Callable[..., Any]:
    """Let ``--amp`` work on a CPU, too: forward passes of training in mixed precision, with bfloat16.

    Reason: fairseq asks for the mixed precision of CUDA, whatever the device; on a CPU the option does nothing.
    bfloat16 has the range of float32, so the loss is not scaled.
    """

    @wraps(train_step)
    def step(task: Any, sample: Any, model: Any, criterion: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        def in_bfloat16(*inputs: Any) -> Any:
            with torch.autocast("cpu", torch.bfloat16), attention_of_products():
                return criterion(*inputs)

        mixed = isinstance(optimizer, AMPOptimizer) and next(model.parameters()).device.type == "cpu"
        return train_step(task, sample, model, in_bfloat16 if mixed else criterion, optimizer, *args, **kwargs)

    return step


def shares_experts(model: Any) -> bool:
    """Whether this process has some of the experts only."""
    return any(hasattr(parameter, "expert") for parameter in model.parameters())


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


def check_before_training(init: Callable[..., None]) -> Callable[..., None]:
    """Refuse options that cannot work with experts on several ranks, and save all experts.

    Reason: the trainer is the first to see the model and all options; fairseq itself would hang or train wrongly.
    """

    @wraps(init)
    def checked(trainer: Any, cfg: Any, task: Any, model: Any, *args: Any, **kwargs: Any) -> None:
        trainer.shares_experts = shares_experts(model)
        if trainer.shares_experts:
            preflight.check(cfg)
            save_on_every_rank(cfg)
        init(trainer, cfg, task, model, *args, **kwargs)

    return checked


def save_together(save_checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    """Let the files of all ranks get their names together.

    Reason: each rank that saves experts renames its own when it is written; a training killed in between would go on
    from two different updates, and hang at the end.
    """

    @wraps(save_checkpoint)
    def save(cfg: Any, trainer: Any, *args: Any, **kwargs: Any) -> Any:
        with renamed_together() if trainer.shares_experts else nullcontext():
            return save_checkpoint(cfg, trainer, *args, **kwargs)

    return save


def load_together(load_checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    """Make sure that all ranks go on from the same update.

    Reason: fairseq loads what each rank finds; see ``save_together``.
    """

    @wraps(load_checkpoint)
    def load(cfg: Any, trainer: Any, **kwargs: Any) -> Any:
        if trainer.shares_experts:
            folder, suffix = Path(cfg.save_dir), trainer.checkpoint_suffix
            finish_renaming(folder, suffix)
            own = cfg.restore_file.replace(".pt", f"{suffix}.pt")
            check_one_update(folder / own if cfg.restore_file == "checkpoint_last.pt" else Path(own))
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


def look_for_nan_forward(init: Callable[..., None]) -> Callable[..., None]:
    """Let fairseq's search for the module that makes NaN look at forward passes only.

    Reason: its backward hooks fail under torch ≥ 2 on any Transformer, whose encoder returns a dictionary of lists
    (StopIteration), and that error hides the real one.
    """

    @wraps(init)
    def forward_only(detector: Any, model: Any, forward: bool = True, backward: bool = True) -> None:
        init(detector, model, forward, backward=False)

    return forward_only


def fail_as_one(train_step: Callable[..., Any]) -> Callable[..., Any]:
    """End the process that runs out of memory where others wait for its tokens, and say whose loss is not finite.

    Reason: fairseq leaves out a batch that is too large on this rank and goes on, while the others wait in an
    all-to-all for ever. Gradients of one rank that are not finite are everybody's: all ranks stop with the same words.
    """

    @wraps(train_step)
    def step(trainer: Any, samples: Any, raise_oom: bool = False) -> Any:
        try:
            return train_step(trainer, samples, raise_oom or trainer.shares_experts)
        except FloatingPointError as error:
            if not trainer.shares_experts:
                raise
            mine = torch.zeros(dist.get_world_size())
            mine[dist.get_rank()] = trainer.task.any_loss_not_finite
            guilty = sum_over_ranks(mine.to(trainer.device)).nonzero().flatten().tolist()
            whose = f"the loss of rank {', '.join(map(str, guilty))}" if guilty else "no loss, but a gradient"
            raise FloatingPointError(
                f"in update {trainer.get_num_updates() + 1} {whose} was not finite; {error}"
            ) from error

    return step


def wait_for_gloo(seconds: float = 0.5) -> None:
    """Let gloo's threads finish what they hold before Python ends.

    Reason: they need Python's lock to let go of the tensors they have sent; where the interpreter has begun to end they
    cannot get it, and torch aborts the process ("terminate called without an active exception", exit code -6) although
    all its work is done. Nothing tells when they are through, but while this sleeps the lock is free for them.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        time.sleep(seconds)


allow_fairseq_checkpoints()
atexit.register(wait_for_gloo)
Trainer.__init__ = check_before_training(Trainer.__init__)
Trainer.train_step = fail_as_one(Trainer.train_step)
NanDetector.__init__ = look_for_nan_forward(NanDetector.__init__)
checkpoint_utils.save_checkpoint = save_together(checkpoint_utils.save_checkpoint)
checkpoint_utils.load_checkpoint = load_together(checkpoint_utils.load_checkpoint)
Trainer.load_checkpoint = say_what_changed(Trainer.load_checkpoint)
Trainer.save_checkpoint = keep_crashes_apart(Trainer.save_checkpoint)
FairseqTask.train_step = watch_batches(amp_on_cpu(FairseqTask.train_step))
utils.clip_grad_norm_ = clip_experts_too(utils.clip_grad_norm_)
FP16Optimizer.build_fp32_params = classmethod(keep_expert_marks(FP16Optimizer.build_fp32_params))
data_utils.batch_by_size = keep_last_batch(data_utils.batch_by_size)
