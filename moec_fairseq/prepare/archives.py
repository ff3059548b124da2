"""The files of a corpus, taken out of archives in one pass."""

import gzip
import lzma
import shutil
import tarfile
import zlib
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import IO, cast

from tqdm import tqdm

TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_BROKEN = (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError)


def extract(archive: Path, members: Collection[str], out: Path) -> dict[str, Path]:
    """Write the members of a tar archive into the folder ``out``; return where each is.

    Members compressed by gzip are unpacked, also where the archive has MEMBER.gz for MEMBER.

    Raises:
        ValueError: the archive is broken or is none, or lacks a member.
    """
    if not archive.name.endswith(TAR):
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
            tarfile.open(fileobj=cast(IO[bytes], file), mode="r|*") as tar,
        ):
            for info in tar:
                name = str(PurePosixPath(info.name))
                names.append(name)
                wanted = name if name in members else name.removesuffix(".gz")
                if wanted not in members or not info.isfile():
                    continue
                found[wanted] = out / wanted.replace("/", "_")
                content = tar.extractfile(info)
                assert content is not None
                part = found[wanted].with_suffix(found[wanted].suffix + ".part")
                with part.open("wb") as target:
                    shutil.copyfileobj(gzip.open(content) if name.endswith(".gz") else content, target)
                part.replace(found[wanted])
    except _BROKEN as error:
        raise ValueError(
            f"{archive} is broken ({error}); remove it and start again, which downloads it anew"
        ) from error
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
    except _BROKEN as error:
        raise ValueError(
            f"{archive} is broken ({error}); remove it and start again, which downloads it anew"
        ) from error
    part.replace(path)
    return path
