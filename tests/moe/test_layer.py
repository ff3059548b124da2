import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moec_fairseq.moe.expert_dropout import ExpertDropout
from moec_fairseq.moe.segments import Segments

from .stubs import quick, randomise, real_layer, stub_layer


def run(layer, hidden, mask=None):
    """Return (output, the one record of the pass)."""
    with layer.collector.collect() as records:
        output = layer(hidden, mask)
    (record,) = records
    return output, record


def test_answer_by_hand():
    # Tokens 1 … 4 go round-robin to experts that multiply by 2 and by 10; α = 1/4:
    # 1/4·2·1 + 3/4·1 = 1.25, 1/4·10·2 + 3/4·2 = 6.5, 1/4·2·3 + 3/4·3 = 3.75, 1/4·10·4 + 3/4·4 = 13
    layer = stub_layer(choices=[0, 1], factors=[2.0, 10.0], alpha=0.25)
    output, record = run(layer, torch.tensor([1.0, 2.0, 3.0, 4.0]).view(4, 1, 1))
    assert output.flatten().tolist() == [1.25, 6.5, 3.75, 13.0]
    assert output.shape == (4, 1, 1)
    assert record.tokens_per_expert_N.tolist() == [2, 2]
    assert record.overflow == 0


def test_answer_by_hand_with_padding():
    # Positions × sentences, sentence 1 has one token only; round-robin over the tokens 1, 2, 3, 5 in this order.
    hidden = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]).unsqueeze(-1)
    mask = torch.tensor([[False, False, False], [False, True, True]])
    output, record = run(stub_layer([0, 1], [2.0, 10.0], alpha=0.5), hidden, mask)
    # 1.5·1, 5.5·2; 1.5·3, padding 4; 5.5·5, padding 6
    assert output.squeeze(-1).tolist() == [[1.5, 11.0], [4.5, 4.0], [27.5, 6.0]]
    assert record.tokens_per_expert_N.tolist() == [2, 2]


def test_capacity_only_while_training():
    # All four tokens want expert 1; 0.5 · 4 tokens = 2 fit in, the others pass through.
    layer = stub_layer([1], [2.0, 10.0], alpha=1.0, capacity_factor=0.5)
    hidden = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(4, 1, 1)
    output, record = run(layer.train(), hidden)
    assert output.flatten().tolist() == [10.0, 20.0, 3.0, 4.0]
    assert record.tokens_per_expert_N.tolist() == [0, 4]
    assert record.overflow == 2
    output, record = run(layer.eval(), hidden)
    assert output.flatten().tolist() == [10.0, 20.0, 30.0, 40.0]
    assert record.overflow == 0


@pytest.mark.parametrize(
    "factor, tokens, accepted",
    # at most factor · tokens, but never nothing
    [(0.5, 5, 2), (0.5, 1, 1), (0.01, 5, 1), (0.25, 8, 2), (1.0, 5, 5), (2.0, 5, 5), (0.1, 30, 3)],
)
def test_capacity_counts(factor, tokens, accepted):
    layer = stub_layer([0], [10.0, 1.0], alpha=1.0, capacity_factor=factor)
    output, record = run(layer, torch.ones(tokens, 1, 1))
    assert output.flatten().tolist() == [10.0] * accepted + [1.0] * (tokens - accepted)
    assert record.overflow == tokens - accepted


def test_capacity_does_not_count_padding():
    # Two tokens and six paddings: an expert takes 0.5 · 2 = 1 token.
    layer = stub_layer([0], [10.0, 1.0], alpha=1.0, capacity_factor=0.5)
    mask = torch.tensor([[False, False] + [True] * 6])
    output, record = run(layer, torch.ones(8, 1, 1), mask)
    assert output.flatten().tolist() == [10.0] + [1.0] * 7
    assert record.overflow == 1


def test_a_new_layer_is_the_identity(both_experts):
    layer = real_layer()
    torch.nn.init.zeros_(layer.experts.sublayers[0].w2_NDF)
    torch.nn.init.zeros_(layer.experts.sublayers[0].b2_ND)
    torch.nn.init.zeros_(layer.experts.sublayers[1].w2_NDF)
    torch.nn.init.zeros_(layer.experts.sublayers[1].b2_ND)
    hidden = torch.randn(3, 2, 4)
    assert torch.equal(layer(hidden), hidden)


@quick
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.integers(1, 3),
    st.sampled_from([0.0, 1e9, math.nan]),
    st.booleans(),
    st.booleans(),
)
def test_padding_changes_nothing(lengths, extra, garbage, training, on_the_left):
    """Sentences of these lengths, once padded to the longest, once by some more: the same at every real position."""
    layer = real_layer(capacity_factor=0.5, dropout=ExpertDropout(0.5)).train(training)
    longest = max(lengths)
    hidden = torch.randn(longest, len(lengths), 4, generator=torch.Generator().manual_seed(sum(lengths)))
    mask = torch.arange(longest) >= torch.tensor(lengths).unsqueeze(1)
    more = torch.full((extra, len(lengths), 4), garbage)
    more_mask = torch.ones(len(lengths), extra, dtype=torch.bool)
    padded = torch.cat([more, hidden] if on_the_left else [hidden, more])
    padded_mask = torch.cat([more_mask, mask] if on_the_left else [mask, more_mask], dim=1)

    output, record = run(layer, hidden, mask)
    padded_output, padded_record = run(layer, padded, padded_mask)

    real = padded_output[extra:] if on_the_left else padded_output[:longest]
    assert torch.equal(real, output)
    padding = padded_mask.t()
    assert torch.equal(padded_output[padding].nan_to_num(7.0), padded[padding].nan_to_num(7.0))
    assert torch.equal(padded_record.routing.scores_TS, record.routing.scores_TS)
    assert torch.equal(padded_record.routing.expert_T, record.routing.expert_T)
    assert torch.equal(padded_record.tokens_per_expert_N, record.tokens_per_expert_N)
    assert padded_record.overflow == record.overflow
    assert record.tokens_per_expert_N.sum() == sum(lengths)


def test_a_mask_without_padding_is_no_mask():
    layer, hidden = real_layer().eval(), torch.randn(3, 2, 4)
    assert torch.equal(layer(hidden, torch.zeros(2, 3, dtype=torch.bool)), layer(hidden))


def test_batch_composition_changes_nothing_at_evaluation():
    layer, hidden = real_layer().eval(), torch.randn(5, 3, 4)
    alone = torch.cat([layer(hidden[:, [b]]) for b in range(3)], dim=1)
    torch.testing.assert_close(layer(hidden), alone)


def test_against_the_equation(both_experts):
    """y = α·E(h) + (1 − α)·h, token by token, with the real parts."""
    torch.manual_seed(1)  # with which not all tokens go to one expert
    layer = real_layer().double().eval()
    tokens = torch.randn(7, 4, dtype=torch.float64)
    routing = layer.router(tokens, torch.arange(4))
    for t, (h, expert, alpha) in enumerate(zip(tokens, routing.expert_T, routing.gate_T, strict=True)):
        expert_output = h + layer.experts(h.unsqueeze(0), Segments(expert.view(1), 4))[0]
        expected = alpha * expert_output + (1 - alpha) * h
        torch.testing.assert_close(layer(tokens.unsqueeze(1))[t, 0], expected)
    assert len(set(routing.expert_T.tolist())) > 1


def test_expert_dropout_only_while_training_and_redrawn_by_updates():
    dropout = ExpertDropout(0.5, interval=250)
    layer, hidden = real_layer(dim=4, experts=16, clusters=2, dropout=dropout, layer_index=3), torch.randn(9, 2, 4)

    def active():
        record = run(layer, hidden)[1]
        assert set(record.routing.expert_T.tolist()) <= set(record.routing.active_ids_S.tolist())
        return tuple(record.routing.active_ids_S.tolist())

    first = active()
    assert first == dropout.active_ids(layer.router.clusters, layer_index=3, update=0)
    assert len(first) == 8
    assert active() == first  # a forward pass is not an update
    layer.set_num_updates(249)
    assert active() == first
    layer.set_num_updates(250)
    second = active()
    assert second == dropout.active_ids(layer.router.clusters, layer_index=3, update=250) != first
    layer.eval()
    assert active() == tuple(range(16))
    layer.train()
    assert active() == second


def test_dropped_experts_get_no_gradient(both_experts):
    layer = real_layer(dropout=ExpertDropout(0.5))
    active = layer.active_experts(torch.device("cpu"))[0].tolist()
    layer(torch.randn(50, 2, 4)).square().sum().backward()
    for parameter in [layer.router.expert_embeddings_NK, *layer.experts.parameters()]:
        assert {i for i, own in enumerate(parameter.grad) if own.any()} == set(active)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("score", ["cosine", "dot"])
@pytest.mark.parametrize("capacity_factor", [2.0, 0.3])
def test_gradcheck_through_the_whole_layer(score, masked, capacity_factor, both_experts):
    layer = real_layer(dim=3, score=score, reduced_dim=2, capacity_factor=capacity_factor).double()
    names, parameters = zip(*layer.named_parameters(), strict=True)
    source = torch.Generator().manual_seed(1)
    hidden = torch.randn(4, 2, 3, generator=source, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[False] * 4, [False, True, True, True]]) if masked else None

    def forward(hidden, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (hidden, mask))

    assert torch.autograd.gradcheck(forward, (hidden, *parameters), fast_mode=True)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [(3, 2), (0, 2)])
def test_a_batch_without_tokens(size, training, both_experts):
    layer = real_layer().train(training)
    hidden = torch.randn(*size, 4, requires_grad=True)
    output, record = run(layer, hidden, torch.ones(size[1], size[0], dtype=torch.bool))
    assert torch.equal(output, hidden)
    assert record.tokens_per_expert_N.tolist() == [0, 0, 0, 0]
    assert record.overflow == 0
    output.sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name


@pytest.mark.parametrize("training", [True, False])
def test_one_token(training):
    layer = real_layer(capacity_factor=0.1).train(training)
    output, record = run(layer, torch.randn(1, 1, 4))
    assert output.shape == (1, 1, 4)
    assert record.tokens_per_expert_N.sum() == 1
    assert record.overflow == 0


@pytest.mark.parametrize("score", ["cosine", "dot"])
@pytest.mark.parametrize("training", [True, False])
def test_nan_in_hidden_states_is_seen_in_the_output_and_nowhere_else(score, training):
    layer = real_layer(score=score).train(training)
    hidden = torch.randn(4, 2, 4)
    broken = hidden.clone()
    broken[2, 1, 0] = math.nan
    output = layer(broken)
    is_nan = output.isnan().any(dim=-1)
    assert is_nan.nonzero().tolist() == [[2, 1]]
    torch.testing.assert_close(output[~is_nan], layer(hidden)[~is_nan])


def test_only_nan():
    layer = real_layer()
    output = layer(torch.full((2, 2, 4), math.nan))
    assert output.isnan().all()
    output.sum().backward()


def test_the_input_is_not_changed():
    layer, hidden = real_layer(), torch.randn(3, 2, 4)
    before = hidden.clone()
    layer(hidden, torch.tensor([[False, False, True], [False, False, False]]))
    assert torch.equal(hidden, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [True, False])
def test_lower_precision(dtype, training):
    layer, hidden = real_layer().train(training), torch.randn(5, 2, 4).to(dtype)
    output, record = run(layer.to(dtype), hidden, torch.tensor([[False] * 5, [False] * 2 + [True] * 3]))
    assert output.dtype == dtype
    assert record.routing.scores_TS.dtype == torch.float32
    expected = layer.float()(hidden.float(), torch.tensor([[False] * 5, [False] * 2 + [True] * 3]))
    torch.testing.assert_close(output.float(), expected, rtol=0.05, atol=0.1)


def test_autocast(both_experts):
    layer, hidden = real_layer(), torch.randn(5, 2, 4)
    expected, expected_record = run(layer, hidden)
    with torch.autocast("cpu", torch.bfloat16):
        output, record = run(layer, hidden)
    assert output.dtype == torch.float32
    assert torch.equal(record.routing.expert_T, expected_record.routing.expert_T)
    torch.testing.assert_close(output, expected, rtol=0.05, atol=0.1)


def test_routing_is_recorded_only_while_somebody_collects():
    layer = real_layer(layer_index=5)
    layer(torch.randn(2, 1, 4))
    with layer.collector.collect() as records:
        layer(torch.randn(2, 1, 4))
    layer(torch.randn(2, 1, 4))
    assert [record.layer_index for record in records] == [5]


def test_a_checkpoint_restores_the_output():
    layer, other, hidden = real_layer(), real_layer(), torch.randn(3, 2, 4)
    randomise(other, seed=1)
    assert not torch.equal(other(hidden), layer(hidden))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(hidden), layer(hidden))


@pytest.mark.parametrize("factor", [0.0, -1.0, math.nan, math.inf])
def test_bad_capacity_is_rejected(factor):
    with pytest.raises(
        ValueError, match=f"--moe-capacity-factor is {factor}, but must be .*above 0.*2 is the published"
    ):
        real_layer(capacity_factor=factor)
