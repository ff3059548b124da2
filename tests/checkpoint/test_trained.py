"""The tools on what fairseq-train has written, and fairseq-generate on what they write."""

import re

from tests.conftest import USER_DIR
from tests.python import python_m

from .made import assert_same, load


def tool(*arguments):
    done = python_m("moec_fairseq", "checkpoint", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_translations_stay_the_same(tmp_path, fairseq, reversal_data, trained):
    original = trained / "checkpoint_best.pt"
    tool("reshard", original, "--ranks", 2, "--out", tmp_path / "two")
    tool("merge", tmp_path / "two", "--out", tmp_path / "merged.pt")
    state, shard, merged = map(load, (original, tmp_path / "two-rank-1.pt", tmp_path / "merged.pt"))
    assert_same(merged, state)
    experts = [name for name in state["model"] if ".experts.sublayers." in name]
    assert experts
    for tensors in ("model", "ema"):
        whole, half = ((s[tensors] if tensors == "model" else s["extra_state"][tensors]) for s in (state, shard))
        for name in experts:
            assert half[name].equal(whole[name][len(whole[name]) // 2 :])
    translations = []
    for path in (original, tmp_path / "merged.pt"):
        log = fairseq(
            "generate", reversal_data, "--user-dir", USER_DIR, "--cpu", "--path", path, "--beam", 2,
            "--batch-size", 64, "--gen-subset", "valid",
        ).stdout  # fmt: skip
        translations.append(sorted(re.findall(r"^H-.*$", log, flags=re.MULTILINE)))
    assert len(translations[0]) == 100
    assert translations[0] == translations[1]


def test_average_and_info(tmp_path, fairseq, reversal_data, trained):
    tool("average", "--last", 2, "--dir", trained, "--out", tmp_path / "mean.pt")
    assert "optimizer state        no" in tool("info", tmp_path / "mean.pt")
    one, other, mean = (load(p)["model"] for p in (*sorted(trained.glob("checkpoint[0-9]*.pt")), tmp_path / "mean.pt"))
    for name, value in mean.items():
        assert value.equal((other[name] + one[name]) / 2), name
    log = fairseq(
        "generate", reversal_data, "--user-dir", USER_DIR, "--cpu", "--path", tmp_path / "mean.pt", "--beam", 1,
        "--gen-subset", "valid",
    ).stdout  # fmt: skip
    assert log.count("\nH-") == 100
