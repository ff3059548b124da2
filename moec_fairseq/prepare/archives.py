"""The files of a corpus, taken out of archives in one pass.

Archives come from outside: nothing of them is written but the contents of files that the recipe names, to places that
their names have no part in.
"""

import io
import tarfile
from collections.abc import Collection
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import IO, cast

from tqdm import tqdm

from moec_fairseq.corpus.compressed import broken, most_bytes, unpacked, without_ending

TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_BLOCK = 1 << 20


def extract(archive: Path, members: Collection[str], out: Path) -> dict[str, Path]:
    """Write the members of a tar archive into the folder ``out``, each into one of its own; return where each is.

    Members that the archive has compressed, as MEMBER.gz for MEMBER, stay compressed.

    Raises:
        ValueError: the archive is broken or is none, lacks a member or has it twice, or a member is no file or larger
            than the archive can hold.
    """
    places = {wanted: out / str(number) for number, wanted in enumerate(sorted(members))}
    found: dict[str, Path] = {}
    names: list[str] = []
    try:
        with (
            archive.open("rb") as raw,
            tqdm.wrapattr(raw, "read", total=archive.stat().st_size, desc=f"unpack {archive.name}") as file,
            # tarfile, left to itself, does not compare the checksums inside compressed archives
            closing(unpacked(cast(io.BufferedReader, file), archive)) as content,
            tarfile.open(fileobj=content, mode="r|") as tar,
        ):
            for info in tar:
                name = str(PurePosixPath(info.name))
                names.append(name)
                wanted = name if name in members else without_ending(name)
                if wanted not in members or info.isdir():
                    continue
                if not info.isfile():
                    raise ValueError(f"{archive}: {name} is {_kind(info)}, not a file; name a file in the recipe")
                if wanted in found:
                    raise ValueError(f"{archive} has {wanted} more than once; name another file, or mend the archive")
                places[wanted].mkdir(parents=True, exist_ok=True)
                found[wanted] = places[wanted] / PurePosixPath(name).name
                member = tar.extractfile(info)
                assert member is not None
                _copy(member, found[wanted], archive)
            while content.read(_BLOCK):
                pass  # to the end, where the checksum is
    except tarfile.TarError as error:
        if not names:
            raise ValueError(
                f"{archive} is no tar archive ({error}), but the recipe wants {min(members)} out of it"
            ) from error
        raise broken(archive, error) from error
    missing = sorted(set(members) - set(found))
    if missing:
        raise ValueError(f"{archive} has no {missing[0]}; it has {', '.join([*sorted(names)[:8], '…'])}")
    return found


def _kind(info: tarfile.TarInfo) -> str:
    """Return what a member is that is no file, in words."""
    return f"a link to {info.linkname}" if info.issym() or info.islnk() else "a device or the like"


def _copy(member: IO[bytes], place: Path, archive: Path) -> None:
    """Write what a member holds, which may be said to be larger than all of the archive."""
    part, left = place.with_name(f"{place.name}.part"), most_bytes(archive.stat().st_size)
    with part.open("wb") as target:
        while block := member.read(_BLOCK):
            left -= len(block)
            if left < 0:
                raise ValueError(f"{archive}: {place.name} is larger than the archive can hold; get another copy of it")
            target.write(block)
    part.replace(place)
