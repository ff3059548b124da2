import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench.sh"


def bench(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = ["bash", str(SCRIPT), "--active-env", *map(str, arguments)]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_bad_input_ends_in_one_sentence(tmp_path):
    done = bench("layer", "--json", tmp_path / "missing" / "found.json")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].endswith("please make it.")
    assert "Traceback" not in done.stderr


def test_the_gpu_suite_says_what_it_needs():
    done = bench("gpu", "--device", "cpu")
    assert done.returncode == 1
    assert done.stderr.startswith("error: moec bench gpu needs a GPU that torch sees") and done.stderr.count("\n") == 1
