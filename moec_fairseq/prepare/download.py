"""Files from the web: downloads go on where they were broken off, and are checked."""

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from moec_fairseq.cli.command import NO_SPACE
from moec_fairseq.cli.locks import alone_with
from moec_fairseq.prepare.recipe import Archive

BLOCK = 1 << 20
TRIES = 6  # in a row that bring nothing new
PAUSE = 1.0  # seconds before the second of them; doubled before each further one
PASSING = (429, 500, 502, 503, 504)  # answers of a server that may be another one soon
TIMEOUT = 60.0  # seconds without a byte


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
            _check(archive, part, f"start again, which downloads it anew from {archive.url}", remove=True)
            part.replace(path)
            _etag_path(part).unlink(missing_ok=True)
    return path


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
            part.unlink(missing_ok=True)  # before the validator of another file says that it goes on
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
