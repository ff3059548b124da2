import pytest

from moec_fairseq.checkpoint.tools import info

from .made import save, whole


def rows(text: str) -> dict[str, str]:
    return {line.partition("  ")[0]: line.partition("  ")[2].strip() for line in text.splitlines()}


@pytest.mark.parametrize("n, world_size, per_rank, copies", [(4, 1, 4, 1), (4, 2, 2, 1), (2, 4, 1, 2)])
def test_info(tmp_path, capsys, n, world_size, per_rank, copies):
    info(save(tmp_path, "x", whole(n), world_size))
    found = rows(capsys.readouterr().out)
    assert found["ranks"] == str(world_size)
    assert found["missing ranks"] == "none"
    assert found["experts"] == str(n)
    assert found["experts per rank"] == str(per_rank)
    assert found["copies of each expert"] == str(copies)
    assert found["layers with experts"] == "encoder.layers.0, decoder.layers.1"
    assert found["shared parameters"] == str(15 + 9 + 2 * n + 3)
    assert found["expert parameters"] == str(n * (6 + 2 + 6))
    assert (found["updates"], found["epoch"], found["optimizer state"]) == ("100", "3", "yes")
    assert found["size"].endswith(f"{world_size} of {world_size} files")


def test_missing_ranks(tmp_path, capsys):
    path = save(tmp_path, "x", whole(4), 4)
    for rank in (0, 2):
        (tmp_path / f"x-rank-{rank}.pt").unlink()
    with pytest.raises(ValueError, match=r"x-rank-0\.pt, .*x-rank-2\.pt\) are missing"):
        info(path)
    assert rows(capsys.readouterr().out)["missing ranks"] == "0, 2"
