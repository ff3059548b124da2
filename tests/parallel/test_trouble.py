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


def only_padding(rank, world_size):
    """Rank 1 has padding only; return values and gradients of a layer."""
    import torch

    from moec_fairseq.moe.clusters import ExpertClusters
    from moec_fairseq.moe.exchange import DISPATCHERS
    from moec_fairseq.moe.expert_dropout import ExpertDropout
    from moec_fairseq.moe.experts import Experts
    from moec_fairseq.moe.layer import MoELayer
    from moec_fairseq.moe.ranks import Ranks
    from moec_fairseq.moe.router import Router

    found = []
    for kind in DISPATCHERS:
        torch.manual_seed(1)
        ranks, clusters = Ranks.of_job(4), ExpertClusters(4, 2)
        experts = Experts(4, 8, 16, ranks=ranks)
        for block in experts.sublayers:
            torch.nn.init.ones_(block.b2_ND)
        layer = MoELayer(Router(8, clusters), experts, DISPATCHERS[kind](ranks), ExpertDropout(0.0))
        hidden = torch.randn(3, 2, 8, requires_grad=True)
        output = layer(hidden, torch.full((2, 3), bool(rank)))
        output.sum().backward()
        found.append((hidden.detach(), output.detach(), hidden.grad, experts.sublayers[0].b2_ND.grad.sum()))
    return found


def test_a_rank_with_padding_only():
    first, second = on_ranks(2, only_padding)
    for (hidden, output, _, b2_grad), (padding, same, grad, other_b2_grad) in zip(first, second, strict=True):
        assert not output.equal(hidden) and same.equal(padding) and grad.eq(1).all()
        # each of six tokens gives every dimension of its expert's bias alpha, 0 < alpha < 1; divided by two ranks
        assert 0 < b2_grad + other_b2_grad < 6 * 8 / 2
