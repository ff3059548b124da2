"""Binary data that others have made: references are those that fairseq reads."""

import json
import subprocess
import sys


def command(*arguments):
    return [sys.executable, "-u", "-W", "ignore", "-m", "moec_fairseq.evaluate", *map(str, arguments)]


def evaluate(*arguments):
    return subprocess.run(command(*arguments), capture_output=True, text=True)


def kill_while_it_translates(*arguments):
    with subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
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
