import hashlib
import zipfile
from pathlib import Path

from moec_fairseq.data.splits import own_files, write_own


def make_wheel(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> str:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def own(train: str, valid: str | None, test: str | None, source: str, target: str, out: Path) -> None:
    given = {"train": train, "valid": valid, "test": test}
    files = own_files({split: prefix for split, prefix in given.items() if prefix}, source, target)
    write_own(files, source, target, out)
