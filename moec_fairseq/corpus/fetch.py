"""Download the pinned wheels with pip; nothing is installed, and no code in them is run."""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

from moec_fairseq.corpus.pins import Pin, find_wheels, read_pins

WHEELS_LIST = "wheels.txt"  # the copy of the list that lies beside the wheels
_NO_NETWORK = re.compile(r"connection|name resolution|timed out|proxy", re.IGNORECASE)


def fetch(wheels_list: Path, tier: str, out: Path) -> None:
    """Download the wheels of `tier` into `out`, but those that are there already with the right hash."""
    pins = read_pins(wheels_list, tier)
    out.mkdir(parents=True, exist_ok=True)
    present = find_wheels(out, pins)
    missing = [pin for pin in pins if pin not in present]
    with tqdm(missing, desc="fetch", unit="wheel", disable=not missing) as bar:
        for pin in bar:
            bar.set_postfix_str(pin.name)
            _download(pin, out)
    if wheels_list.resolve() != (out / WHEELS_LIST).resolve():
        shutil.copyfile(wheels_list, out / WHEELS_LIST)
    print(f"{len(pins)} wheels in {out}, {len(missing)} of them fetched now")


def _download(pin: Pin, out: Path) -> None:
    with tempfile.TemporaryDirectory(dir=out, prefix=".fetch-") as folder:
        requirements = Path(folder, "requirements.txt")
        requirements.write_text(pin.requirement + "\n", encoding="utf-8")
        # The wheels are only read: which Python they are for does not matter.
        options = "--no-deps --only-binary=:all: --ignore-requires-python --require-hashes --retries 2 --no-input"
        command = [sys.executable, "-m", "pip", "download", *options.split(), "-r", str(requirements), "-d", folder]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise ValueError(_explain(pin, done.stdout + done.stderr))
        for wheel in Path(folder).glob("*.whl"):
            wheel.replace(out / wheel.name)


def _explain(pin: Pin, log: str) -> str:
    """Return one sentence on why pip failed."""
    what = f"cannot fetch {pin.name} {pin.version}"
    if "DO NOT MATCH THE HASHES" in log:
        return f"{what}: the registry's file has another hash than the pinned one; check the index that pip uses"
    if "No module named pip" in log:
        return f"{what}: {sys.executable} has no pip; install it with: {sys.executable} -m ensurepip"
    if _NO_NETWORK.search(log):
        return (
            f"{what}: the package registry does not answer; check the network (or PIP_INDEX_URL) and start again:"
            " what is already fetched is kept"
        )
    errors = [line for line in log.splitlines() if line.startswith("ERROR")] or log.splitlines() or ["no output"]
    return f"{what}: pip says {errors[-1]!r}"
