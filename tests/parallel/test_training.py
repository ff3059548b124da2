"""Training on several ranks is training on one: losses, gradients, norms and parameters."""

from argparse import Namespace

import pytest
import torch

from .ranks import on_ranks
from .training import EXACT, SENTENCES, batch, build, corpus, even, train, train_epochs

REPLICATED = ("--moe-expert-count", "2", "--moec-cluster-count", "1")
PYTORCH = ("--ddp-backend", "pytorch_ddp")
CAPACITY = (*EXACT, "--moec-dispatch", "capacity", "--moe-capacity-factor", "8")


@pytest.mark.parametrize(
    "world_size, flags, update_freq, borders",
    [
        (2, EXACT, 1, even(2)),
        (4, EXACT, 4, even(4)),
        (2, CAPACITY, 4, even(2)),
        (4, (*CAPACITY, "--moec-layout", "replaced"), 1, even(4)),
        # more ranks than experts, cluster dropout, uneven batches, a rank with one sentence
        (4, REPLICATED, 1, [0, 1, 10, 15, SENTENCES]),
        (
            2,
            (*EXACT, "--moec-cluster-count", "1", "--moec-expert-dropout", "0.5", "--moec-layout", "replaced"),
            1,
            [0, 5, SENTENCES],
        ),
        # tokens routed on random ranks
        (4, (*EXACT, "--moec-token-shuffle"), 1, [0, 1, 10, 15, SENTENCES]),
        # a rank without data gets fairseq's dummy batch
        (2, EXACT, 1, [0, SENTENCES, SENTENCES]),
        (4, (*EXACT, "--moec-token-shuffle", "--checkpoint-activations"), 1, [0, 10, 10, 15, SENTENCES]),
        # the gradients of replicas are added up once for several micro-batches; one rank has dummy batches
        (4, (*REPLICATED, "--moec-sublayers", "2"), 3, [0, 1, 15, SENTENCES, SENTENCES]),
        # gradients of shared parameters in the course of the backward pass
        (2, (*EXACT, *PYTORCH, "--moec-variance-groups", "random"), 3, [0, 5, SENTENCES]),
        (4, (*REPLICATED, *PYTORCH), 2, [0, 1, 15, SENTENCES, SENTENCES]),
        (2, (*EXACT, *PYTORCH, "--checkpoint-activations", "--moec-layout", "replaced"), 1, even(2)),
        (2, ("--moe-expert-count", "1", "--moec-cluster-count", "1", "--moec-variance", "none", *PYTORCH), 1, even(2)),
    ],
)
def test_parity(dictionaries, world_size, flags, update_freq, borders):
    options = Namespace(updates=10, update_freq=update_freq, borders=borders)
    (single,) = on_ranks(1, train, dictionaries, flags, options)
    ranks = on_ranks(world_size, train, dictionaries, flags, options)
    for rank, found in enumerate(ranks):
        torch.testing.assert_close(found["loss"], single["loss"], rtol=1e-5, atol=0)
        torch.testing.assert_close(found["norm"], single["norm"], rtol=2e-4, atol=0)
        for what in ("gradients", "parameters"):
            for name, value in single[what].items():
                torch.testing.assert_close(
                    found[what][name], value, rtol=1e-5, atol=2e-6 if what == "gradients" else 2e-4,
                    msg=lambda m, n=name, w=what, r=rank: f"rank {r}, {w} {n}: {m}",
                )  # fmt: skip


TWELVE = ("--moe-expert-count", "12", "--moec-cluster-count", "4", "--moec-variance", "intra", "--clip-norm", "0")
DENSE = ("--moe-expert-count", "0", "--criterion", "label_smoothed_cross_entropy", "--clip-norm", "0")
SCALED = ("--adam-eps", "1", "--lr", "0.1")  # the size of a step depends on that of the gradients


@pytest.mark.parametrize(
    "world_size, flags, update_freqs",
    [(2, TWELVE, (1, 2, 3, 4)), (3, TWELVE, (1, 2, 3, 4)), (4, TWELVE, (1, 2, 3, 4)), (2, DENSE, (2, 3))],
)
def test_every_update_of_uneven_epochs(dictionaries, world_size, flags, update_freqs):
    """Ranks that run out of data before others, in the first, the last or the only micro-batch of an update."""
    (single,) = on_ranks(1, train_epochs, dictionaries, (*flags, *SCALED), world_size, update_freqs)
    for found in on_ranks(world_size, train_epochs, dictionaries, (*flags, *SCALED), world_size, update_freqs):
        assert len(single) == len(found) >= 9
        for update, (one, several) in enumerate(zip(single, found, strict=True)):
            assert one.keys() == several.keys()
            for name, value in one.items():
                torch.testing.assert_close(
                    several[name], value, rtol=1e-5, atol=1e-9,
                    msg=lambda m, n=name, u=update: f"update {u}, {n}: {m}",
                )  # fmt: skip


@pytest.mark.parametrize(
    "world_size, flags",
    [
        (2, (*EXACT, "--bf16")),
        (2, (*EXACT, "--memory-efficient-bf16")),
        (2, (*EXACT, *PYTORCH, "--bf16")),
        (4, (*REPLICATED, "--bf16")),
    ],
)
def test_bfloat16_rounds_and_does_nothing_else(dictionaries, world_size, flags):
    options = Namespace(updates=2, update_freq=1, borders=even(world_size))
    (single,) = on_ranks(1, train, dictionaries, flags[:4], options)
    try:
        ranks = on_ranks(world_size, train, dictionaries, flags, options)
    except AssertionError as error:  # of torch 1.13
        assert "which the gloo of torch" in str(error)
        return
    for found in ranks:
        assert found["loss"] != single["loss"] and found["loss"] == pytest.approx(single["loss"], rel=0.01)
        assert found["norm"] == pytest.approx(single["norm"], rel=0.02)


def evaluate(rank, world_size, folder, flags):
    """Return the summed loss of this rank's sentences, in evaluation."""
    task, trainer = build(folder, world_size, rank, *flags)
    model, criterion = trainer.get_model().eval(), trainer.get_criterion().eval()
    sentences = corpus(task, 1, SENTENCES)[(0, 5)[rank] : (5, SENTENCES)[rank]]
    with torch.no_grad():
        return float(criterion(model, batch(task, sentences))[0])


def test_evaluation_gives_the_same_wherever_experts_are(dictionaries):
    gathered = on_ranks(2, evaluate, dictionaries, EXACT)
    exchanged = on_ranks(2, evaluate, dictionaries, (*EXACT, "--moec-evaluation", "exchanged"))
    assert exchanged == pytest.approx(gathered, rel=1e-5)
