import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from .server import Server

DATA = Path(__file__).parents[2] / "data"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "web").mkdir()
    server = Server(tmp_path / "web")
    yield server
    server.close()


@pytest.fixture
def local_recipe(tmp_path: Path, server: Server):  # type: ignore[no-untyped-def]
    """Return a function that copies a recipe of data/, all hosts replaced by the server, without checksums."""

    def copy(name: str) -> Path:
        text = re.sub(r" +(bytes|sha256|md5): .*\n", "", (DATA / f"{name}.yaml").read_text())
        path = tmp_path / f"{name}.yaml"
        path.write_text(re.sub(r"(url: )https://[^/]+", rf"\g<1>{server.url}", text))
        return path

    return copy
