"""The list of pinned wheels: which published packages the corpus is made from."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from moec_fairseq.corpus.text import lines

TIERS = ("full", "small")
_FULL_ONLY = "; full tier only"
_PIN = re.compile(
    r"(?P<name>[\w.-]+)==(?P<version>[\w.!+]+) --hash=sha256:(?P<sha256>[0-9a-f]{64})"
    rf" # (?P<licence>[^;]+?)(?P<full_only>{_FULL_ONLY})?"
)


@dataclass(frozen=True)
class Pin:
    """One wheel, named by its hash; `full_only` ones are left out of the small tier."""

    name: str
    version: str
    sha256: str
    licence: str
    full_only: bool

    @property
    def requirement(self) -> str:
        """The line that makes pip accept this wheel and no other."""
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}"


def read_pins(path: Path, tier: str = "full") -> list[Pin]:
    """Return the pins of `tier` in the order of the file, which pip can read as requirements, too."""
    if tier not in TIERS:
        raise ValueError(f"tier {tier!r} does not exist; choose from {', '.join(TIERS)}")
    pins = []
    for number, line in enumerate(lines(path), start=1):
        if not line or line.startswith("#"):
            continue
        match = _PIN.fullmatch(line)
        if match is None:
            raise ValueError(
                f"{path}, line {number}: expected 'NAME==VERSION --hash=sha256:HASH  # LICENCE[{_FULL_ONLY}]',"
                f" got {line!r}"
            )
        full_only = match["full_only"] is not None
        pins.append(Pin(match["name"], match["version"], match["sha256"], match["licence"], full_only))
    return [pin for pin in pins if tier == "full" or not pin.full_only]


def find_wheels(folder: Path, pins: Iterable[Pin]) -> dict[Pin, Path]:
    """Return those of `pins` that lie in `folder`, found by hash: a damaged wheel is not found."""
    by_hash = {_sha256(path): path for path in sorted(folder.glob("*.whl"))}
    return {pin: by_hash[pin.sha256] for pin in pins if pin.sha256 in by_hash}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
