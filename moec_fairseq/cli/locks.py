"""Keeps commands that run at the same time out of each other's files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def alone_with(path: Path) -> Iterator[None]:
    """Wait until no other command works with a file or folder, and keep others waiting meanwhile.

    Args:
        path: the file or folder; the lock is a hidden file in the folder, or beside the file.
    """
    lock = FileLock(path / ".lock" if path.is_dir() else path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"another command works with {path}; waiting for it ...", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
