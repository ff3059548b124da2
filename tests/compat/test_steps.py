import json

import numpy as np
import pytest
import torch
from fairseq.data import data_utils
from fairseq.nan_detector import NanDetector
from fairseq.optim.amp_optimizer import AMPOptimizer

import moec_fairseq.compat  # noqa: F401  (importing it applies the workarounds)
from tests.conftest import ADAM, CRITERION, SCHEDULE, TINY


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


class Plain:
    """An optimizer, as far as one step of the task asks for it."""

    def backward(self, loss):
        loss.backward()


class Amp(Plain, AMPOptimizer):
    """Likewise what fairseq builds for --amp."""

    def __init__(self):
        pass


def test_amp_computes_in_bfloat16_on_a_cpu(build):
    built = build("--dropout", "0", "--moec-expert-dropout", "0")
    batch, dtypes, flash = built.batch(), [], []
    built.model.decoder.output_projection.register_forward_hook(
        lambda module, inputs, output: dtypes.append(output.dtype)
    )
    built.model.encoder.register_forward_hook(lambda *_: flash.append(torch.backends.cuda.flash_sdp_enabled()))

    def loss_and_gradient(optimizer):
        built.model.zero_grad()
        loss = built.task.train_step(batch, built.model, built.criterion, optimizer, 0)[0]
        return loss.detach(), torch.cat([p.grad.flatten() for p in built.model.parameters() if p.grad is not None])

    before = torch.backends.cuda.flash_sdp_enabled()
    (mixed, mixed_gradient), (full, gradient) = loss_and_gradient(Amp()), loss_and_gradient(Plain())
    built.task.valid_step(batch, built.model, built.criterion)
    assert dtypes == [torch.bfloat16, torch.float32, torch.float32]
    can_choose = hasattr(getattr(torch.nn, "attention", None), "sdpa_kernel")
    assert flash == [before and not can_choose, before, before]
    torch.testing.assert_close(mixed, full, rtol=1e-2, atol=0)
    assert mixed != full and mixed_gradient.dtype == torch.float32
    assert torch.cosine_similarity(mixed_gradient, gradient, dim=0) > 0.99


def test_a_training_with_amp_learns_on_a_cpu_and_goes_on(fairseq, reversal_data, tmp_path):
    flags = (reversal_data, *TINY, *CRITERION, *ADAM, *SCHEDULE, "--amp", "--save-dir", tmp_path)
    fairseq("train", *flags, "--max-update", "60")
    done = fairseq("train", *flags, "--max-update", "120", "--log-format", "json")
    losses = [json.loads(line.split("|")[-1]) for line in done.stdout.splitlines() if '"valid_nll_loss"' in line]
    assert "Loaded checkpoint" in done.stdout and float(losses[-1]["valid_nll_loss"]) < 3
