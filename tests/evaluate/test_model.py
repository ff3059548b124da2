import pytest

from moec_fairseq.evaluate.model import select


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "moec" / "seed1"
    folder.mkdir(parents=True)
    for name in ("checkpoint1-rank-0.pt", "checkpoint1-rank-1.pt", "checkpoint2-rank-0.pt", "checkpoint_best.pt"):
        (folder / name).touch()
    return folder


def test_which_checkpoints(folder):
    one, two = folder / "checkpoint1.pt", folder / "checkpoint2.pt"
    for arguments, name, paths in (
        ((folder, 2, False, None), "last2", [one, two]),
        ((folder, 1, False, "epoch"), "last1", [two]),
        ((folder, None, False, None), "last2", [one, two]),
        ((folder, None, True, None), "best", [folder / "checkpoint_best.pt"]),
        ((two, None, False, None), "checkpoint2", [two]),
    ):
        found = select(*arguments)
        assert (found.name, found.paths, found.system) == (name, paths, "moec/seed1")


@pytest.mark.parametrize("average, best, message", [
    (3, False, r"--average is 3, but .* holds 2 numbered checkpoints; give 2 or less; or give --best$"),
    (3, True, "--average and --by are for several checkpoints"),
])  # fmt: skip
def test_which_is_not_clear(folder, average, best, message):
    with pytest.raises(ValueError, match=message):
        select(folder, average, best, None)


def test_other_files_of_the_same_names(folder):
    before = select(folder, 1, False, None).fingerprint()
    assert select(folder, 1, False, None).fingerprint() == before
    (folder / "checkpoint2-rank-0.pt").write_text("new")
    assert select(folder, 1, False, None).fingerprint() != before
