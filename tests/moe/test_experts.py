import pytest
import torch
from torch.nn import functional as F

from moec_fairseq.moe import experts as experts_module
from moec_fairseq.moe import grouped
from moec_fairseq.moe.experts import Experts
from moec_fairseq.moe.ways import WAYS

from .stubs import grouped_mm_by_loop, randomise, segments_of


def naive_expert(experts: Experts, number: int, x: torch.Tensor) -> torch.Tensor:
    """One token through one expert, written from the definition x ← x + W2·act(W1·LayerNorm(x))."""
    for block in experts.sublayers:
        normed = x
        if block.norm_weight_ND is not None:
            centred = x - x.mean()
            normed = centred / (centred.square().mean() + 1e-5).sqrt()
            normed = normed * block.norm_weight_ND[number] + block.norm_bias_ND[number]
        hidden = torch.relu(block.w1_NFD[number] @ normed + block.b1_NF[number])
        x = x + block.w2_NDF[number] @ hidden + block.b2_ND[number]
    return x


@pytest.mark.parametrize("sublayers", [1, 3])
def test_a_new_expert_is_the_identity(sublayers, every_way):
    tokens = torch.randn(5, 4)
    assert torch.equal(Experts(3, 4, 8, sublayers)(tokens, segments_of([2, 0, 3])), torch.zeros(5, 4))


@pytest.mark.parametrize("counts", [[2, 0, 3], [0, 0, 5], [5, 0, 0], [1, 3, 1]])
@pytest.mark.parametrize("sublayers, norm", [(1, True), (3, True), (2, False)])
def test_against_a_naive_loop_over_tokens(counts, sublayers, norm, every_way):
    experts = Experts(3, 4, 6, sublayers, norm=norm).double()
    randomise(experts)
    tokens = torch.randn(5, 4, dtype=torch.float64)
    owner = [number for number, count in enumerate(counts) for _ in range(count)]
    expected = torch.stack([naive_expert(experts, n, x) for n, x in zip(owner, tokens, strict=True)])
    torch.testing.assert_close(tokens + experts(tokens, segments_of(counts)), expected)


def test_the_activation_is_used(every_way):
    experts = Experts(1, 4, 6, activation=F.gelu)
    randomise(experts)
    block, x = experts.sublayers[0], torch.randn(2, 4)
    normed = F.layer_norm(x, (4,), block.norm_weight_ND[0], block.norm_bias_ND[0])
    expected = x + F.gelu(normed @ block.w1_NFD[0].t() + block.b1_NF[0]) @ block.w2_NDF[0].t() + block.b2_ND[0]
    torch.testing.assert_close(x + experts(x, segments_of([2])), expected)


def test_experts_without_tokens_get_a_zero_gradient(every_way):
    experts = Experts(3, 4, 6, sublayers=2)
    randomise(experts)
    experts(torch.randn(5, 4), segments_of([2, 0, 3])).square().sum().backward()
    for name, parameter in experts.named_parameters():
        assert [bool(own.any()) for own in parameter.grad] == [True, False, True], name


def test_all_parameters_get_a_gradient_from_an_empty_batch(every_way):
    experts = Experts(3, 4, 6, sublayers=2)
    randomise(experts)
    outputs = experts(torch.empty(0, 4, requires_grad=True), segments_of([0, 0, 0]))
    assert outputs.shape == (0, 4)
    outputs.sum().backward()
    for name, parameter in experts.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name


@pytest.mark.parametrize("way", WAYS)
def test_dropout_inside_the_experts(way, monkeypatch):
    monkeypatch.setattr(experts_module, "choose", lambda work, segments: way)
    monkeypatch.setattr(grouped, "grouped_mm", grouped_mm_by_loop)
    experts = Experts(2, 4, 1000, activation=torch.ones_like, activation_dropout=0.25)  # every hidden unit is 1
    torch.nn.init.ones_(experts.sublayers[0].w2_NDF)
    tokens, segments = torch.zeros(50, 4), segments_of([20, 30])
    assert torch.equal(experts.eval()(tokens, segments), torch.full((50, 4), 1000.0))
    outputs = experts.train()(tokens, segments).detach()
    # three quarters of the units are left, multiplied by 4/3; others for each token
    assert outputs.mean() == pytest.approx(1000, rel=0.02) and len(outputs[:, 0].unique()) > 10
    torch.testing.assert_close(outputs * 0.75, (outputs * 0.75).round(), rtol=0, atol=1e-2)


def test_no_dropout_draws_nothing():
    experts = Experts(2, 4, 6)
    before = torch.get_rng_state()
    experts(torch.randn(5, 4, generator=torch.Generator()), segments_of([2, 3]))
    assert torch.equal(torch.get_rng_state(), before)


def test_experts_start_different():
    w1 = Experts(2, 4, 6).sublayers[0].w1_NFD
    assert not torch.equal(w1[0], w1[1])
    assert 0.3 < w1.abs().max() <= 0.5  # uniform in ±1/√4


@pytest.mark.parametrize(
    "options, message",
    [
        ({"sublayers": 0}, "--moec-sublayers is 0, but an expert needs 1 block or more"),
        ({"activation_dropout": 1.0}, "--moec-activation-dropout is 1.0, but must be 0 or more, and below 1"),
        ({"ffn_dim": 0}, "--moec-expert-ffn-embed-dim is 0, but an expert needs 1 hidden unit or more"),
    ],
)
def test_bad_sizes_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        Experts(**{"num_experts": 2, "dim": 4, "ffn_dim": 4, **options})
