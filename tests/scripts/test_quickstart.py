"""The real quickstart script on a small text of its own, which is partly compressed, with an interruption."""

import fcntl
import gzip
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("signals_are_heard")

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "quickstart.sh"
TARGET = "de-AT"  # a code with a hyphen
WORDS = {
    "open": "öffne", "close": "schließe", "copy": "kopiere", "move": "verschiebe", "the": "das", "a": "ein",
    "file": "Buch", "picture": "Bild", "window": "Fenster", "now": "jetzt", "later": "später", "here": "hier",
    "there": "dort", "red": "rote", "green": "grüne", "small": "kleine", "large": "große", "again": "wieder",
}  # fmt: skip


def write_text(prefix: Path, lines: int, target: str = "de") -> None:
    """Write pairs that differ in their words, so that the split by sentence finds enough of them."""
    chance = random.Random(1)
    english = [chance.choices(sorted(WORDS), k=chance.randint(3, 9)) for _ in range(lines)]
    prefix.with_suffix(".en").write_text("".join(" ".join(words) + "\n" for words in english), encoding="utf-8")
    prefix.with_suffix(f".{target}").write_text(
        "".join(" ".join(WORDS[word] for word in words) + "\n" for words in english), encoding="utf-8"
    )


def command(*options: str | Path) -> list[str]:
    return ["bash", str(SCRIPT), "--active-env", "--cpu", *map(str, options)]


def environment() -> dict[str, str]:
    """The environment of this Python, active."""
    return os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def quickstart(*options: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*options), capture_output=True, text=True, env=environment(), timeout=300, stdin=subprocess.DEVNULL
    )


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text with space")
    write_text(folder / "train", 400, TARGET)
    write_text(folder / "test", 12, TARGET)
    write_text(folder / "valid", 12, TARGET)
    for name in ("train.en", f"valid.{TARGET}"):
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
        (folder / name).unlink()
    return folder


def own(text: Path, work: Path, updates: int) -> list[str | Path]:
    prefixes = [x for name in ("train", "valid") for x in (f"--{name}-prefix", text / name)]
    return [
        *prefixes,
        "--test",
        text / "test.en",
        text / f"test.{TARGET}",
        "--target",
        TARGET,
        "--max-update",
        str(updates),
        "--work-dir",
        work,
    ]


def interrupt_when(process: subprocess.Popen[str], condition: Path) -> None:
    """Press Ctrl-C, as a terminal sends it to the whole group, once a file like this exists."""
    deadline = time.monotonic() + 120
    while not list(condition.parent.glob(condition.name)):
        assert process.poll() is None and time.monotonic() < deadline, "the training never saved a checkpoint"
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)


def updates_of_training(log: Path) -> list[int]:
    return [int(n) for n in re.findall(r'train_inner .*"num_updates": "(\d+)"', log.read_text(encoding="utf-8"))]


def test_interrupted_and_started_again_it_goes_on_and_finishes(text: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    training = work / "moec-seed1"
    training.mkdir(parents=True)
    # without the settings of its training, it is replaced
    (training / "checkpoint_last.pt").write_bytes(b"of another version")
    first = subprocess.Popen(
        command(*own(text, work, 24)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    interrupt_when(first, training / "checkpoint_*_6.pt")  # of its second save
    out, err = first.communicate(timeout=60)
    assert first.returncode == 130, out + err
    assert "The same command continues where it was" in err
    log = work / "moec-seed1" / "rank-0.log"
    done = max(updates_of_training(log))
    assert done < 24

    second = quickstart(*own(text, work, 24))
    assert second.returncode == 0, second.stdout + second.stderr
    assert "resuming from update" in second.stdout
    updates = updates_of_training(log)
    assert updates[0] == 1 and updates[-1] == 24 and updates.count(1) == 1
    evaluation = work / "moec-seed1" / "evaluation" / "best" / "test-beam5"
    assert len((evaluation / "translations.txt").read_text(encoding="utf-8").splitlines()) == 12
    assert {"BLEU", "chrF"} <= json.loads((evaluation / "scores.json").read_text())["scores"].keys()

    def state() -> dict[Path, tuple[bytes, int]]:
        files = {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()}
        written_always = ("prepared.json", "cleaning.md", "scores.json", "source.txt", "references.txt")
        return {path: (path.read_bytes(), 0 if path.name in written_always else files[path]) for path in files}

    before = state()
    third = quickstart(*own(text, work, 24))
    assert third.returncode == 0
    assert third.stdout.count("done before") == 7
    assert before == state()


def test_two_at_once_do_a_step_one_after_the_other(text: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    with (work / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with subprocess.Popen(
            command(*own(text, work, 1)), stdout=subprocess.PIPE, text=True, env=environment()
        ) as waiting:
            assert waiting.stdout
            said = iter(waiting.stdout.readline, "")
            assert any("another command is using" in line for line in said)
            assert not (work / "text").exists()
            fcntl.flock(other, fcntl.LOCK_UN)
            assert any("subwords ..." in line for line in said)
            waiting.terminate()
    assert (work / ".text.done").exists()
