import bz2
import gzip
import io
import lzma
import random
import tarfile
import zipfile
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moec_fairseq.data.formats import compressed
from moec_fairseq.data.formats.sentences import Side, parallel_sentences
from moec_fairseq.data.formats.text import raw_lines

from ..made import own
from ..test_splits import SOURCES, TARGETS

packed = partial(gzip.compress, mtime=0)  # the same in each process of pytest
WAYS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": compressed.zstd.compress}
TEXT = "eins\nzwei\u2028noch zwei\r\n\nvier"
LINES = ["eins", "zwei\u2028noch zwei", "", "vier"]


def zipped(content: bytes) -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
        archive.writestr(zipfile.ZipInfo("text.de"), content)
    return file.getvalue()


def tarred(content: bytes) -> bytes:
    with tarfile.open(fileobj=(file := io.BytesIO()), mode="w") as archive:
        info = tarfile.TarInfo("text.de")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["text.de", "text.de.gz", "text.de.bz2"])
def test_compressed_text_is_read_whatever_its_name(tmp_path, way, name):
    (tmp_path / name).write_bytes(WAYS[way](("\ufeff" + TEXT).encode()))
    assert list(raw_lines(tmp_path / name)) == LINES


def test_text_with_the_name_of_a_compressed_file(tmp_path):
    (tmp_path / "text.gz").write_text(TEXT, newline="")
    assert list(raw_lines(tmp_path / "text.gz")) == LINES


@settings(max_examples=20, deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), min_size=1), min_size=1))
def test_compressed_or_not_is_the_same(tmp_path_factory, lines):
    folder = tmp_path_factory.mktemp("text")
    content = "".join(f"{line}\n" for line in lines).encode()
    (folder / "plain").write_bytes(content)
    for way, compress in WAYS.items():
        cut = len(content) // 2
        (folder / way).write_bytes(compress(content[:cut]) + compress(content[cut:]))  # as pigz and cat make it
        assert list(raw_lines(folder / way)) == list(raw_lines(folder / "plain"))


LZ4 = b"\x04\x22\x4d\x18\x64\x40\xa7"


@pytest.mark.parametrize("content, words", [
    (LZ4, ["is a file compressed by lz4, which cannot be read here; unpack it first: lz4 -d 'my text.de'"]),
    (compressed.zstd.compress(TEXT.encode())[:-9], ["is broken (Compressed file ended"]),
    (zipped(b"eins\n"), ["is a zip archive", "unzip 'my text.de'"]),
    (tarred(b"eins\n"), ["is a tar archive, not text; unpack it: tar -xf 'my text.de'"]),
    (packed(tarred(b"eins\n")), ["is a tar archive"]),
    (b"7z\xbc\xaf\x27\x1c\x00\x04", ["is a 7z archive"]),
    (packed(packed(b"eins\n")), ["holds a file that is compressed again; unpack it first: gzip -d"]),
    (lzma.compress(LZ4), ["holds a file that is compressed again; unpack it first: xz -d"]),
    (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", ["is not text but a binary file"]),
    (b"MMIDIDX\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00", ["is not text but a binary file"]),
    (b"\x80\x04\x95\x0f\x00\x8c\xffpickle", ["is not text but a binary file"]),
    ("für\n".encode("utf-16"), ["is in UTF-16; convert it to UTF-8: iconv -f utf-16 -t utf-8 'my text.de'"]),
    ("für\n".encode("utf-16-le"), ["is not text but a binary file"]),
    ("für\n".encode("utf-32"), ["is in UTF-32", "iconv -f utf-32"]),
    (bz2.compress("für\n".encode("latin1")), ["line 1: byte 2 is not valid", "bzip2 -dc 'my text.de' | iconv -f"]),
    ("gut\nfür\n".encode("latin1"), ["line 2: byte 2 is not valid UTF-8", "iconv -f latin1 -t utf-8 'my text.de'"]),
    (packed(b""), ["the file is empty"]),
    (packed(TEXT.encode() * 999)[:-9], ["is broken (Compressed file ended", "start again with a whole copy"]),
    (lzma.compress(TEXT.encode())[:-9], ["is broken (Compressed file ended"]),
    (bz2.compress(TEXT.encode())[:20] + bytes(99), ["is broken (Invalid data stream)"]),
])  # fmt: skip
def test_what_is_no_text_is_one_sentence(tmp_path, content, words):
    path = tmp_path / "my text.de"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        list(raw_lines(path))
    said = str(error.value)
    assert said.startswith(str(path)) and "\n" not in said and all(word in said for word in words), said
    assert ("iconv" in said) == any("iconv" in word for word in words)


@pytest.mark.parametrize("way", WAYS)
def test_a_decompression_bomb_is_not_unpacked(tmp_path, monkeypatch, way):
    monkeypatch.setattr(compressed, "_ROOM", 1 << 18)
    path = tmp_path / "text.de"
    path.write_bytes(WAYS[way](b"a\n" * (1 << 20)))
    read = 0
    with pytest.raises(ValueError, match=r"text\.de unpacks to more than [\d,]+ bytes, .* unpack it yourself"):
        for _ in raw_lines(path):
            read += 2
    assert read <= max(1 << 18, 100 * path.stat().st_size)


def test_text_may_shrink_a_lot(tmp_path, monkeypatch):
    monkeypatch.setattr(compressed, "_ROOM", 1)
    chance = random.Random(1)
    text = "".join(f"Resolution {chance.randrange(999)} was adopted without a vote.\n" for _ in range(20_000))
    (tmp_path / "text").write_bytes(packed := lzma.compress(text.encode()))
    assert len(packed) < len(text) / 10
    assert "\n".join(raw_lines(tmp_path / "text")) + "\n" == text


def compress(path: Path, way: str, rename: bool = True) -> None:
    content = WAYS[way](path.read_bytes())
    path.unlink()
    path.with_name(f"{path.name}.{way}" if rename else path.name).write_bytes(content)


@pytest.mark.parametrize("source, target", [(("gz", True), ("xz", False)), (("bz2", True), None)])
def test_own_text_that_is_compressed(tmp_path, source, target):
    for name in ("plain", "packed"):
        (tmp_path / f"{name}.en").write_text("\n".join(SOURCES) + "\n")
        (tmp_path / f"{name}.de").write_text("\n".join(TARGETS) + "\n")
    compress(tmp_path / "packed.en", *source)
    if target:
        compress(tmp_path / "packed.de", *target)
    for name in ("plain", "packed"):
        own(str(tmp_path / name), None, None, "en", "de", tmp_path / f"out-{name}")
    texts = [{p.name: p.read_bytes() for p in (tmp_path / f"out-{n}").glob("*.??")} for n in ("plain", "packed")]
    assert texts[0] == texts[1] and len(texts[0]) == 6


def test_a_file_wins_over_a_compressed_one_beside_it(tmp_path):
    (tmp_path / "t.en").touch()
    (tmp_path / "t.en.gz").touch()
    (tmp_path / "t.de.zst").touch()
    found = [compressed.found_as(tmp_path / name).name for name in ("t.en", "t.de", "t.fr")]
    assert found == ["t.en", "t.de.zst", "t.fr"]


def test_different_numbers_of_sentences_are_counted_in_what_files_hold(tmp_path):
    (tmp_path / "t.en").write_bytes(gzip.compress(b"a\nb\nc\n"))
    (tmp_path / "t.de").write_text("A\n")
    with pytest.raises(ValueError, match=r"t\.en has 3 sentences, but .*t\.de has 1"):
        list(parallel_sentences(Side(tmp_path / "t.en", "en"), Side(tmp_path / "t.de", "de")))
