"""Masked language models and classifiers: training on two ranks is training on one."""

import math
from argparse import Namespace

import pytest
import torch

from tests.texts import MASKED_LM, PAIRS, built, write_pairs, write_text
from tests.whole_trainings import of_rank

from .ranks import on_ranks
from .training import everyones_experts

SENTENCES = 12
FLAGS = (
    "--moe-expert-count", 4, "--moec-cluster-count", 2, "--moec-expert-dropout", 0, "--dropout", 0,
    "--attention-dropout", 0, "--moe-gate-loss-wt", 0.5, "--lr", 0.003, "--clip-norm", 0.5,
)  # fmt: skip


def train(rank, world_size, folder, flags, borders):
    """Return losses and norms of some updates, the gradients of the first and the parameters after the last one.

    ``borders``: of the share of each rank in the examples of an update.
    """
    from fairseq.trainer import Trainer

    job = of_rank(rank, world_size) if world_size > 1 else ()
    torch.manual_seed(3)
    model = built(folder, *flags, *FLAGS, *job)
    for layer in model.model.moe_layers:  # new experts are the identity, whose gradients are too simple
        shard = range(4) if world_size == 1 else layer.experts.groups.shard.experts
        for block in layer.experts.sublayers:
            everyone = torch.randn(4, *block.w2_NDF.shape[1:], generator=torch.Generator().manual_seed(5))
            block.w2_NDF.data.copy_(0.1 * everyone[shard.start : shard.stop])
    trainer = Trainer(model.config, model.task, model.model, model.criterion)
    found = Namespace(loss=[], norm=[], gradients=None)
    reduce_and_log_stats, clip_grad_norm = trainer._reduce_and_log_stats, trainer.clip_grad_norm

    def reduce(logs, sample_size, grad_norm=None):
        found.loss.append(float(sum(log["loss"] for log in logs)) / float(sample_size) / math.log(2))
        return reduce_and_log_stats(logs, sample_size, grad_norm)

    def clip(*args):
        norm = clip_grad_norm(*args)
        found.norm.append(float(norm))
        if found.gradients is None:
            gradients = {n: p.grad for n, p in model.model.named_parameters() if p.grad is not None}
            found.gradients = everyones_experts(trainer, gradients)
        return norm

    trainer._reduce_and_log_stats, trainer.clip_grad_norm = reduce, clip
    for update in range(4):
        first, end = (0, SENTENCES) if world_size == 1 else (borders[rank], borders[rank + 1])
        start = SENTENCES * update
        sample = model.batch(start + first, end - first) if end > first else None
        if sample is None:
            trainer._dummy_batch = model.batch(0, 2)
        trainer.train_step([sample])
    found.parameters = everyones_experts(trainer, {n: p.detach() for n, p in model.model.named_parameters()})
    return vars(found)


@pytest.mark.parametrize("write, flags, borders", [
    (write_text, MASKED_LM, [0, 3, SENTENCES]),
    (write_pairs, PAIRS, [0, SENTENCES, SENTENCES]),  # a rank without data gets fairseq's dummy batch
])  # fmt: skip
def test_parity(tmp_path, write, flags, borders):
    folder = write(tmp_path, train=200, valid=10)
    (single,) = on_ranks(1, train, folder, flags, borders)
    for found in on_ranks(2, train, folder, flags, borders):
        torch.testing.assert_close(found["loss"], single["loss"], rtol=1e-5, atol=0)
        torch.testing.assert_close(found["norm"], single["norm"], rtol=2e-4, atol=0)
        for what, atol in (("gradients", 2e-6), ("parameters", 2e-4)):
            for name, value in found[what].items():
                expected = single[what].get(name, torch.zeros_like(value))  # of a head that is not used
                torch.testing.assert_close(value, expected, rtol=1e-5, atol=atol, msg=f"{what} {name}")


def evaluate(rank, world_size, folder, flags, *more):
    """Return the summed loss of this rank's examples, in evaluation."""
    torch.manual_seed(3)
    model = built(folder, *flags, *FLAGS, *more, *of_rank(rank, world_size))
    with torch.no_grad():
        return float(model.criterion(model.model.eval(), model.batch(4 * rank, 4))[0])


def test_evaluation_gives_the_same_wherever_experts_are(tmp_path):
    folder = write_text(tmp_path, train=200, valid=10)
    gathered = on_ranks(2, evaluate, folder, MASKED_LM)
    exchanged = on_ranks(2, evaluate, folder, MASKED_LM, "--moec-evaluation", "exchanged")
    assert exchanged == pytest.approx(gathered, rel=1e-5)
