"""Experts that go: from a small model whose routers are set by hand, on data that this test has made."""

import csv

import pytest
import torch
from fairseq.checkpoint_utils import load_model_ensemble_and_task
from hypothesis import given
from hypothesis import strategies as st

from moec_fairseq.__main__ import run
from moec_fairseq.checkpoint.fewer_experts import Choice, merge_experts, of_least, of_most_similar, take_experts
from moec_fairseq.checkpoint.state import load_state
from moec_fairseq.checkpoint.tools import reshard
from moec_fairseq.evaluate.routing import ModelOnData
from moec_fairseq.evaluate.worth import inheritances, losses_without
from moec_fairseq.moe.clusters import ExpertClusters
from tests.moe.stubs import quick
from tests.texts import MASKED_LM, SPARSE, write_text
from tests.whole_trainings import train, write_corpus

ENCODER, DECODER = "encoder.layers.0.moe", "decoder.layers.0.moe"
ROUTER = "{}.router.expert_embeddings_NK"
EXPERT = "{}.experts.sublayers.0."
CLUSTERS = ExpertClusters(4, 2)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), 40)


@pytest.fixture(scope="module")
def model(corpus, tmp_path_factory):
    """Encoder: every token goes to expert 0; decoder: to 0 or 3, by the sign of a score. No expert is the identity."""
    folder = tmp_path_factory.mktemp("model")
    flags = ("--max-tokens", 200, "--moe-expert-count", 4, "--moec-expert-dropout", 0, "--disable-validation")
    train(corpus, folder, *flags, max_update=1)
    state = load_state(folder / "checkpoint_last.pt")
    torch.manual_seed(1)
    for name, value in state["model"].items():
        if ".experts." in name:
            value += 0.3 * torch.randn(value.shape)
    encoder, decoder = (state["model"][ROUTER.format(layer)] for layer in (ENCODER, DECODER))
    encoder[:] = 1  # of equal scores, the first
    decoder[0], decoder[3] = 1, -1
    decoder[1:3] = 0
    torch.save(state, folder / "set.pt")
    return folder / "set.pt"


def prune(model, out, *options):
    run(["checkpoint", "prune", model, "--cpu", "--out", out, *options])
    return load_state(out)


def output(path):
    (model,), _, _ = load_model_ensemble_and_task([str(path)])
    torch.manual_seed(2)
    tokens, prefix = torch.randint(4, 14, (6, 9)), torch.randint(4, 14, (6, 7))
    with torch.no_grad():
        return model.eval()(tokens, torch.full((6,), 9), prefix)[0]


def test_all_experts_are_the_same_bit_for_bit(model, tmp_path):
    state, before = prune(model, tmp_path / "all.pt", "--keep", 4), load_state(model)
    assert list(state["model"]) == list(before["model"]) and state["cfg"] == before["cfg"]
    assert all(torch.equal(state["model"][name], value) for name, value in before["model"].items())
    assert "last_optimizer_state" in before and "last_optimizer_state" not in state


def test_experts_without_tokens_go_first_and_nothing_changes(model, tmp_path, capsys):
    state, before = prune(model, tmp_path / "half.pt", "--keep", 2), load_state(model)
    shown = capsys.readouterr().out
    assert f"{ENCODER}: 0, 2\n" in shown and f"{DECODER}: 0, 3\n" in shown  # of equal ones, the first stays
    for layer, kept in ((ENCODER, [0, 2]), (DECODER, [0, 3])):
        for name in (ROUTER.format(layer), EXPERT.format(layer) + "w1_NFD", EXPERT.format(layer) + "norm_bias_ND"):
            assert torch.equal(state["model"][name], before["model"][name][kept])
    torch.testing.assert_close(output(tmp_path / "half.pt"), output(model), rtol=0, atol=1e-6)
    options = state["cfg"]["model"]
    assert (options["moe_expert_count"], options["moec_cluster_count"]) == (2, 2)
    # a cluster of one expert has no variance, and nothing to drop
    assert (state["cfg"]["criterion"]["moec_variance"], options["moec_expert_dropout"]) == ("none", 0)
    assert "model.moe_expert_count=2 model.moec_cluster_count=2" in shown


def test_a_smaller_model_trains_on(model, corpus, tmp_path):
    prune(model, tmp_path / "half.pt", "--share", 0.6)
    flags = ("--moe-expert-count", 2, "--moec-cluster-count", 2, "--moec-variance", "none", "--max-tokens", 200)
    start = ("--finetune-from-model", tmp_path / "half.pt", "--lr", 0, "--optimizer", "sgd", "--no-epoch-checkpoints")
    train(corpus, tmp_path / "on", *flags, *start, max_update=1)
    validated = load_state(tmp_path / "on" / "checkpoint_last.pt")["extra_state"]["val_loss"]
    assert validated == pytest.approx(ModelOnData(model, cpu=True).loss("valid"), abs=1e-3)


def test_ranks_and_one_expert(model, tmp_path, capsys):
    reshard(model, 2, str(tmp_path / "two"))
    state = prune(tmp_path / "two.pt", tmp_path / "one.pt", "--keep", 1)
    loads = ModelOnData(model, cpu=True).loads("valid")[DECODER]
    best = 0 if loads[0] >= loads[3] else 3
    assert torch.equal(
        state["model"][ROUTER.format(DECODER)][0], load_state(model)["model"][ROUTER.format(DECODER)][best]
    )
    assert state["cfg"]["model"]["moe_expert_count"] == state["cfg"]["model"]["moec_cluster_count"] == 1
    assert output(tmp_path / "one.pt").isfinite().all()


def test_similar_experts_go_first(model, tmp_path, capsys):
    state = load_state(model)
    for name, value in state["model"].items():
        if name.startswith(EXPERT.format(DECODER)):
            value[2] = value[1]  # the same outputs; neither has tokens
        if name.startswith(EXPERT.format(ENCODER)):
            value[3] = value[0]  # 0 has all tokens
    torch.save(state, tmp_path / "alike.pt")
    prune(tmp_path / "alike.pt", tmp_path / "three.pt", "--keep", 3, "--by", "similarity", "--scope", "layer")
    shown = capsys.readouterr().out
    assert f"{ENCODER}: 0, 1, 2\n" in shown and f"{DECODER}: 0, 1, 3\n" in shown


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


def test_the_least_increase_of_the_loss_goes_first(model, tmp_path, capsys):
    increase_N = losses_without(ModelOnData(model, cpu=True), "valid")[DECODER]
    prune(model, tmp_path / "one.pt", "--keep", 1, "--by", "loss", "--scope", "layer")
    assert f"{DECODER}: {int(increase_N.argmax())}\n" in capsys.readouterr().out


def test_heirs_are_where_tokens_would_go(model):
    run = ModelOnData(model, cpu=True)
    loads = run.loads("valid")
    tokens_NK = inheritances(run, "valid", {ENCODER: [1, 2], DECODER: [0, 3]})
    assert tokens_NK[ENCODER].tolist() == [[int(loads[ENCODER][0]), 0], [0, 0], [0, 0], [0, 0]]  # of equal, the first
    assert tokens_NK[DECODER].tolist() == [[int(loads[DECODER][0]), 0], [0, 0], [0, 0], [0, int(loads[DECODER][3])]]


def made(values):
    """Parameters of a layer of experts with one hidden unit in one dimension."""
    column = torch.tensor(values)
    names = {"w1_NFD": (-1, 1, 1), "b1_NF": (-1, 1), "w2_NDF": (-1, 1, 1), "b2_ND": (-1, 1)}
    found = {f"x.experts.sublayers.0.{name}": column.view(*shape) for name, shape in names.items()}
    return found | {"x.router.expert_embeddings_NK": column.view(-1, 1), "y": column}


def test_experts_are_averaged_by_their_tokens():
    model = made([1.0, 5.0, 9.0, 7.0])
    # 1 has 3 tokens of its own and gets one of expert 0; expert 2 has none; 3 stays as it is
    merge_experts(model, "x", [1, 3], torch.tensor([[1, 0], [3, 0], [0, 0], [0, 6]]))
    expected = [1.0, 4.0, 9.0, 7.0]
    assert all(value.flatten().tolist() == expected for name, value in model.items() if name != "y")
    assert model["y"].tolist() == [1, 5, 9, 7]


def test_hidden_units_in_another_order_are_the_same_expert(model, tmp_path):
    parameters = load_state(model)["model"]
    expert, order = EXPERT.format(DECODER), torch.randperm(16)
    for name, value in parameters.items():
        if name.startswith(expert):
            value[1] = value[0]
    parameters[expert + "w1_NFD"][1] = parameters[expert + "w1_NFD"][0, order]
    parameters[expert + "b1_NF"][1] = parameters[expert + "b1_NF"][0, order]
    parameters[expert + "w2_NDF"][1] = parameters[expert + "w2_NDF"][0][:, order]
    before = parameters[expert + "w1_NFD"][0].clone()
    merge_experts(parameters, DECODER, [0], torch.tensor([[5], [5], [0], [0]]))
    torch.testing.assert_close(parameters[expert + "w1_NFD"][0], before)


def test_merging_moves_what_dropping_leaves(model, tmp_path):
    dropped = prune(model, tmp_path / "drop.pt", "--keep", 1, "--scope", "layer")["model"]
    merged = prune(model, tmp_path / "merge.pt", "--keep", 1, "--scope", "layer", "--merge")["model"]
    name = "experts.sublayers.0.w1_NFD"
    assert torch.equal(dropped[f"{ENCODER}.{name}"], merged[f"{ENCODER}.{name}"])  # the others had no tokens
    assert not torch.equal(dropped[f"{DECODER}.{name}"], merged[f"{DECODER}.{name}"])


@quick
@given(st.data())
def test_the_best_stay_and_clusters_are_of_equal_size(data):
    clusters = data.draw(st.sampled_from([ExpertClusters(8, 2), ExpertClusters(6, 3), ExpertClusters(5, 1)]))
    choice = Choice(scope=data.draw(st.sampled_from(["cluster", "layer"])))
    keep = data.draw(st.sampled_from(choice.sizes(clusters)))
    worth = data.draw(st.lists(st.integers(0, 9), min_size=clusters.num_experts, max_size=clusters.num_experts))
    kept = choice.kept(clusters, keep, of_least(torch.tensor(worth)))
    assert kept == sorted(set(kept)) and len(kept) == keep
    after = choice.clusters_of(clusters, keep)
    for cluster in range(clusters.num_clusters if choice.scope == "cluster" and keep >= clusters.num_clusters else 0):
        members = range(cluster * clusters.cluster_size, (cluster + 1) * clusters.cluster_size)
        own = kept[cluster * after.cluster_size : (cluster + 1) * after.cluster_size]
        assert set(own) <= set(members)
        assert min(worth[i] for i in own) >= max((worth[i] for i in members if i not in own), default=0)
    if choice.scope == "layer":
        assert sorted(worth)[-keep:] == sorted(worth[i] for i in kept) and after.num_clusters == 1


def test_the_most_similar_pair_by_hand():
    cosine_NN = torch.tensor([[1, 0.1, 0.9], [0.1, 1, 0.8], [0.9, 0.8, 1.0]])
    first = of_most_similar(cosine_NN, torch.tensor([0.2, 0.5, 0.3]))
    assert first([0, 1, 2]) == 0  # of 0 and 2 the one with fewer tokens
    assert first([1, 2]) == 2


REFUSED = [
    (("--keep", 3), "--keep is 3, but 4 experts in 2 clusters can become 1, 2, 4; give one of these .or --scope layer"),
    (("--keep", 5), "--keep is 5, but .* give one of these$"),
    (("--share", 0), "--share is 0.0, but must be above 0"),
    ((), "give one of --keep, --share and --curve"),
    (("--keep", 2, "--curve"), "give one of --keep, --share and --curve"),
    (("--keep", 2, "--subset", "nothere"), "nothere .*; give --subset or --data that has it"),
]


@pytest.mark.parametrize("options, message", REFUSED)
def test_what_cannot_be_is_refused_and_nothing_is_written(options, message, model, tmp_path):
    with pytest.raises(ValueError, match=message):
        prune(model, tmp_path / "new.pt", *options)
    assert not list(tmp_path.iterdir())


def test_a_curve_of_a_translating_model(model, tmp_path):
    state = load_state(model)
    for layer in (ENCODER, DECODER):
        take_experts(state["model"], layer, [0])
    state["cfg"]["model"].update(moe_expert_count=1, moec_cluster_count=1)
    state["cfg"]["criterion"]["moec_variance"] = "none"
    torch.save(state, tmp_path / "one.pt")
    run(["checkpoint", "prune", tmp_path / "one.pt", "--curve", "--cpu", "--out", tmp_path / "curve"])
    with (tmp_path / "curve" / "curve.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["experts"] == "1" and float(row["BLEU"]) >= 0 and "tok:" in row["BLEU's signature"]
    loss = ModelOnData(tmp_path / "one.pt", cpu=True).loss("valid")
    assert float(row["loss (bits per token)"]) == pytest.approx(loss, rel=1e-3)


def test_a_curve_of_a_masked_language_model_and_again(tmp_path, capsys):
    text = write_text(tmp_path / "text")
    train(text, tmp_path / "model", *MASKED_LM, max_update=1, base=SPARSE)
    command = ["checkpoint", "prune", tmp_path / "model", "--by", "similarity", "--merge", "--curve", "--cpu"]
    run([*command, "--out", tmp_path / "curve"])
    with (tmp_path / "curve" / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["experts"] for row in rows] == ["8", "4", "2", "1"]
    assert [row["clusters"] for row in rows] == ["2", "2", "2", "1"]
    parameters = [int(row["parameters"]) for row in rows]
    assert [before - after for before, after in zip(parameters, parameters[1:], strict=False)] == [
        fewer * (2 * 16 + 16 * 32 + 32 + 32 * 16 + 16 + 8)
        for fewer in (4, 2, 1)  # norm, two maps, embedding
    ]
    assert (tmp_path / "curve" / "curve.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    run([*command, "--out", tmp_path / "curve"])
    assert capsys.readouterr().out.count("done before") == 4
