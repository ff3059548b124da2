"""Which version of this project made a result."""

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import moec_fairseq


def project_version() -> str:
    """Return the version, and of a checkout the commit, such as ``0.1.0+1a2b3c4``, with ``-dirty`` after changes."""
    try:
        number = version("moec-fairseq")
    except PackageNotFoundError:  # --user-dir of a checkout that is not installed
        number = "unreleased"
    folder = Path(moec_fairseq.__path__[0])
    if not (folder.parent / ".git").exists():
        return number
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return number
    return f"{number}+{commit}"
