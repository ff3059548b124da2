"""Binary data that others have made: references are those that fairseq reads."""

import json
import subprocess
import sys

from tests.python import python_m


def evaluate(*arguments):
    return python_m("moec_fairseq", "evaluate", *arguments)


def kill_while_it_translates(*arguments):
    command = [sys.executable, "-u", "-W", "ignore", "-m", "moec_fairseq", "evaluate", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        for line in process.stdout:
            if line == "translations ...\n":
                break
        process.kill()


def test_binary_data_of_others(reversal_data, trained, tmp_path):
    out = tmp_path / "test-beam5"
    asked = ("--checkpoints", trained, "--best", "--tokenized", "--out", tmp_path, "--samples", 1)
    kill_while_it_translates(*asked)
    assert out.is_dir() and not (out / "translations.txt").exists()
    done = evaluate(*asked)
    assert done.returncode == 0, done.stderr
    found = json.loads((out / "scores.json").read_text())["scores"]
    scores = {name: score["value"] for name, score in found.items()}
    assert scores["BLEU"] == scores["fairseq's BLEU4"] > 50
    source, translation = ((out / f"{name}.txt").read_text().splitlines() for name in ("source", "translations"))
    assert len(source) == len(translation) == 200
    assert sum(one == other[::-1] for one, other in zip(source, translation, strict=True)) > 100
    assert "  reference   " in done.stdout and "tok:none" in done.stdout

    done = evaluate("--checkpoints", trained, "--best", "--subset", "other", "--out", tmp_path)
    assert done.returncode == 1 and "has no other for src to tgt" in done.stderr.splitlines()[-1]
