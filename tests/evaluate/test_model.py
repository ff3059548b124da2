import pytest

from moec_fairseq.evaluate.model import chosen_checkpoints


@pytest.fixture
def folder(tmp_path):
    for name in ("checkpoint1-rank-0.pt", "checkpoint1-rank-1.pt", "checkpoint2-rank-0.pt", "checkpoint_best.pt"):
        (tmp_path / name).touch()
    return tmp_path


def test_which_checkpoints(folder):
    assert chosen_checkpoints(folder, 2, False, None) == [folder / "checkpoint1.pt", folder / "checkpoint2.pt"]
    assert chosen_checkpoints(folder, 1, False, "epoch") == [folder / "checkpoint2.pt"]
    assert chosen_checkpoints(folder, None, True, None) == [folder / "checkpoint_best.pt"]
    assert chosen_checkpoints(folder / "checkpoint2.pt", None, False, None) == [folder / "checkpoint2.pt"]


@pytest.mark.parametrize("average, best, message", [
    (None, False, r"--average is 10, but .* holds 2 numbered checkpoints; give 2 or less; or give --best$"),
    (3, True, "--best and --average 3 were both given"),
])  # fmt: skip
def test_which_is_not_clear(folder, average, best, message):
    with pytest.raises(ValueError, match=message):
        chosen_checkpoints(folder, average, best, None)
