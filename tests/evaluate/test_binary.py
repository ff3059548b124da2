"""Binary data that others have made: references are those that fairseq reads."""

import json
import subprocess
import sys


def evaluate(*arguments):
    command = [sys.executable, "-W", "ignore", "-m", "moec_fairseq.evaluate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_binary_data_of_others(reversal_data, trained, tmp_path):
    done = evaluate("--checkpoints", trained, "--best", "--tokenized", "--out", tmp_path, "--samples", 1)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "test-beam5"
    found = json.loads((out / "scores.json").read_text())["scores"]
    scores = {name: score["value"] for name, score in found.items()}
    assert scores["BLEU"] == scores["fairseq's BLEU4"] > 50
    source, translation = ((out / f"{name}.txt").read_text().splitlines() for name in ("source", "translations"))
    assert len(source) == len(translation) == 200
    assert sum(one == other[::-1] for one, other in zip(source, translation, strict=True)) > 100
    assert "  reference   " in done.stdout and "tok:none" in done.stdout

    done = evaluate("--checkpoints", trained, "--best", "--subset", "other", "--out", tmp_path)
    assert done.returncode == 1 and "has no other for src to tgt" in done.stderr.splitlines()[-1]
    done = evaluate("--checkpoints", trained, "--best", "--input", out / "source.txt", "--out", tmp_path)
    assert done.returncode == 1 and "only be translated with the spm.model" in done.stderr.splitlines()[-1]
