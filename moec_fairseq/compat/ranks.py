"""Workarounds for experts on several ranks: clipping, batches without data, errors that all must hear of."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from itertools import compress
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from fairseq.modules import LayerDropModuleList
from torch import Tensor, nn

from moec_fairseq import preflight
from moec_fairseq.compat.checkpoints import save_on_every_rank
from moec_fairseq.moe.ranks import sum_over_ranks
from moec_fairseq.moe.records import RecordBook

ClipGradNorm = Callable[..., Tensor]


def shares_experts(model: Any) -> bool:
    """Whether this process has some of the experts only."""
    return any(hasattr(parameter, "expert") for parameter in model.parameters())


def check_before_training(init: Callable[..., None]) -> Callable[..., None]:
    """Refuse trainings that nobody meant, and options that cannot work with experts on several ranks; save all experts.

    Reason: the trainer is the first to see the model and all options; fairseq itself would hang or train wrongly.
    """

    @wraps(init)
    def checked(trainer: Any, cfg: Any, task: Any, model: Any, *args: Any, **kwargs: Any) -> None:
        preflight.check_together(cfg.distributed_training, os.environ)
        trainer.shares_experts = shares_experts(model)
        if trainer.shares_experts:
            preflight.check(cfg)
            save_on_every_rank(cfg)
        init(trainer, cfg, task, model, *args, **kwargs)

    return checked


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


def seed_layer_drop(set_seed: Callable[..., None]) -> Callable[..., None]:
    """Make the layers that are dropped in an update a function of seed and update (see ``drop_same_layers``)."""

    @wraps(set_seed)
    def seed_all(trainer: Any) -> None:
        set_seed(trainer)
        if hasattr(trainer.task, "moec_model"):
            seed, update = trainer.cfg.common.seed % 2**32, trainer.get_num_updates()
            stacks = [module for module in trainer.get_model().modules() if isinstance(module, LayerDropModuleList)]
            for number, stack in enumerate(stacks):
                # RandomState, because numpy promises never to change its stream; each forward pass takes the next draw
                stack.draws = np.random.RandomState([seed, number, update])

    return seed_all


def drop_same_layers(layers: Callable[..., Iterator[nn.Module]]) -> Callable[..., Iterator[nn.Module]]:
    """Drop the same layers on all ranks (``--encoder-layerdrop``, ``--decoder-layerdrop``).

    Reason: fairseq draws them from torch's generator, which is at another place on every rank: how much dropout has
    drawn from it depends on the shape of the batch. A rank that drops a layer with experts would leave the others
    waiting for its tokens for ever.
    """

    @wraps(layers)
    def kept(stack: Any) -> Iterator[nn.Module]:
        if not stack.training or not hasattr(stack, "draws"):
            return layers(stack)
        return compress(nn.ModuleList.__iter__(stack), stack.draws.random_sample(len(stack)) > stack.p)

    return kept


def watch_batches(train_step: Callable[..., Any]) -> Callable[..., Any]:
    """Tell the MoE layers of a dummy batch, and note whether a loss of this rank was not finite.

    Reason: a rank that has run out of data gets a batch whose gradient fairseq ignores, so that ranks stay in step.
    Only the task hears of it, but no expert and no router loss of any rank must see its tokens.
    And only here are losses still those of one rank; fairseq's message on NaN names none.
    """

    @wraps(train_step)
    def step(
        task: Any, sample: Any, model: Any, criterion: Any, optimizer: Any, update_num: int, ignore_grad: bool = False
    ) -> Any:
        book = task.moec_model.book if hasattr(task, "moec_model") else RecordBook()
        book.is_dummy = ignore_grad
        try:
            loss, sample_size, log = train_step(task, sample, model, criterion, optimizer, update_num, ignore_grad)
        finally:
            book.is_dummy = False
        # no synchronisation with a GPU here: read when something has gone wrong
        task.any_loss_not_finite = getattr(task, "any_loss_not_finite", False) | ~torch.isfinite(loss.detach())
        return loss, sample_size, log

    return step


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


def try_once(valid_step: Callable[..., Any]) -> Callable[..., Any]:
    """End the process that runs out of memory in validation where others wait for it.

    Reason: fairseq tries the batch once more, but the others have gone on: its experts and tokens would arrive twice.
    """

    @wraps(valid_step)
    def step(trainer: Any, sample: Any, raise_oom: bool = False) -> Any:
        return valid_step(trainer, sample, raise_oom or trainer.shares_experts)

    return step


def wait_for_gloo(seconds: float = 0.5) -> None:
    """Let gloo's threads finish what they hold before Python ends.

    Reason: they need Python's lock to let go of the tensors they have sent; where the interpreter has begun to end they
    cannot get it, and torch aborts the process ("terminate called without an active exception", exit code -6) although
    all its work is done. Nothing tells when they are through, but while this sleeps the lock is free for them.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        time.sleep(seconds)
