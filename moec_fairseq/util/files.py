"""Files that appear under their names only when they are complete, and commands kept out of each other's files."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TextIO

from filelock import FileLock, Timeout


@contextmanager
def whole_files(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Yield temporary names for files; they get their own names together, all on the disk, when the block ends well.

    Args:
        paths: the files; their folders are made.
    """
    parts = [path.with_name(f".{path.name}.part") for path in paths]
    try:
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        yield parts
        for part in parts:
            _sync(part)
        for part, path in zip(parts, paths, strict=True):
            part.replace(path)
        for folder in {path.parent for path in paths}:
            _sync(folder)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Put a file, or the names of a folder's files, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def whole_texts(paths: Sequence[Path]) -> Iterator[list[TextIO]]:
    """Open files for UTF-8 text; see ``whole_files``."""
    with whole_files(paths) as parts:
        with ExitStack() as stack:
            yield [stack.enter_context(part.open("w", encoding="utf-8", newline="\n")) for part in parts]


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary name for a folder, which replaces ``out`` when the block ends well."""
    # of this process: one that was killed may have left a child that is just ending
    part = out.with_name(f".{out.name}-{os.getpid()}.part")
    for folder in (out, *out.parent.glob(f".{out.name}*.part")):
        shutil.rmtree(folder, ignore_errors=True)
    yield part
    part.replace(out)


@contextmanager
def without_separators(path: Path) -> Iterator[Path]:
    """Yield a path of a file or folder without commas and colons, at which fairseq splits what names several."""
    if not {",", os.pathsep}.intersection(str(path)):
        yield path
        return
    with TemporaryDirectory(prefix="moec-") as folder:
        link = Path(folder, "link")
        link.symlink_to(path.absolute())
        yield link


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file of readable JSON."""
    with whole_texts([path]) as (file,):
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")


@contextmanager
def alone_with(path: Path, otherwise: str | None = None) -> Iterator[None]:
    """Wait until no other command uses a file or folder, and keep others away meanwhile.

    The lock goes with its process, however that ends. Where a file system has no locks, commands continue without them.

    Args:
        path: the file or folder; the lock is a hidden file in the folder, or beside the file, whose folder is made.
        otherwise: what to say instead of waiting.

    Raises:
        ValueError: with the words of ``otherwise``.
    """
    name = path / ".lock" if path.is_dir() else path.with_name(f".{path.name}.lock")
    name.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(name, mode=0o666)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if otherwise:
            raise ValueError(otherwise) from None
        print(f"another command is using {path}; waiting for it ...", flush=True)
        lock.acquire()
    except (NotImplementedError, OSError):
        pass  # no locks here, or the file of another user
    try:
        yield
    finally:
        lock.release()


def find_yaml(kind: str, name: str, folder: Path) -> Path:
    """Return the YAML file that ``name`` means: a path, or a name in ``folder``, with or without its ending.

    Args:
        kind: what the file holds, for the message.
        name: as the user gave it.
        folder: where files of this kind are; those that begin with ``_`` are not for users.

    Raises:
        ValueError: there is no such file; lists the existing ones.
    """
    for path in (Path(name), folder / name, folder / f"{name}.yaml"):
        if path.is_file():
            return path.resolve()
    known = ", ".join(sorted(path.stem for path in folder.glob("[!_]*.yaml")))
    known = known or "none (they come with a checkout: git clone, then pip install -e .)"
    raise ValueError(f"there is no {kind} {name}; give the path of a YAML file, or one of {folder}: {known}")
