"""The command line: what it offers, and how a mistake ends."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from moec_fairseq.__main__ import main, parse, parsers

ROOT = Path(__file__).parents[1]
SCRIPTS = {
    "quickstart": "quickstart",
    "prepare_data": "prepare",
    "train": "train",
    "study": "study",
    "evaluate": "evaluate",
    "glue": "glue",
    "bench": "bench",
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_needs_no_environment(script):
    done = subprocess.run(
        ["bash", ROOT / f"scripts/{script}.sh", "--active-env", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0 and f"usage: moec {SCRIPTS[script]} " in done.stdout
    _, commands = parsers()
    for action in commands[SCRIPTS[script]]._actions:
        assert all(option in done.stdout for option in action.option_strings) or action.help == "==SUPPRESS=="


def test_help_imports_nothing_but_the_standard_library():
    done = subprocess.run(
        [sys.executable, "-I", "-S", ROOT / "moec_fairseq/__main__.py", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "quickstart" in done.stdout


@pytest.mark.parametrize("name", parsers()[1])
def test_every_command_runs_a_function(name):
    module, _, function = parsers()[1][name].get_default("run").partition(":")
    assert callable(getattr(import_module(module), function))


def test_options_may_stand_anywhere():
    options = parse(["train", "small", "--processes", "2", "task.data=x", "--dry-run", "common.seed=2"])
    assert (options["config"], options["overrides"], options["processes"]) == (
        "small",
        ["task.data=x", "common.seed=2"],
        2,
    )
    assert parse(["prepare", "--workers", "3", "wmt14_en_de"])["corpus"] == "wmt14_en_de"
    assert parse(["checkpoint", "merge", "--out", "x.pt", "y.pt"])["checkpoint"] == Path("y.pt")


@pytest.mark.parametrize("words", [["tran"], ["checkpoint"], ["train"], ["checkpoint", "merge", "x.pt"], []])
def test_a_command_line_that_is_none(words, capsys):
    with pytest.raises(SystemExit):
        parse(words)
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize("words, sentence", [
    (["prepare", "--train-prefix", "none"], "none.en: no such file; check the name"),
    (["prepare"], "nothing to prepare was given; give a recipe of data/, quickstart, --train, "),
    (["prepare", "quickstart", "--source", "de", "--target", "fr"], "--source is de, but the messages are in English"),
    (["prepare", "quickstart", "--test-prefix", "x"], "--test-prefix is for your own text: give --train or"),
    (["prepare", "--train-prefix", "x", "--target", "en"], "source and target are both 'en'; they must differ"),
    (["prepare", "wmt99"], "there is no recipe wmt99"),
    (["prepare", "wmt14_en_de", "--workers", "0"], "--workers is 0"),
    (["prepare", "wmt14_en_de", "--max-ratio", "0.5"], "neither can be below 1"),
    (["prepare", "wmt14_en_de", "--max-ratio", "nan"], "neither can be below 1"),
    (["prepare", "wmt14_en_de", "--vocab-size", "0"], "vocabulary size 0 is not possible"),
    (["prepare", "wmt14_en_de", "--character-coverage", "0.5"], "character coverage 0.5 is not possible"),
    (["translate", "."], "holds neither checkpoint_best.pt nor checkpoint_last.pt"),
    (["translate", "none.pt"], "there is neither none.pt nor none-rank-0.pt"),
])  # fmt: skip
def test_a_mistake_is_one_line(words, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["moec", *words])
    monkeypatch.setattr("moec_fairseq.evaluate.translate._read", lambda *_: ["a"])
    assert main() == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and sentence in error
    assert not list(tmp_path.iterdir())


def test_several_trainings_in_one_folder(tmp_path, monkeypatch, capsys):
    for name in ("dense", "moec"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "checkpoint_best-rank-0.pt").touch()
    monkeypatch.setattr(sys, "argv", ["moec", "translate", str(tmp_path)])
    assert main() == 1
    assert f"holds several trainings; give one of {tmp_path / 'dense'}, {tmp_path / 'moec'}" in capsys.readouterr().err
