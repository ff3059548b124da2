from pathlib import Path

import pytest


@pytest.fixture
def dictionaries(tmp_path: Path) -> Path:
    """Return a folder with the dictionaries of a small language."""
    from tests.batches import write_dictionaries

    return write_dictionaries(tmp_path)
