"""Files that do not fit together are named, and nothing is written."""

import pytest
import torch

from moec_fairseq.checkpoint.sharded import open_checkpoint
from tests.python import python_m

from .made import EMBED, W1, load, names, save, split, whole


def change(path, edit):
    state = load(path)
    edit(state)
    torch.save(state, path)


def other_updates(state):
    state["optimizer_history"][-1]["num_updates"] = 99


def other_experts(state):
    state["cfg"]["model"].moe_expert_count = 8


def other_ranks(state):
    state["cfg"]["distributed_training"]["distributed_world_size"] = 4


def other_shape(state):
    state["model"][EMBED] = torch.zeros(6, 3)


def other_dtype(state):
    state["model"][W1] = state["model"][W1].half()


def other_values(state):
    state["model"][EMBED][0, 0] += 1


def other_name(state):
    state["cfg"]["checkpoint"]["checkpoint_suffix"] = "-rank-0"


def too_many_experts(state):
    state["model"][W1] = torch.zeros(4, 2, 3)


def no_average(state):
    del state["extra_state"]["ema"][W1]


def no_model(state):
    del state["model"]


def test_a_buffer_that_fairseq_never_sets_may_differ(tmp_path):
    path = save(tmp_path, "x", whole(), 2)
    change(tmp_path / "x-rank-1.pt", lambda state: state["model"]["encoder.embed_positions._float_tensor"].fill_(7))
    assert len(open_checkpoint(path).ranks) == 2


@pytest.mark.parametrize(
    "edit, message",
    [
        (other_updates, "this file has 99 updates, but the first file 100"),
        (other_experts, "this file has 8 experts, but the first file 4"),
        (other_ranks, "this file has 4 processes, but the first file 2"),
        (other_shape, rf"model/{EMBED} has shape \(6, 3\).*but shape \(5, 3\)"),
        (other_dtype, f"{W1} has .*float16, but .*float32"),
        (other_values, f"shared parameter {EMBED} has other values"),
        (other_name, "its training named this file with -rank-0, not -rank-1"),
        (too_many_experts, f"{W1} has the shape .* but rank 1 of 2 should hold 2 of 4 experts"),
        (no_average, f"extra_state/ema/{W1} has no value"),
        (no_model, "has no model and configuration"),
    ],
)
def test_inconsistent(tmp_path, edit, message):
    path = save(tmp_path, "x", whole(), 2)
    change(tmp_path / "x-rank-1.pt", edit)
    with pytest.raises(ValueError, match=rf"x-rank-1\.pt:? .*{message}|x-rank-1\.pt: {message}"):
        open_checkpoint(path, optimizer=False)


@pytest.mark.parametrize(
    "lost, named", [((1,), "1 of their files .*-rank-1.pt. is"), ((0, 2), "2 of .*0.pt, .*2.pt. are")]
)
def test_missing(tmp_path, lost, named):
    path = save(tmp_path, "x", whole(), 4)
    for rank in lost:
        (tmp_path / f"x-rank-{rank}.pt").unlink()
    with pytest.raises(ValueError, match=f"was written by 4 processes, but {named} missing; copy"):
        open_checkpoint(path)


def test_files_of_another_training(tmp_path):
    path = save(tmp_path, "x", whole(), 4)
    for rank, shard in enumerate(split(whole(), 2)):
        torch.save(shard, tmp_path / f"x-rank-{rank}.pt")
    with pytest.raises(ValueError, match=r"by 2 processes, but there are also .*rank-2\.pt, .*rank-3\.pt"):
        open_checkpoint(path)


def test_one_rank_under_the_name_of_the_whole(tmp_path):
    save(tmp_path, "x", whole(), 2)
    (tmp_path / "x-rank-1.pt").rename(tmp_path / "y.pt")
    with pytest.raises(ValueError, match="y.pt: .* should hold 4 of 4 experts; give the file the name"):
        open_checkpoint(tmp_path / "y.pt")


def test_no_such_checkpoint(tmp_path):
    with pytest.raises(ValueError, match=r"neither .*x\.pt nor .*x-rank-0\.pt"):
        open_checkpoint(tmp_path / "x.pt")
    with pytest.raises(ValueError, match="neither"):
        open_checkpoint(tmp_path / "nowhere" / "x.pt")


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_truncated(tmp_path, keep):
    path = save(tmp_path, "x", whole(), 2)
    truncated = tmp_path / "x-rank-1.pt"
    content = truncated.read_bytes()
    truncated.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    with pytest.raises(ValueError, match=r"x-rank-1\.pt is truncated, corrupt or not a checkpoint") as raised:
        open_checkpoint(path)
    assert "\n" not in str(raised.value)


def test_code_in_a_file_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (exit, ())

    torch.save({"model": Evil(), "cfg": {}}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt contains code \(its pickle names '_sitebuiltins\.Quitter'\)"):
        open_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize("command", [("merge",), ("reshard", "--ranks", "4"), ("average",)])
def test_command_line(tmp_path, command):
    save(tmp_path, "x", whole(), 2)
    (tmp_path / "x-rank-1.pt").unlink()
    name, *options = command
    done = python_m("moec_fairseq", "checkpoint", name, tmp_path / "x.pt", *options, "--out", tmp_path / "new.pt")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and "x-rank-1.pt" in done.stderr and done.stderr.count("\n") == 1
    assert names(tmp_path) == ["x-rank-0.pt"]


def test_corruption_in_the_middle(tmp_path):
    path = save(tmp_path, "x", whole(4), 2)
    corrupt = tmp_path / "x-rank-1.pt"
    content = bytearray(corrupt.read_bytes())
    value = load(corrupt)["model"][W1].numpy().tobytes()
    content[content.index(value)] ^= 1
    corrupt.write_bytes(content)
    load(corrupt)  # torch does not notice
    with pytest.raises(ValueError, match=r"x-rank-1\.pt is corrupt \(.*data/\d+\); copy it again"):
        open_checkpoint(path)
