import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moec_fairseq.moe.clusters import ExpertClusters
from moec_fairseq.moe.router import INITIAL_TEMPERATURE, Router, replace_non_finite

from .stubs import quick, randomise

ALL = torch.arange(4)


def router(score: str = "cosine", reduced_dim: int = 3, fp32: bool = True) -> Router:
    """Return a router of 4 experts for tokens of dimension 5."""
    made = Router(5, ExpertClusters(4, 2), score, reduced_dim, fp32)
    randomise(made)
    return made


def router_with(experts: list[list[float]], score: str, temperature: float = INITIAL_TEMPERATURE) -> Router:
    """Return a router without reduction that has these expert embeddings."""
    made = Router(len(experts[0]), ExpertClusters(len(experts), 1), score, reduced_dim=0)
    with torch.no_grad():
        made.expert_embeddings_NK.copy_(torch.tensor(experts))
        made.temperature.fill_(temperature)
    return made


def naive_score(score: str, token: list[float], expert: list[float]) -> float:
    dot = sum(x * y for x, y in zip(token, expert, strict=True))
    return dot if score == "dot" else dot / (max(math.hypot(*token), 1e-4) * max(math.hypot(*expert), 1e-4))


@pytest.mark.parametrize("score", ["cosine", "dot"])
@pytest.mark.parametrize("reduced_dim", [0, 3])
def test_scores_against_a_naive_reference(score, reduced_dim):
    made, tokens = router(score, reduced_dim).double(), torch.randn(6, 5, dtype=torch.float64)
    reduced = [
        [sum(w * h for w, h in zip(row, token, strict=True)) for row in made.query_proj.weight.tolist()]
        if reduced_dim
        else token
        for token in tokens.tolist()
    ]
    expected = [
        [naive_score(score, token, expert) for expert in made.expert_embeddings_NK.tolist()] for token in reduced
    ]
    routing = made(tokens, ALL)
    torch.testing.assert_close(routing.scores_TS, torch.tensor(expected, dtype=torch.float64))
    assert routing.expert_T.tolist() == [max(range(4), key=row.__getitem__) for row in expected]
    alpha = [1 / (1 + math.exp(-max(row) / made.temperature.item())) for row in expected]
    torch.testing.assert_close(routing.gate_T, torch.tensor(alpha, dtype=torch.float64))


def test_cosine_by_hand():
    # cos((3, 4), (1, 0)) = 3/5 and cos((3, 4), (0, 10)) = 4/5
    routing = router_with([[1, 0], [0, 10]], "cosine")(torch.tensor([[3.0, 4.0]]), torch.arange(2))
    torch.testing.assert_close(routing.scores_TS, torch.tensor([[0.6, 0.8]]))
    assert routing.expert_T.tolist() == [1]


def test_norms_are_floored():
    # |(3e-5, 4e-5)| = 5e-5 counts as 1e-4, so the cosines are halved
    routing = router_with([[1, 0], [0, 1]], "cosine")(torch.tensor([[3e-5, 4e-5], [0.0, 0.0]]), torch.arange(2))
    torch.testing.assert_close(routing.scores_TS, torch.tensor([[0.3, 0.4], [0.0, 0.0]]))


@pytest.mark.parametrize(
    "temperature, token, alpha",
    [
        (0.5, 2.0, 0.98201379),  # sigmoid(2 / 0.5) = sigmoid(4)
        (0.07, 0.07, 0.73105858),  # sigmoid(1), at the initial temperature
        (1e-6, 1e-4, 0.73105858),  # below the floor: sigmoid(1e-4 / 1e-4)
        (-3.0, 2e-4, 0.88079708),  # sigmoid(2e-4 / 1e-4)
        (0.5, 0.0, 0.5),
    ],
)
def test_mixing_weight_by_hand(temperature, token, alpha):
    routing = router_with([[1], [-1]], "dot", temperature)(torch.tensor([[token]]), torch.arange(2))
    assert routing.gate_T.tolist() == pytest.approx([alpha], rel=1e-5)


def test_initial_values():
    made = Router(16, ExpertClusters(8, 2), reduced_dim=12)
    assert made.temperature.tolist() == pytest.approx([0.07])
    # orthogonal with gain 0.1: E·Eᵀ = 0.01·I
    torch.testing.assert_close(made.expert_embeddings_NK @ made.expert_embeddings_NK.t(), 0.01 * torch.eye(8))
    assert made.query_proj.weight.shape == (12, 16) and made.query_proj.bias is None
    assert Router(16, ExpertClusters(8, 2), reduced_dim=0).query_proj is None


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    "scores, expected",
    [
        ([[1.0, NAN], [INF, -2.0]], [[1.0, -2.0], [-2.0, -2.0]]),
        ([[-INF, 3.0]], [[3.0, 3.0]]),
        ([[NAN, INF], [-INF, NAN]], [[0.0, 0.0], [0.0, 0.0]]),
        ([[1.0, -1.0]], [[1.0, -1.0]]),
    ],
)
def test_non_finite_scores_become_the_smallest_finite_one(scores, expected):
    assert replace_non_finite(torch.tensor(scores)).tolist() == expected


@pytest.mark.parametrize("score", ["cosine", "dot"])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_broken_token_is_assigned_and_changes_no_other(score, bad):
    made, tokens = router(score), torch.randn(3, 5)
    broken = tokens.clone()
    broken[1] = bad
    routing, expected = made(broken, ALL), made(tokens, ALL)
    assert routing.scores_TS.isfinite().all() and routing.gate_T.isfinite().all()
    assert 0 <= routing.expert_T[1] < 4
    assert routing.expert_T[[0, 2]].tolist() == expected.expert_T[[0, 2]].tolist()
    assert torch.equal(routing.gate_T[[0, 2]], expected.gate_T[[0, 2]])


@quick
@given(st.sets(st.integers(0, 3), min_size=1), st.sampled_from(["cosine", "dot"]), st.integers(0, 1000))
def test_dropped_experts_are_never_chosen(active, score, seed):
    made = router(score)
    tokens = torch.randn(9, 5, generator=torch.Generator().manual_seed(seed))
    active_ids_S = torch.tensor(sorted(active))
    routing = made(tokens, active_ids_S)
    scores_TN = made(tokens, ALL).scores_TS
    torch.testing.assert_close(routing.scores_TS, scores_TN[:, active_ids_S])
    assert torch.equal(routing.expert_T, active_ids_S[scores_TN[:, active_ids_S].argmax(dim=-1)])
    assert set(routing.expert_T.tolist()) <= active


def test_dropped_experts_get_no_gradient():
    made = router()
    routing = made(torch.randn(9, 5), torch.tensor([0, 3]))
    (routing.scores_TS.square().sum() + routing.gate_T.sum()).backward()
    assert [bool(row.any()) for row in made.expert_embeddings_NK.grad] == [True, False, False, True]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_arithmetic_is_fp32_in_a_model_of_lower_precision(dtype):
    low, tokens = router().to(dtype), torch.randn(50, 5).to(dtype)
    routing = low(tokens, ALL)
    assert routing.scores_TS.dtype == routing.gate_T.dtype == torch.float32
    # the same values, held in fp32 from the start
    expected = low.float()(tokens.float(), ALL)
    assert torch.equal(routing.scores_TS, expected.scores_TS)
    assert torch.equal(routing.gate_T, expected.gate_T)


@pytest.mark.parametrize("score", ["cosine", "dot"])
def test_autocast_does_not_lower_the_precision(score):
    made, tokens = router(score), torch.randn(50, 5)
    expected = made(tokens, ALL)
    with torch.autocast("cpu", torch.bfloat16):
        routing = made(tokens, ALL)
    assert routing.scores_TS.dtype == torch.float32
    assert torch.equal(routing.scores_TS, expected.scores_TS)
    assert torch.equal(routing.gate_T, expected.gate_T)


def test_float64_stays_float64():
    assert router().double()(torch.randn(2, 5, dtype=torch.float64), ALL).scores_TS.dtype == torch.float64


def test_fp32_can_be_switched_off():
    tokens = torch.randn(50, 5)
    assert router(fp32=False).bfloat16()(tokens.bfloat16(), ALL).scores_TS.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert router(fp32=False)(tokens, ALL).scores_TS.dtype == torch.bfloat16
    assert torch.equal(router(fp32=False)(tokens, ALL).scores_TS, router()(tokens, ALL).scores_TS)


def test_empty_batch():
    routing = router()(torch.empty(0, 5), ALL)
    assert routing.scores_TS.shape == (0, 4) and routing.expert_T.shape == routing.gate_T.shape == (0,)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"score": "euclid"}, "--moec-router is 'euclid'; choose one of cosine, dot"),
        ({"reduced_dim": -1}, "--moec-router-dim is -1; give the router's dimension, or 0 for the model dimension 5"),
    ],
)
def test_bad_options_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        Router(5, ExpertClusters(4, 2), **options)
