"""All suites but that for GPUs, at sizes that only show that they run."""

import json

import pytest

from moec_fairseq.__main__ import run


@pytest.mark.parametrize("words, sentence", [
    (["layer", "--json", "missing/found.json"], "please make it"),
    (["gpu", "--device", "cpu"], "moec bench gpu needs a GPU that torch sees"),
])  # fmt: skip
def test_what_is_missing_is_said_first(words, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=sentence):
        run(["bench", *words])


@pytest.mark.filterwarnings("ignore")
def test_every_suite_runs_and_writes_json_and_a_picture(tmp_path, capsys, memory_of_forks):
    run(["bench", "all", "--size", "small", "--json", tmp_path / "found.json"])
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["machine"]["torch"]
    contenders = {(row["suite"], row["contender"]) for row in found["rows"]}
    assert {("layer", "dense"), ("layer", "moec 4"), ("layer", "fairscale 4"), ("layer", "moec 2 bf16")} <= contenders
    assert {("loss", "fairseq"), ("loss", "ours")} <= contenders
    assert {("pretrain", "dense"), ("pretrain", "moec 4"), ("finetune", "moec 2")} <= contenders
    assert {("train", "moec 2"), ("generate", "moec 4"), ("prepare", "split"), ("clean", "ours")} <= contenders
    assert all(second > 0 for row in found["rows"] for second in row["times"]["forward"])
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    for suite in ("layer", "loss", "train", "generate", "pretrain", "finetune", "prepare", "clean"):
        assert f"## {suite}\n" in shown
