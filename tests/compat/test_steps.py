import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fairseq.data import Dictionary, LanguagePairDataset, data_utils
from fairseq.modules import AdaptiveSoftmax
from fairseq.nan_detector import NanDetector

import moec_fairseq.compat  # noqa: F401  (importing it applies the workarounds)


@pytest.mark.parametrize("flags", [(), ("--encoder-layers", "6", "--encoder-layerdrop", "0.9")], ids=str)
def test_no_encoder_layer_takes_a_fused_path(build, flags):
    encoder = build("--encoder-moe-layers", "1", *flags).model.encoder
    assert not any(layer.can_use_fastpath for layer in encoder.layers.children())


def test_nan_is_found_although_the_encoder_returns_a_dictionary(build, caplog):
    model = build("--encoder-moe-layers", "1").model
    tokens = torch.tensor([[4, 5, 2]])
    model.decoder.layers[0].fc1.weight.data.fill_(float("nan"))
    with NanDetector(model):
        output, _ = model(tokens, torch.tensor([3]), tokens)
        output.sum().backward()
    assert "NaN detected in output of decoder.layers.0.fc1" in caplog.text


@pytest.mark.parametrize("sentences", [1, 7, 8, 12, 24, 25])
@pytest.mark.parametrize("limits", [{"max_tokens": 40}, {"max_sentences": 1}, {"max_sentences": 16}])
def test_batches_hold_every_sentence_once(sentences, limits):
    indices, sizes = np.arange(sentences)[::-1].copy(), np.full(sentences, 4)
    batches = data_utils.batch_by_size(
        indices, sizes.__getitem__, num_tokens_vec=sizes, required_batch_size_multiple=8, **limits
    )
    assert np.concatenate(batches).tolist() == indices.tolist()


def test_fairseqs_modules_find_every_name_of_numpy_that_they_use():
    missing, used = [], set()
    for name, module in list(sys.modules.items()):
        source = Path(getattr(module, "__file__", None) or "")
        if name.startswith("fairseq.") and source.suffix == ".py" and hasattr(module, "np"):
            names = set(re.findall(r"\bnp\.(\w+)", source.read_text()))
            missing += [f"{name}: np.{n}" for n in names if not hasattr(module.np, n)]
            used |= names
    assert not missing and {"array", "percentile"} <= used


def test_numpy_as_fairseq_calls_it():
    assert data_utils.get_buckets([5, 1, 9, 3, 3], 4).tolist() == [3, 5, 9]  # every fourth of the way through 1 3 3 5 9
    assert data_utils.np.percentile([1, 2], 50) == 1.5
    assert data_utils.np.array([1]).dtype == np.int64 and data_utils.np.int is int


def test_buckets_pad_to_few_lengths_and_keep_every_sentence():
    dictionary = Dictionary()
    lengths = [1 + n % 13 for n in range(50)]
    sentences = [torch.tensor([dictionary.unk()] * (n - 1) + [dictionary.eos()]) for n in lengths]
    data = LanguagePairDataset(
        sentences, lengths, dictionary, sentences, lengths, dictionary, num_buckets=4, shuffle=False
    )
    batches = data.batch_by_size(data.ordered_indices(), max_tokens=60, required_batch_size_multiple=8)
    assert sorted(np.concatenate(batches)) == list(range(50))
    shapes = [data.collater([data[i] for i in batch])["net_input"]["src_tokens"].shape for batch in batches]
    assert {length for _, length in shapes} == {4, 7, 10, 13}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_adaptive_softmax_of_all_words_can_be_trained(dtype):
    torch.manual_seed(1)
    softmax = AdaptiveSoftmax(20, 16, [4, 9], dropout=0.5).to(dtype).eval()
    hidden = torch.randn(2, 3, 16, dtype=dtype, requires_grad=True)
    target = torch.tensor([[0, 3, 4], [8, 9, 19]])  # of all three bands, and their borders
    log_probs = softmax.get_log_prob(hidden, None)
    assert log_probs.shape == (2, 3, 20) and log_probs.dtype in (torch.float32, torch.float64)
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones_like(log_probs[..., 0]), rtol=1e-5, atol=0)
    nll = -log_probs.gather(2, target.unsqueeze(2)).sum()
    bands, targets = softmax(hidden, target)  # as adaptive_loss has it
    reference = sum(F.cross_entropy(*band, reduction="sum") for band in zip(bands, targets, strict=True))
    tolerance = {"rtol": 0.02, "atol": 0.1} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(nll, reference.to(nll), **tolerance)
    parameters = [hidden, *softmax.parameters()]
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, parameters) for loss in (nll, reference)), check_dtype=False, **tolerance
    )
    # who scores given words still gets theirs only
    scored = softmax.get_log_prob(hidden, target)
    torch.testing.assert_close(-scored.gather(2, target.unsqueeze(2)).sum(), reference, **tolerance)


def test_the_adaptive_softmax_drops_as_its_own_loss_does():
    softmax = AdaptiveSoftmax(20, 16, [4], dropout=1 - 1e-9)
    log_probs = softmax.get_log_prob(torch.randn(1, 2, 16), None)
    # nothing is left of the hidden states: all words of a band are alike
    torch.testing.assert_close(log_probs[0, 0, :4].exp(), torch.full((4,), 1 / 5))
    torch.testing.assert_close(log_probs[0, 0, 4:].exp(), torch.full((16,), 1 / 5 / 16))
