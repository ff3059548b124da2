"""Files that appear under their name only when they are complete."""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO


@contextmanager
def complete_files(paths: list[Path]) -> Iterator[list[TextIO]]:
    """Open `paths` for UTF-8 text under temporary names; they get their own names together when the block ends well."""
    temporary = [path.with_name(f".{path.name}.part") for path in paths]
    try:
        with ExitStack() as stack:
            for path in paths:
                path.parent.mkdir(parents=True, exist_ok=True)
            yield [stack.enter_context(part.open("w", encoding="utf-8", newline="\n")) for part in temporary]
        for part, path in zip(temporary, paths, strict=True):
            part.replace(path)
    finally:
        for part in temporary:
            part.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` to `path` as readable JSON."""
    with complete_files([path]) as (file,):
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")


def parallel_paths(folder: Path, split: str, source: str, target: str) -> tuple[Path, Path]:
    """Return where `folder` holds the two sides of a split."""
    return folder / f"{split}.{source}", folder / f"{split}.{target}"
