import subprocess
from pathlib import Path
from typing import Any

import pytest

from moec_fairseq.corpus.fetch import fetch

from .wheels import make_wheel


@pytest.fixture
def wheels_list(tmp_path: Path) -> Path:
    digest = make_wheel(tmp_path / "one.whl", {"one": b"1"})
    path = tmp_path / "list.txt"
    path.write_text(f"one==1 --hash=sha256:{digest}  # MIT\n")
    return path


def fake_pip(wheel: Path, log: str, code: int) -> Any:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        if code == 0:
            Path(command[-1], wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, code, "", log)

    return run


def test_a_wheel_is_fetched_once(wheels_list: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(subprocess, "run", fake_pip(tmp_path / "one.whl", "", 0))
    fetch(wheels_list, "full", out)
    monkeypatch.setattr(subprocess, "run", fake_pip(tmp_path / "one.whl", "ERROR: called again", 1))
    fetch(wheels_list, "full", out)
    assert sorted(path.name for path in out.iterdir()) == ["one.whl", "wheels.txt"]


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ("WARNING: Retrying after connection broken by ...\nERROR: No matching distribution", "does not answer"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES", "another hash"),
        ("noise\nERROR: disk full", "pip says 'ERROR: disk full'"),
    ],
)
def test_failures_are_one_sentence(
    wheels_list: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: str, message: str
) -> None:
    monkeypatch.setattr(subprocess, "run", fake_pip(tmp_path / "one.whl", log, 1))
    with pytest.raises(ValueError, match=message) as error:
        fetch(wheels_list, "full", tmp_path / "out")
    assert "\n" not in str(error.value)
