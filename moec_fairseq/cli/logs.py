"""What a log says of a failure."""

from pathlib import Path


def last_words(log: Path, start: int = 0) -> str:
    """Return the line of a log, read from byte ``start``, that says best why its process failed."""
    text = log.read_bytes()[start:].decode("utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.split(":")[0].split(".")[-1].endswith(("Error", "Exception"))]
    return (errors or lines or ["no output"])[-1]
