import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench.sh"


def bench(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = ["bash", str(SCRIPT), "--active-env", *map(str, arguments)]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.filterwarnings("ignore")
def test_every_suite_runs_and_writes_json_and_a_picture(tmp_path):
    done = bench("all", "--size", "small", "--json", tmp_path / "found.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["machine"]["torch"]
    contenders = {(row["suite"], row["contender"]) for row in found["rows"]}
    assert {("layer", "dense"), ("layer", "moec 4"), ("layer", "fairscale 4"), ("layer", "moec 2 bf16")} <= contenders
    assert {("loss", "fairseq"), ("loss", "ours")} <= contenders
    assert {("train", "moec 2"), ("generate", "moec 4"), ("prepare", "split"), ("clean", "ours")} <= contenders
    assert all(second > 0 for row in found["rows"] for second in row["times"]["forward"])
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")
    for suite in ("layer", "loss", "train", "generate", "prepare", "clean"):
        assert f"## {suite}\n" in done.stdout


def test_bad_input_ends_in_one_sentence(tmp_path):
    done = bench("layer", "--json", tmp_path / "missing" / "found.json")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].endswith("please make it.")
    assert "Traceback" not in done.stderr


def test_the_gpu_suite_says_what_it_needs():
    done = bench("gpu", "--device", "cpu")
    assert done.returncode == 1
    assert done.stderr.startswith("error: moec bench gpu needs a GPU that torch sees") and done.stderr.count("\n") == 1
