"""scripts/env.sh: two commands that begin at the same time in an environment where nothing is installed yet."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMAND = f'set -euo pipefail; source "{ROOT}/scripts/env.sh" --active-env; echo ready'
# The Python of this environment, but for where it is and for pip, which only takes a while and says when.
PYTHON = """#!/usr/bin/env bash
case "$*" in
  *"-m pip install"*) echo begin >>"$PREFIX/calls"; sleep 0.5; echo end >>"$PREFIX/calls" ;;
  *"print(sys.prefix)"*) echo "$PREFIX" ;;
  *"import torch"* | *"import fairseq"*) ;;
  *) exec "$REAL" "$@" ;;
esac
"""


def start(prefix: Path) -> "subprocess.Popen[str]":
    prefix.mkdir(exist_ok=True)
    (prefix / "python").write_text(PYTHON)
    (prefix / "python").chmod(0o755)
    more = {"PATH": f"{prefix}{os.pathsep}{os.environ['PATH']}", "PREFIX": str(prefix), "REAL": sys.executable}
    return subprocess.Popen(["bash", "-c", COMMAND], env=os.environ | more, stdout=subprocess.PIPE, text=True)


def calls(prefix: Path) -> list[str]:
    return (prefix / "calls").read_text().split()


def test_two_commands_at_once_install_one_after_the_other_and_once(tmp_path):
    assert start(tmp_path / "alone").communicate(timeout=60)[0].endswith("ready\n")
    once = calls(tmp_path / "alone")
    both = [start(tmp_path / "shared"), start(tmp_path / "shared")]
    said = [process.communicate(timeout=60)[0] for process in both]
    assert all(text.endswith("ready\n") for text in said)
    assert sum("waiting for it" in text for text in said) == 1
    assert calls(tmp_path / "shared") == once == ["begin", "end"] * (len(once) // 2)


def test_the_next_command_installs_nothing(tmp_path):
    start(tmp_path).communicate(timeout=60)
    once = calls(tmp_path)
    assert start(tmp_path).communicate(timeout=60)[0] == "ready\n" and calls(tmp_path) == once


def test_an_environment_that_others_made_stays(tmp_path):
    """It is of another folder, such as that of a copied checkout."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / "other/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").write_text(f"VIRTUAL_ENV={tmp_path / 'other'}\n")
    (tmp_path / ".venv/bin/pip").symlink_to("/bin/true")
    done = subprocess.run(["bash", tmp_path / "scripts/run_tests.sh"], capture_output=True, text=True)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith(f"{tmp_path}/.venv lacks pip or is of another folder, and these scripts did not make")
    assert (tmp_path / ".venv/bin/pip").is_symlink()
