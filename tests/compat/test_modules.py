import os

import pytest
import torch
import torch.nn.functional as F
from fairseq.modules import AdaptiveSoftmax, LayerDropModuleList
from fairseq.nan_detector import NanDetector
from fairseq.optim import AMPOptimizer
from fairseq.optim.adam import Adam
from fairseq.optim.sgd import SGD

from moec_fairseq.compat.modules import seed_layer_drop


def layers_of(seed, update, passes=3, share=0.5, layers=12):
    """Return which layers of two stacks run in the forward passes of an update, where torch's generator is anywhere."""
    stacks = [LayerDropModuleList(share, [torch.nn.Identity() for _ in range(layers)]) for _ in range(2)]
    torch.manual_seed(seed + update)
    seed_layer_drop(torch.nn.ModuleList(stacks), seed, update)
    torch.rand(int.from_bytes(os.urandom(1), "big"))  # what dropout draws depends on the shape of the batch
    numbers = [{layer: number for number, layer in enumerate(stack.children())} for stack in stacks]
    return [[numbers[s][layer] for layer in stack] for _ in range(passes) for s, stack in enumerate(stacks)]


def test_the_same_layers_are_dropped_on_all_ranks_and_after_a_restart():
    drawn = [layers_of(seed, update) for seed in (1, 2, -1) for update in (0, 1, 500)]
    assert drawn == [layers_of(seed, update) for seed in (1, 2, -1) for update in (0, 1, 500)]
    # but others in each stack, forward pass and update, and for each seed
    assert len({tuple(kept) for draw in drawn for kept in draw}) == sum(map(len, drawn))
    assert all(kept == sorted(kept) for draw in drawn for kept in draw)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.9, 1.0])
def test_the_share_that_is_asked_for_is_dropped(share):
    kept = layers_of(3, 4, passes=50, share=share, layers=40)
    assert sum(map(len, kept)) / (100 * 40) == pytest.approx(1 - share, abs=0.03)  # four standard deviations


def test_stacks_without_a_seed_and_evaluation_are_as_fairseq_has_them():
    stack = LayerDropModuleList(0.5, [torch.nn.Identity() for _ in range(12)])
    drawn = [len(list(stack)) for _ in range(20)]
    assert any(count != drawn[0] for count in drawn)
    stack = LayerDropModuleList(1.0, [torch.nn.Identity()]).eval()
    assert len(list(stack)) == 1 and len(list(stack.train())) == 0


def test_nan_is_found_although_the_encoder_returns_a_dictionary(build, caplog):
    model = build("--encoder-moe-layers", "1").model
    tokens = torch.tensor([[4, 5, 2]])
    model.decoder.layers[0].fc1.weight.data.fill_(float("nan"))
    with NanDetector(model):
        output, _ = model(tokens, torch.tensor([3]), tokens)
        output.sum().backward()
    assert "NaN detected in output of decoder.layers.0.fc1" in caplog.text


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


SCALES = (1.0, 128.0, 65536.0)


class ScaledOnCpu(AMPOptimizer):
    """fairseq's optimizer for ``--amp``, around one of torch's, with a scaler that works on a CPU."""

    def __init__(self, optimizer, scaler):
        self.fp32_optimizer = SGD.__new__(SGD)
        self.fp32_optimizer.cfg, self.fp32_optimizer._optimizer = None, optimizer
        self._grad_scaler, self.min_loss_scale = scaler, 1e-4

    def update(self, parameter, gradient, clip_norm=0.0):
        """Make an update as fairseq's trainer does."""
        self.zero_grad()
        self.backward((gradient * parameter).sum())
        norm = self.clip_grad_norm(clip_norm)
        self.step()
        return norm


def scaler(scale):
    if not hasattr(torch.amp, "GradScaler"):
        pytest.skip("this torch scales on GPUs only")
    return torch.amp.GradScaler("cpu", init_scale=scale)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("clip_norm, used", [(0.0, 3.0), (0.5, 0.5)])
def test_amp_uses_the_gradient_whatever_the_loss_scale(scale, clip_norm, used):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = ScaledOnCpu(torch.optim.SGD([parameter], lr=1.0), scaler(scale))
    assert optimizer.update(parameter, 3.0, clip_norm) == 3
    assert -parameter.item() == pytest.approx(used, rel=1e-5)


def test_adam_moves_the_same_at_every_scale():
    moved = []
    for scale in SCALES:
        parameter = torch.nn.Parameter(torch.zeros(1))
        optimizer = ScaledOnCpu(Adam([parameter], lr=1.0, betas=(0.9, 0.98), eps=1e-6), scaler(scale))
        for _ in range(20):
            optimizer.update(parameter, 1e-4)
        moved.append(parameter.item())
    assert moved[0] < -19 and moved[1:] == 2 * [pytest.approx(moved[0], rel=1e-5)]


def test_an_update_of_amp_that_overflows_is_skipped_and_halves_the_scale():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = ScaledOnCpu(torch.optim.SGD([parameter], lr=1.0), scaler(8.0))
    assert optimizer.update(parameter, torch.inf).isinf() and parameter.item() == 0
    assert optimizer.scaler.get_scale() == 4.0
    assert optimizer.update(parameter, 3.0) == 3 and parameter.item() == -3


class NotingScaler:
    """What fairseq calls of a scaler of any version of torch."""

    def __init__(self):
        self.calls = []

    def scale(self, loss):
        return loss

    def unscale_(self, optimizer):
        self.calls.append(("unscale_", optimizer))

    def step(self, optimizer):
        self.calls.append(("step", optimizer))

    def update(self):
        self.calls.append(("update", None))


def test_the_scaler_steps_with_the_optimizer_that_it_has_unscaled():
    parameter = torch.nn.Parameter(torch.zeros(1))
    torchs = torch.optim.SGD([parameter], lr=1.0)
    optimizer = ScaledOnCpu(torchs, NotingScaler())
    optimizer.update(parameter, 3.0)
    assert optimizer.scaler.calls == [("unscale_", torchs), ("step", torchs), ("update", None)]
