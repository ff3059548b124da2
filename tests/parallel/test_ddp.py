"""pytorch_ddp: torch's own DistributedDataParallel around the model."""

import torch

from .ranks import on_ranks
from .training import EXACT, SENTENCES, batch, build, corpus, even, everyones_experts


def gradients(rank, world_size, folder, borders):
    """Return the gradients of one batch, as sums over the sentences of all ranks."""
    from torch.nn.parallel import DistributedDataParallel

    task, trainer = build(folder, world_size, rank, *EXACT, "--ddp-backend", "pytorch_ddp")
    model, criterion = trainer.get_model().train(), trainer.get_criterion()
    sentences = corpus(task, 1, SENTENCES)
    if world_size > 1:
        sentences = sentences[borders[rank] : borders[rank + 1]]
        assert isinstance(trainer.model.module, DistributedDataParallel)
    loss, _, _ = criterion(trainer.model, batch(task, sentences))
    loss.backward()
    return everyones_experts(trainer, {n: p.grad * world_size for n, p in model.named_parameters() if p.requires_grad})


def test_gradients_are_those_of_one_process(dictionaries):
    (single,) = on_ranks(1, gradients, dictionaries, even(1))
    for found in on_ranks(2, gradients, dictionaries, [0, 7, SENTENCES]):
        for name, value in single.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")
