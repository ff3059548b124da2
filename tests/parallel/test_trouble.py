"""What goes wrong on one rank only."""

import math

import torch

from .ranks import on_ranks
from .training import EXACT, batch, build, corpus


def train_with_nan(rank, world_size, folder):
    """Make the loss of rank 1 NaN in the second update; return what each rank says of it."""
    task, trainer = build(folder, world_size, rank, *EXACT, "--save-dir", str(folder))
    samples = [batch(task, corpus(task, rank, 4))]
    trainer.train_step(samples)
    if rank == 1:
        forward = trainer.criterion.compute_loss

        def compute_loss(*args, **kwargs):
            loss, nll_loss = forward(*args, **kwargs)
            return loss * math.nan, nll_loss

        trainer.criterion.compute_loss = compute_loss
    try:
        trainer.train_step(samples)
    except FloatingPointError as error:
        return str(error)
    return "no error"


def skip_and_fail(rank, world_size, folder):
    """Let an update be skipped because the loss of rank 1 is infinite, and the next one fail for another reason."""
    task, trainer = build(folder, world_size, rank, *EXACT, "--save-dir", str(folder))
    samples = [batch(task, corpus(task, rank, 4))]
    forward, clip, cuda = trainer.criterion.compute_loss, trainer.clip_grad_norm, torch.Tensor.cuda

    def compute_loss(*args, **kwargs):
        loss, nll_loss = forward(*args, **kwargs)
        return (loss * math.inf if rank == 1 else loss), nll_loss

    def overflow(clip_norm):
        raise OverflowError("setting loss scale to 1")

    def fail(*args, **kwargs):
        raise FloatingPointError("something else")

    trainer.criterion.compute_loss, trainer.clip_grad_norm = compute_loss, overflow
    torch.Tensor.cuda = lambda tensor: tensor  # fairseq's way to skip one is for GPUs
    try:
        trainer.train_step(samples)
    finally:
        torch.Tensor.cuda = cuda
    assert trainer.get_num_updates() == 0
    trainer.criterion.compute_loss, trainer.clip_grad_norm = forward, clip
    trainer.task.train_step = fail
    try:
        trainer.train_step(samples)
    except FloatingPointError as error:
        return str(error)
    return "no error"


def test_a_skipped_update_is_nobodys_fault_later(dictionaries):
    for message in on_ranks(2, skip_and_fail, dictionaries):
        assert message == "in update 1 no loss, but a gradient was not finite; something else"


def test_all_ranks_name_the_one_whose_loss_is_nan(dictionaries):
    for message in on_ranks(2, train_with_nan, dictionaries):
        assert message == "in update 2 the loss of rank 1 was not finite; gradients are Nan/Inf"
    assert sorted(path.name for path in dictionaries.glob("*.pt")) == ["crash-rank-0.pt", "crash-rank-1.pt"]
