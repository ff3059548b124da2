"""What experts are worth: by a model whose routers are set by hand, on data that this test has made."""

import pytest
import torch

from moec_fairseq.checkpoint.fewer_experts import take_experts
from moec_fairseq.checkpoint.state import load_state
from moec_fairseq.evaluate.routing import ModelOnData
from moec_fairseq.evaluate.worth import inheritances, losses_without, similarities
from tests.routed import DECODER, ENCODER, EXPERT, write_model
from tests.whole_trainings import write_corpus


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    corpus = write_corpus(tmp_path_factory.mktemp("corpus"), 40)
    return write_model(tmp_path_factory.mktemp("model"), corpus)


def test_the_increase_of_the_loss_is_that_of_the_model_without_the_expert(model, tmp_path):
    increases = losses_without(ModelOnData(model, cpu=True), "valid")
    assert increases[ENCODER][1:].tolist() == [0, 0, 0] and increases[DECODER][1:3].tolist() == [0, 0]
    whole = ModelOnData(model, cpu=True).loss("valid")
    for layer, expert in ((ENCODER, 0), (DECODER, 0), (DECODER, 3)):
        state = load_state(model)
        for other in (ENCODER, DECODER):  # in the other layer, one that has no tokens
            gone = expert if other == layer else 1
            take_experts(state["model"], other, [number for number in range(4) if number != gone])
        state["cfg"]["model"].update(moe_expert_count=3, moec_cluster_count=1)
        torch.save(state, tmp_path / "three.pt")
        found = ModelOnData(tmp_path / "three.pt", cpu=True).loss("valid") - whole
        assert increases[layer][expert] == pytest.approx(found, abs=1e-6) and abs(found) > 1e-5


def test_heirs_are_where_tokens_would_go(model):
    run = ModelOnData(model, cpu=True)
    loads = run.loads("valid")
    tokens_NK = inheritances(run, "valid", {ENCODER: [1, 2], DECODER: [0, 3]})
    assert tokens_NK[ENCODER].tolist() == [[int(loads[ENCODER][0]), 0], [0, 0], [0, 0], [0, 0]]  # of equal, the first
    assert tokens_NK[DECODER].tolist() == [[int(loads[DECODER][0]), 0], [0, 0], [0, 0], [0, int(loads[DECODER][3])]]


def test_similarities_of_experts_by_hand(model, tmp_path):
    """The decoder's expert 1 computes what expert 0 does, expert 2 the opposite, and expert 3 nothing."""
    state = load_state(model)
    expert = EXPERT.format(DECODER)
    for name, value in state["model"].items():
        if name.startswith(expert):
            value[1:3] = value[0]
    for last in ("w2_NDF", "b2_ND"):
        state["model"][expert + last][2] *= -1
        state["model"][expert + last][3] = 0
    torch.save(state, tmp_path / "alike.pt")
    cosine_NN = similarities(ModelOnData(tmp_path / "alike.pt", cpu=True), "valid")[DECODER]
    expected = torch.tensor([[1.0, 1, -1, 0], [1, 1, -1, 0], [-1, -1, 1, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(cosine_NN, expected, rtol=0, atol=1e-5)
