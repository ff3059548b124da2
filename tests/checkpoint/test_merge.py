import pytest
import torch

from moec_fairseq.checkpoint.tools import merge

from .made import EMBED, TIED, W1, assert_same, load, names, numbered, save, whole


@pytest.mark.parametrize("n, world_size", [(4, 1), (4, 2), (4, 4), (2, 4), (2, 6), (1, 3)])
def test_all_ranks_in_one_file(tmp_path, n, world_size):
    path = save(tmp_path, "checkpoint_best", whole(n), world_size)
    merge(path, tmp_path / "new" / "merged.pt")
    merged = load(tmp_path / "new" / "merged.pt")
    assert_same(merged, whole(n))
    assert merged["cfg"]["checkpoint"]["checkpoint_suffix"] == ""
    assert merged["cfg"]["distributed_training"]["distributed_world_size"] == world_size
    assert names(tmp_path / "new") == ["merged.pt"]


def test_by_hand(tmp_path):
    merge(save(tmp_path, "a", whole(2), 2), tmp_path / "merged.pt")
    merged = load(tmp_path / "merged.pt")
    assert torch.equal(merged["model"][W1], numbered(2, 2, 3, start=300))
    assert torch.equal(merged["last_optimizer_state"]["state"][3]["exp_avg"], numbered(2, 2, 3, start=300.25))
    assert merged["last_optimizer_state"]["state"][3]["step"] == 100


@pytest.mark.parametrize("given", ["a.pt", "a", "a-rank-0.pt", "a-rank-1.pt"])
def test_names_of_a_checkpoint(tmp_path, given):
    save(tmp_path, "a", whole(), 2)
    merge(tmp_path / given, tmp_path / "merged")
    assert_same(load(tmp_path / "merged.pt"), whole())


def test_a_named_file_is_that_file(tmp_path):
    save(tmp_path, "a", whole(updates=5))
    save(tmp_path, "a", whole(updates=6), 2)
    for given, updates in (("a.pt", 5), ("a-rank-0.pt", 6)):
        merge(tmp_path / given, tmp_path / "merged.pt")
        assert load(tmp_path / "merged.pt")["optimizer_history"][0]["num_updates"] == updates


def test_without_optimizer(tmp_path):
    path = save(tmp_path, "a", whole(), 2)
    merge(path, tmp_path / "merged.pt", optimizer=False)
    assert "last_optimizer_state" not in load(tmp_path / "merged.pt")


def test_training_that_saved_no_optimizer(tmp_path):
    state = whole()
    del state["last_optimizer_state"]
    merge(save(tmp_path, "a", state, 4), tmp_path / "merged.pt")
    assert_same(load(tmp_path / "merged.pt"), state)


def test_tied_parameters_stay_one(tmp_path):
    merge(save(tmp_path, "a", whole(), 2), tmp_path / "merged.pt")
    model = load(tmp_path / "merged.pt")["model"]
    assert {model[name].data_ptr() for name in TIED} == {model[EMBED].data_ptr()}


def test_into_a_folder(tmp_path):
    merge(save(tmp_path, "a", whole(), 2), tmp_path)
    assert_same(load(tmp_path / "a.pt"), whole())


def test_over_its_own_name(tmp_path):
    path = save(tmp_path, "a", whole(), 2)
    merge(path, path)
    merge(path, path)
    assert_same(load(path), whole())
    assert names(tmp_path) == ["a-rank-0.pt", "a-rank-1.pt", "a.pt"]


def test_flattened_optimizer_is_refused_unless_left_out(tmp_path):
    state = whole()
    state["last_optimizer_state"] = {"state": {0: {"exp_avg": torch.zeros(99)}}, "param_groups": [{"params": [0]}]}
    path = save(tmp_path, "a", state)
    with pytest.raises(ValueError, match=r"a\.pt: .*--fp16-no-flatten-grads.*leave it out with --no-optimizer"):
        merge(path, tmp_path / "merged.pt")
    merge(path, tmp_path / "merged.pt", optimizer=False)


def test_optimizer_of_other_shapes_is_refused(tmp_path):
    state = whole()
    adam = state["last_optimizer_state"]["state"]
    adam[3], adam[4] = adam[4], adam[3]
    with pytest.raises(ValueError, match=rf"parameter 3 has the shape \(4, 2\), but {W1} has \(4, 2, 3\)"):
        merge(save(tmp_path, "a", state), tmp_path / "merged.pt")


def test_optimizer_that_mixes_experts_is_refused(tmp_path):
    state = whole()
    state["last_optimizer_state"]["state"][3]["column"] = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"column of .*w1_NFD has the shape \(2, 3\).*--no-optimizer"):
        merge(save(tmp_path, "a", state), tmp_path / "merged.pt")


def test_parameters_of_the_criterion_come_last(tmp_path):
    state = whole()
    state["criterion"] = {"scale": torch.ones(2)}
    state["last_optimizer_state"]["state"][7] = {"exp_avg": torch.ones(2)}
    state["last_optimizer_state"]["param_groups"][0]["params"].append(7)
    merge(save(tmp_path, "a", state, 2), tmp_path / "merged.pt")
    assert_same(load(tmp_path / "merged.pt"), state)
