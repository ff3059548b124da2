"""What goes wrong on one rank only."""

import math

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


def test_all_ranks_name_the_one_whose_loss_is_nan(dictionaries):
    for message in on_ranks(2, train_with_nan, dictionaries):
        assert message == "in update 2 the loss of rank 1 was not finite; gradients are Nan/Inf"
    assert sorted(path.name for path in dictionaries.glob("*.pt")) == ["crash-rank-0.pt", "crash-rank-1.pt"]
