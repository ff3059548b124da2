"""Files from the web, and what is taken out of them: downloads resume, are checked, and write nowhere else."""

import errno
import hashlib
import http.client
import io
import os
import struct
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, cast

from tqdm import tqdm

from moec_fairseq.__main__ import NO_SPACE
from moec_fairseq.data.formats.compressed import broken, most_bytes, open_unpacked, unpacked, without_ending
from moec_fairseq.util.files import alone_with, whole_files

ZIP = b"PK\x03\x04"  # the first bytes
# What zipfile raises; RuntimeError also for what is encrypted, or compressed in a way that it does not know.
BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, UnicodeDecodeError, struct.error)
SPREADSHEETS = (".xlsx", ".ods")
TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
BLOCK = 1 << 20
TRIES = 6  # in a row that bring nothing new
PAUSE = 1.0  # seconds before the second of them; doubled before each further one
PASSING = (429, 500, 502, 503, 504)  # answers of a server that may be another one soon
TIMEOUT = 60.0  # seconds without a byte
EXTRACTED = ".extracted"  # folder for what archives hold, which comes and goes: nobody keeps files of his own there


@dataclass(frozen=True)
class Archive:
    """A file to download.

    Attributes:
        name: how the parts of the recipe call it.
        url: where it is.
        licence: under which terms.
        file: its name in the folder of raw files; by default the last part of the URL.
        bytes: its size, if known.
        sha256: its checksum, if known.
        md5: another checksum, if known.
    """

    name: str
    url: str
    licence: str
    file: str = ""
    bytes: int | None = None
    sha256: str | None = None
    md5: str | None = None

    @property
    def file_name(self) -> str:
        """Return its name in the folder of raw files."""
        return self.file or self.url.rsplit("/", 1)[-1]


def download(archive: Archive, raw: Path) -> Path:
    """Return the file of ``archive`` in the folder ``raw``, where it is downloaded to unless it is there.

    Raises:
        ValueError: it cannot be downloaded, or is not what the recipe says.
    """
    path = raw / archive.file_name
    if path.is_file():
        _check(archive, path, f"remove it and start again, which downloads it from {archive.url}")
        return path
    if raw.is_dir() and not os.access(raw, os.W_OK):
        raise ValueError(f"{raw} has no {path.name}, and cannot be written to; get it from {archive.url}")
    with alone_with(path):  # recipes share archives
        if not path.is_file():
            part = path.with_name(f"{path.name}.part")
            _download(archive, part)
            _check(archive, part, f"start again, which downloads it again from {archive.url}", remove=True)
            part.replace(path)
            _etag_path(part).unlink(missing_ok=True)
    return path


def download_missing(archives: Iterable[Archive], raw: Path) -> list[Path]:
    """Return the files of the archives in the folder ``raw``; those that it lacks are announced and downloaded."""
    archives = list(archives)
    missing = [archive.file_name for archive in archives if not (raw / archive.file_name).is_file()]
    if missing:
        print(f"to download, because {raw} lacks them: {', '.join(missing)}", flush=True)
    return [download(archive, raw) for archive in archives]


def _etag_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.etag")


def _download(archive: Archive, part: Path) -> None:
    failures = most = 0
    while True:
        most = max(most, _size(part))
        try:
            _go_on(archive, part)
            return
        except urllib.error.HTTPError as error:
            if error.code not in PASSING:
                raise ValueError(
                    f"{archive.url} cannot be downloaded: the server says {error.code} {error.reason}; put the file "
                    f"into --raw-dir as {archive.file_name} if you have it"
                ) from error
            trouble: Exception = error
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and (error.errno in NO_SPACE or error.filename is not None):
                raise  # of this machine's disk
            trouble = error
        failures = 0 if _size(part) > most else failures + 1
        if failures >= TRIES:
            reason = getattr(trouble, "reason", None) or trouble or type(trouble).__name__
            raise ValueError(
                f"{archive.url} cannot be downloaded ({reason}); check the network and start again: what has come "
                f"is kept, or put the file into --raw-dir as {archive.file_name}"
            ) from trouble
        pause = PAUSE * 2 ** max(failures - 1, 0)
        print(f"{archive.file_name}: {trouble}; trying again in {pause:g} s", flush=True)
        time.sleep(pause)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _go_on(archive: Archive, part: Path) -> None:
    """Download what is missing of ``part``."""
    have = _size(part)
    etag = _etag_path(part)
    request = urllib.request.Request(archive.url, headers={"Accept-Encoding": "identity"})
    if have and etag.exists():
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", etag.read_text())  # all of it if it has changed since
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        if error.headers.get("Content-Range") in (None, f"bytes */{have}"):  # there is nothing beyond what we have
            return
        part.unlink()
        raise ConnectionError(f"the server has fewer than the {have} bytes that were kept") from error
    with response:
        if response.status != 206:
            have = 0
            part.unlink(missing_ok=True)  # before the validator of another file says that it continues
            validator = response.headers.get("ETag", "W/")
            if validator.startswith("W/"):  # a weak one, which says too little
                validator = response.headers.get("Last-Modified")
            if validator:
                etag.write_text(validator)
            else:
                etag.unlink(missing_ok=True)
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with (
            part.open("ab" if have else "wb") as file,
            tqdm(desc=archive.file_name, total=total, initial=have, unit="B", unit_scale=True) as bar,
        ):
            while block := response.read(BLOCK):
                file.write(block)
                bar.update(len(block))
        if total is not None and _size(part) != total:
            raise ConnectionError(f"the connection ended after {_size(part)} of {total} bytes")


def _check(archive: Archive, path: Path, way_out: str, remove: bool = False) -> None:
    """Raise ValueError unless ``path`` has the size and checksum of the recipe."""
    problem = ""
    size = path.stat().st_size
    if archive.bytes is not None and size != archive.bytes:
        problem = f"has {size} bytes instead of {archive.bytes}"
    for kind, expected in (("sha256", archive.sha256), ("md5", archive.md5)):
        if not problem and expected is not None and (found := _checksum(path, kind)) != expected.lower():
            problem = f"has the {kind} checksum {found} instead of {expected}"
    if problem:
        if remove:
            path.unlink()
        raise ValueError(f"{path} {problem}; {way_out}")


def _checksum(path: Path, kind: str) -> str:
    digest = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file, tqdm(desc="checksum", total=path.stat().st_size, unit="B", unit_scale=True) as bar:
        while block := file.read(BLOCK):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def extract(archive: Path, members: Collection[str], out: Path) -> dict[str, Path]:
    """Write members of a tar or zip archive into the folder ``out``, each into one of its own; return where each is.

    Members that the archive has compressed, as MEMBER.gz for MEMBER, stay compressed.

    Raises:
        ValueError: it is not an archive, or a broken one, lacks a member or has it twice, or a member is not a file or
            larger than the archive can hold.
    """
    places = {wanted: out / str(number) for number, wanted in enumerate(sorted(members))}
    if _is_zip(archive):
        return _extract_zip(archive, places)
    found: dict[str, Path] = {}
    names: list[str] = []
    with _tar(archive, names, min(members)) as tar:
        for info in tar:
            name = str(PurePosixPath(info.name))
            names.append(name)
            wanted = name if name in members else without_ending(name)
            if wanted not in members or info.isdir():
                continue
            if not info.isfile():
                raise ValueError(f"{archive}: {name} is {_kind(info)}, not a file; name a file")
            if wanted in found:
                raise ValueError(f"{archive} has {wanted} more than once; name another file, or mend the archive")
            places[wanted].mkdir(parents=True, exist_ok=True)
            found[wanted] = places[wanted] / PurePosixPath(name).name
            member = tar.extractfile(info)
            assert member is not None
            _copy(member, found[wanted], archive)
    _check_members(archive, members, names, found)
    return found


@contextmanager
def _tar(archive: Path, names: Sequence[str], wanted: str) -> Iterator[tarfile.TarFile]:
    """Open a tar archive, which is read to its end.

    Args:
        archive: a file.
        names: of members that were found so far.
        wanted: one of them, for the message.

    Raises:
        ValueError: it is none, or broken.
    """
    try:
        with (
            archive.open("rb") as raw,
            tqdm.wrapattr(raw, "read", total=archive.stat().st_size, desc=f"unpack {archive.name}") as file,
            # tarfile, left to itself, does not compare the checksums inside compressed archives
            closing(unpacked(cast(io.BufferedReader, file), archive)) as content,
            tarfile.open(fileobj=content, mode="r|") as tar,
        ):
            yield tar
            while content.read(BLOCK):
                pass  # to the end, where the checksum is
    except tarfile.TarError as error:
        if not names:
            raise ValueError(f"{archive} is not a tar archive ({error}), but {wanted} is wanted out of it") from error
        raise broken(archive, error) from error


def is_archive(path: Path) -> bool:
    """Tell whether a file is a tar or zip archive, by its content, or by its name where the content is no known one.

    Raises:
        ValueError: it is a spreadsheet, which is a zip archive, too.
    """
    if path.suffix.lower() in SPREADSHEETS:
        raise ValueError(f"{path} is a spreadsheet, which is not read; save it as CSV in UTF-8")
    if _is_zip(path) or path.name.lower().endswith(TAR):
        return True
    with open_unpacked(path) as content:
        return content.peek(tarfile.BLOCKSIZE)[257:262] == b"ustar"


def members_of(archive: Path) -> list[str]:
    """Return the names of the files in a tar or zip archive.

    Raises:
        ValueError: it is neither, or broken.
    """
    if _is_zip(archive):
        with _zip(archive) as file:
            return [info.filename for info in file.infolist() if not info.is_dir()]
    names: list[str] = []
    with _tar(archive, names, "a text") as tar:
        names += (str(PurePosixPath(info.name)) for info in tar if info.isfile())
    return names


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(ZIP)) == ZIP


def _extract_zip(archive: Path, places: Mapping[str, Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    with _zip(archive) as file:
        names = file.namelist()
        _check_members(archive, places, names, names)
        for member, folder in tqdm(places.items(), desc=f"unpack {archive.name}", unit=" files"):
            folder.mkdir(parents=True, exist_ok=True)
            found[member] = folder / PurePosixPath(member).name
            with file.open(member) as content:
                _copy(content, found[member], archive)
    return found


@contextmanager
def _zip(archive: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive; raises ValueError, here and where it is read, if it is broken."""
    try:
        with zipfile.ZipFile(archive) as file:
            yield file
    except (*BROKEN_ZIP, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # of a place before the file's beginning
            raise
        raise broken(archive, error) from error


def _check_members(archive: Path, wanted: Iterable[str], names: Collection[str], found: Collection[str]) -> None:
    """Raise ValueError if one of the wanted members is not found."""
    missing = sorted(set(wanted) - set(found))
    if missing:
        raise ValueError(f"{archive} has no {missing[0]}; it has {', '.join([*sorted(names)[:8], '…'])}")


def _kind(info: tarfile.TarInfo) -> str:
    """Return what a member is that is not a file, in words."""
    return f"a link to {info.linkname}" if info.issym() or info.islnk() else "a device or the like"


def _copy(member: IO[bytes], place: Path, archive: Path) -> None:
    """Write what a member holds, which may be said to be larger than all of the archive."""
    left = most_bytes(archive.stat().st_size)
    with whole_files([place]) as (part,), part.open("wb") as target:
        while block := member.read(BLOCK):
            left -= len(block)
            if left < 0:
                raise ValueError(f"{archive}: {place.name} is larger than the archive can hold; get another copy of it")
            target.write(block)
