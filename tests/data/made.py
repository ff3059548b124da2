import hashlib
import zipfile
from pathlib import Path

from moec_fairseq.data.formats.places import located
from moec_fairseq.data.splits import own_files, own_parts, write_own


def make_wheel(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> str:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def own(train: str, valid: str | None, test: str | None, source: str, target: str, out: Path) -> None:
    parts = own_parts({"train": train, "valid": valid, "test": test}, {}, source, target)
    with located(parts, own_files(parts), out / "extracted") as texts:
        sides = {part.use: (text[source], text[target]) for part, text in zip(parts, texts, strict=True)}
        write_own(sides, source, target, out)
