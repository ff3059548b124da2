import numpy as np
import pytest
import torch
from fairseq.data import data_utils
from fairseq.nan_detector import NanDetector

import moec_fairseq.compat  # noqa: F401  (importing it applies the workarounds)


def test_no_encoder_layer_takes_a_fused_path(build):
    encoder = build("--encoder-moe-layers", "1").model.encoder
    assert [layer.can_use_fastpath for layer in encoder.layers] == [False, False]


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
