"""The files of a corpus, taken out of archives in one pass."""

import bz2
import gzip
import lzma
import shutil
import tarfile
import zlib
from collections.abc import Callable, Collection
from contextlib import nullcontext
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from tqdm import tqdm

# How tar archives are opened: these compare the checksums inside, which tarfile, left to itself, does not.
_OPEN: dict[str, Callable[[IO[bytes]], Any]] = {
    ".tar": nullcontext,
    ".tar.gz": gzip.open,
    ".tgz": gzip.open,
    ".tar.bz2": bz2.open,
    ".tar.xz": lzma.open,
}
TAR = tuple(_OPEN)
_BLOCK = 1 << 20
_TROUBLE = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError)


def extract(archive: Path, members: Collection[str], out: Path) -> dict[str, Path]:
    """Write the members of a tar archive into the folder ``out``; return where each is.

    Members compressed by gzip are unpacked, also where the archive has MEMBER.gz for MEMBER.

    Raises:
        ValueError: the archive is broken or is none, or lacks a member.
    """
    opened = next((way for ending, way in _OPEN.items() if archive.name.endswith(ending)), None)
    if opened is None:
        raise ValueError(
            f"{archive} is no tar archive ({', '.join(TAR)}), but the recipe wants {min(members)} out of it"
        )
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Path] = {}
    names: list[str] = []
    try:
        with (
            archive.open("rb") as raw,
            tqdm.wrapattr(raw, "read", total=archive.stat().st_size, desc=f"unpack {archive.name}") as file,
            opened(cast(IO[bytes], file)) as content,
            tarfile.open(fileobj=content, mode="r|") as tar,
        ):
            for info in tar:
                name = str(PurePosixPath(info.name))
                names.append(name)
                wanted = name if name in members else name.removesuffix(".gz")
                if wanted not in members or not info.isfile():
                    continue
                found[wanted] = out / wanted.replace("/", "_")
                member = tar.extractfile(info)
                assert member is not None
                part = found[wanted].with_suffix(found[wanted].suffix + ".part")
                with part.open("wb") as target:
                    shutil.copyfileobj(gzip.open(member) if name.endswith(".gz") else member, target)
                part.replace(found[wanted])
            while content.read(_BLOCK):
                pass  # to the end, where the checksum is
    except _TROUBLE as error:
        raise _explained(archive, error) from error
    missing = sorted(set(members) - set(found))
    if missing:
        raise ValueError(f"{archive} has no {missing[0]}; it has {', '.join(sorted(names)[:8])}, …")
    return found


def unpack(archive: Path, out: Path) -> Path:
    """Write a file that may be compressed by gzip into the folder ``out``; return where it is.

    Raises:
        ValueError: the file is broken.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / archive.name.removesuffix(".gz")
    part = path.with_name(f"{path.name}.part")
    try:
        with (
            gzip.open(archive) if archive.name.endswith(".gz") else archive.open("rb") as file,
            part.open("wb") as target,
        ):
            shutil.copyfileobj(file, target)
    except _TROUBLE as error:
        raise _explained(archive, error) from error
    part.replace(path)
    return path


def _explained(archive: Path, error: Exception) -> Exception:
    """Return what to raise: an error of the system, which has a number, as it is."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    return ValueError(f"{archive} is broken ({error}); remove it and start again, which downloads it anew")
