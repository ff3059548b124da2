"""Whatever happens to a file, it is refused in one sentence, or holds what it held."""

import random
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from fairseq import checkpoint_utils

from moec_fairseq.checkpoint.sharded import open_checkpoint
from moec_fairseq.checkpoint.state import load_state
from moec_fairseq.checkpoint.tools import info
from moec_fairseq.compat.checkpoints import check_ranks
from tests.checkpoint.made import assert_same
from tests.checkpoint.test_older_versions import OLD

# how it is read by the tools, by a training that resumes, and by the commands of fairseq
WAYS = {
    "tools": open_checkpoint,
    "info": info,
    "training": lambda path: check_ranks(path, world_size=1),
    "commands": lambda path: checkpoint_utils.load_checkpoint_to_cpu(str(path)),
}


@pytest.fixture(scope="module")
def content() -> bytes:
    """A checkpoint of a training, with its optimizer and moving averages."""
    with tarfile.open(OLD) as archive:
        return archive.extractfile("./one/checkpoint_last.pt").read()


def refused(path: Path, content: bytes) -> set[str]:
    """Write a file; return the ways in which it is refused, in one sentence that names it."""
    path.write_bytes(content)
    sentences = {}
    for name, read in WAYS.items():
        try:
            read(path)
        except ValueError as error:
            sentences[name] = str(error)
    assert all("\n" not in sentence and str(path) in sentence for sentence in sentences.values()), sentences
    return set(sentences)


def flipped(content: bytes, place: int, bit: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


def test_flipped_bits(content, tmp_path):
    path, seeded = tmp_path / "x.pt", random.Random(1)
    path.write_bytes(content)
    whole = load_state(path)
    with zipfile.ZipFile(path) as archive:
        pickle, tensor = (archive.read(f"archive/{name}") for name in ("data.pkl", "data/0"))
    for part in (pickle, tensor):
        start = content.index(part)
        for _ in range(60 if part is pickle else 3):
            damaged = flipped(content, seeded.randrange(start, start + len(part)), seeded.randrange(8))
            assert refused(tmp_path / "damaged.pt", damaged) == WAYS.keys()
    for first in [0] * 70 + [content.index(b"PK\x01\x02")] * 70:  # anywhere, and in the table of contents
        damaged = tmp_path / "damaged.pt"
        by = refused(damaged, flipped(content, seeded.randrange(first, len(content)), seeded.randrange(8)))
        assert by in (set(), WAYS.keys())
        if not by:  # padding, dates, …
            assert_same(load_state(damaged), whole)
    for _ in range(20):
        assert refused(tmp_path / "damaged.pt", content[: seeded.randrange(len(content))]) == WAYS.keys()


def test_flipped_bits_of_files_without_checksums(content, tmp_path):
    path, seeded = tmp_path / "x.pt", random.Random(2)
    path.write_bytes(content)
    torch.save(load_state(path), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    old = (tmp_path / "old.pt").read_bytes()
    assert not refused(path, old)
    pickles = old.index(b"storage")  # begin here, and are a fifth of the file
    found = [
        refused(path, flipped(old, seeded.randrange(pickles, len(old) // 5), seeded.randrange(8))) for _ in range(25)
    ]
    assert any(found)
