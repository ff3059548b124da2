from pathlib import Path

import pytest


@pytest.fixture
def dictionaries(tmp_path: Path) -> Path:
    """Return a folder with the dictionaries of a small language."""
    from fairseq.data import Dictionary

    dictionary = Dictionary()
    for letter in "abcdefghij":
        dictionary.add_symbol(letter)
    for language in ("src", "tgt"):
        dictionary.save(str(tmp_path / f"dict.{language}.txt"))
    return tmp_path
