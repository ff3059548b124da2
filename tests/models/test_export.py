"""A trained model leaves Python as stock fairseq's does: by TorchScript, and by tracing."""

import io

import pytest
import torch
from fairseq.sequence_generator import SequenceGenerator
from torch import nn

from moec_fairseq.moe.layer import MoELayer
from tests.batches import collate, random_pairs
from tests.models.built import ours, task_of

SIZES = ("--encoder-embed-dim", "16", "--encoder-ffn-embed-dim", "16", "--encoder-layers", "1", "--decoder-layers", "1")
NO_EXPERTS = ("--moe-expert-count", "0")
EXPERTS = [
    ("--moec-layout", "inserted", "--moe-expert-count", "4"),
    ("--moec-layout", "replaced", "--moe-expert-count", "4", "--moec-expert-norm", "none"),
    ("--moec-router", "dot", "--moec-router-dim", "0", "--activation-fn", "gelu", "--moec-sublayers", "2"),
    ("--no-moe-gating-use-fp32", "--moe-expert-count", "1", "--moec-cluster-count", "1"),
]


def trained(*flags):
    """A model at evaluation, whose experts differ."""
    torch.manual_seed(1)
    model = ours("moec_transformer_tiny", *SIZES, *flags)
    for layer in (module for module in model.modules() if isinstance(module, MoELayer)):
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=0.5)
    return model.eval()


def batch(size, length, padding, seed):
    """Return sources, their lengths, and the beginnings of targets, with padding in both or in none."""
    dictionary = task_of().source_dictionary
    pairs = random_pairs(dictionary, seed, size, length - 1, length - 1)
    if padding:
        pairs[0] = pairs[0][0][2:], pairs[0][1]
        pairs[-1] = pairs[-1][0], pairs[-1][1][-1:]
    net_input = collate(dictionary, pairs, {"source": length, "target": length})["net_input"]
    return net_input["src_tokens"], net_input["src_lengths"], net_input["prev_output_tokens"]


BATCHES = [batch(2, 5, True, seed=1), batch(3, 7, False, seed=2), batch(1, 4, False, seed=3)]


@torch.no_grad()
def check_same(exported, model, batches=BATCHES):
    for source, lengths, target in batches:
        for _ in range(2):  # TorchScript compiles anew for what it has seen
            torch.testing.assert_close(exported(source, lengths, target)[0], model(source, lengths, target)[0])


def test_without_experts_it_is_scripted_as_stock_is():
    model = trained(*NO_EXPERTS)
    check_same(torch.jit.script(model), model)
    training = torch.jit.script(model.train())
    assert not torch.equal(training(*BATCHES[0])[0], training(*BATCHES[0])[0])  # dropout


@pytest.mark.parametrize("flags", EXPERTS, ids=" ".join)
def test_with_experts(flags):
    model = trained(*flags)
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(model), file)
    file.seek(0)
    check_same(torch.jit.load(file), model)


@pytest.mark.parametrize("flags", [NO_EXPERTS, EXPERTS[1]], ids=" ".join)
def test_beam_search(flags):
    generator = SequenceGenerator([trained(*flags)], task_of().target_dictionary, beam_size=3, max_len_b=8)
    scripted = torch.jit.script(generator)
    for source, lengths, _ in BATCHES[:2]:
        sample = {"net_input": {"src_tokens": source, "src_lengths": lengths}}
        with torch.jit.optimized_execution(False):  # which would take longer than it saves
            results = scripted(sample)
        for ours_, theirs in zip(results, generator(sample), strict=True):
            for one, other in zip(ours_, theirs, strict=True):
                assert torch.equal(one["tokens"], other["tokens"])
                torch.testing.assert_close(one["score"], other["score"])


class Logits(nn.Module):
    """fairseq's model returns a dictionary, too, which cannot be traced."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, source, lengths, target):
        return (self.model(source, lengths, target, return_all_hiddens=False)[0],)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("flags", EXPERTS[:2], ids=" ".join)
def test_traced_tokens_find_their_own_experts(flags):
    model = trained(*flags)
    example = batch(2, 5, True, seed=1)
    Logits(model)(*example)  # fairseq's decoder keeps a mask from its first pass, and is traced for that length
    traced = torch.jit.trace(Logits(model), example)
    check_same(traced, model, [batch(2, 5, True, seed=5), batch(4, 5, True, seed=6), batch(1, 5, True, seed=7)])


def test_training_with_experts_needs_python():
    (layer,) = (module for module in trained(*EXPERTS[0]).encoder.modules() if isinstance(module, MoELayer))
    with pytest.raises(Exception, match=r"call eval\(\) before exporting it"):
        torch.jit.script(layer.train())(torch.zeros(3, 2, 16))
