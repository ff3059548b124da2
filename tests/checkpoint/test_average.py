import pytest
import torch

from moec_fairseq.checkpoint.tools import average

from .made import DECODER_W1, EMBED, TIED, W1, load, names, numbered, save, whole


def test_by_hand(tmp_path):
    paths = [save(tmp_path, f"c{i}", whole(updates=i, start=start)) for i, start in enumerate((0, 3, 6))]
    average(paths, tmp_path / "mean.pt")
    mean = load(tmp_path / "mean.pt")
    assert torch.equal(mean["model"][EMBED], numbered(5, 3, start=3))
    assert torch.equal(mean["model"][W1], numbered(4, 2, 3, start=303))
    assert mean["model"]["decoder.steps"] == 2  # an integer: that of the last
    assert {mean["model"][name].data_ptr() for name in TIED} == {mean["model"][EMBED].data_ptr()}
    assert list(mean["model"]) == list(whole()["model"])
    assert "last_optimizer_state" not in mean and "ema" not in mean["extra_state"]
    assert mean["optimizer_history"][-1]["num_updates"] == 2


def test_half_precision_adds_up_in_float32(tmp_path):
    # in float16 the sum would be infinite
    paths = [save(tmp_path, f"c{i}", whole(start=40000 + i, dtype=torch.float16)) for i in range(2)]
    average(paths, tmp_path / "mean.pt")
    value = load(tmp_path / "mean.pt")["model"][EMBED]
    assert value.dtype == torch.float16
    assert torch.equal(value, sum(load(path)["model"][EMBED].float() for path in paths).div(2).half())


def test_shards_stay_shards(tmp_path):
    paths = [save(tmp_path, f"c{i}", whole(start=start), 2) for i, start in enumerate((0, 3))]
    average(paths, tmp_path / "mean.pt")
    for rank in range(2):
        mean = load(tmp_path / f"mean-rank-{rank}.pt")
        assert torch.equal(mean["model"][W1], numbered(2, 2, 3, start=301.5 + 12 * rank))
        assert torch.equal(mean["model"][EMBED], numbered(5, 3, start=1.5))
        assert mean["cfg"]["checkpoint"]["checkpoint_suffix"] == f"-rank-{rank}"


@pytest.mark.parametrize("merge", [False, True])
def test_different_numbers_of_ranks(tmp_path, merge):
    paths = [save(tmp_path, f"c{w}", whole(2, start=3 * i), w) for i, w in enumerate((1, 4, 2))]
    average(paths, tmp_path / "new" / "mean.pt", merge=merge)
    files = ["mean.pt"] if merge else ["mean-rank-0.pt", "mean-rank-1.pt"]
    assert names(tmp_path / "new") == files
    found = torch.cat([load(tmp_path / "new" / file)["model"][DECODER_W1] for file in files])
    assert torch.equal(found, numbered(2, 2, 3, start=603))


def test_the_last_of_a_folder(tmp_path):
    for epoch in (2, 9, 10, 11):
        save(tmp_path, f"checkpoint{epoch}", whole(start=epoch), 2 if epoch > 9 else 1)
    save(tmp_path, "checkpoint_best", whole(start=500), 2)
    average([], tmp_path / "mean.pt", last=3, folder=tmp_path, merge=True)
    assert torch.equal(load(tmp_path / "mean.pt")["model"][EMBED], numbered(5, 3, start=10))


def untie(state):
    state["model"][TIED[0]] = state["model"][TIED[0]].clone()


def reshape(state):
    state["model"][EMBED] = torch.zeros(6, 3)


@pytest.mark.parametrize(
    "n, edit, message",
    [
        (4, untie, "c1.pt: other parameters are tied"),
        (4, reshape, "c1.pt: .*embed.*shape"),
        (2, None, "2 experts, but"),
    ],
)
def test_other_models(tmp_path, n, edit, message):
    paths = [save(tmp_path, "c0", whole())]
    state = whole(n)
    if edit is not None:
        edit(state)
    paths.append(save(tmp_path, "c1", state))
    with pytest.raises(ValueError, match=f"{message}.*; only checkpoints of the same model"):
        average(paths, tmp_path / "mean.pt")
    assert names(tmp_path) == ["c0.pt", "c1.pt"]


@pytest.mark.parametrize("options", [{}, {"last": 2}, {"folder": "."}])
def test_unclear(tmp_path, options):
    with pytest.raises(ValueError, match="give either checkpoints, or both --last N and --dir DIR"):
        average([], tmp_path / "mean.pt", **options)
