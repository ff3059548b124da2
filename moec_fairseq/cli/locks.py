"""Keeps commands that run at the same time out of each other's files.

Locks are advice of the system (flock): who dies has none. Where a file system has no such locks commands go on without
them, instead of failing or waiting for ever; so no library does this here.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def alone_with(path: Path, otherwise: str | None = None) -> Iterator[None]:
    """Wait until no other command works with a file or folder, and keep others away meanwhile.

    Args:
        path: the file or folder; the lock is a hidden file in the folder, or beside the file, whose folder is made, and
            stays.
        otherwise: what to say instead of waiting.

    Raises:
        ValueError: with the words of ``otherwise``.
    """
    lock = path / ".lock" if path.is_dir() else path.with_name(f".{path.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _open(lock)
    try:
        if not _take(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
            if otherwise:
                raise ValueError(otherwise)
            print(f"another command works with {path}; waiting for it ...", flush=True)
            _take(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _open(lock: Path) -> int:
    try:
        return os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:
        return os.open(lock, os.O_RDONLY)  # another user has made it


def _take(descriptor: int, operation: int) -> bool:
    """Return False if another process has the lock."""
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        return False
    except OSError:
        pass  # there are no locks here
    return True
