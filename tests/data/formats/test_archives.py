"""Archives as somebody might make them who means harm, or does not know better."""

import gzip
import io
import lzma
import tarfile
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moec_fairseq.data.formats import compressed
from moec_fairseq.data.formats.archives import extract


def make(path, *members, mode="w:gz"):
    """Write a tar archive of (name, content) or (name, type, target of a link)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, *what in members:
            info = tarfile.TarInfo(name)
            content = what[0] if isinstance(what[0], bytes) and len(what) == 1 else b""
            if len(what) == 2:
                info.type, info.linkname = what
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def all_files(folder):
    return {path for path in folder.rglob("*") if not path.is_dir()}


@pytest.mark.parametrize("name", ["../../x.en", "{}/x.en", "a/../../x.en", "..", "a/b/.."])
def test_names_are_no_places(tmp_path, name):
    name = name.format(tmp_path)
    archive = make(tmp_path / "in/a.tgz", ("x.de", b"eins\n"), (name, b"one\n"))
    assert extract(archive, {"x.de"}, tmp_path / "in/out")["x.de"].read_bytes() == b"eins\n"
    assert {path.name for path in all_files(tmp_path)} == {"a.tgz", "x.de"}
    if not name.endswith(".."):  # a recipe may name it as it is
        found = extract(archive, {name}, tmp_path / "in/out")
        assert [path.read_bytes() for path in found.values()] == [b"one\n"]
        assert all(path.is_relative_to(tmp_path / "in") for path in all_files(tmp_path))


def test_names_that_are_alike_but_for_slashes(tmp_path):
    names = ["a/b", "a_b", "a/b.part", "b", "c/b"]
    archive = make(tmp_path / "a.tgz", *((name, name.encode()) for name in names))
    found = extract(archive, names, tmp_path / "out")
    assert {name: path.read_bytes().decode() for name, path in found.items()} == {name: name for name in names}
    assert all(path.name == name.split("/")[-1] for name, path in found.items())  # which says the layout


@pytest.mark.parametrize("kind, target, words", [
    (tarfile.SYMTYPE, "/etc/passwd", "x.en is a link to /etc/passwd, not a file"),
    (tarfile.LNKTYPE, "x.de", "x.en is a link to x.de, not a file"),
    (tarfile.CHRTYPE, "", "x.en is a device or the like, not a file"),
    (tarfile.FIFOTYPE, "", "x.en is a device or the like, not a file"),
])  # fmt: skip
def test_what_is_no_file(tmp_path, kind, target, words):
    archive = make(tmp_path / "a.tgz", ("x.de", b"eins\n"), ("x.en", kind, target))
    with pytest.raises(ValueError, match=rf"a\.tgz: {words}; name a file"):
        extract(archive, {"x.en", "x.de"}, tmp_path / "out")
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))
    assert list(extract(archive, {"x.de"}, tmp_path / "out")) == ["x.de"]  # what is not wanted does no harm


def test_a_file_through_a_link_of_the_archive(tmp_path):
    archive = make(tmp_path / "a.tgz", ("d", tarfile.SYMTYPE, str(tmp_path)), ("d/x.en", b"one\n"))
    assert extract(archive, {"d/x.en"}, tmp_path / "out")["d/x.en"].read_bytes() == b"one\n"
    assert all_files(tmp_path) == {archive, *all_files(tmp_path / "out")}


@pytest.mark.parametrize("again", ["x.en", "./x.en", "x.en.gz", ".//x.en.bz2"])
def test_a_member_that_is_there_twice(tmp_path, again):
    archive = make(tmp_path / "a.tgz", ("x.en", b"one\n"), (again, gzip.compress(b"two\n")))
    with pytest.raises(ValueError, match=r"a\.tgz has x\.en more than once"):
        extract(archive, {"x.en"}, tmp_path / "out")


def test_a_folder_of_that_name_is_none(tmp_path):
    archive = make(tmp_path / "a.tar", ("x.en", tarfile.DIRTYPE, ""), mode="w")
    with pytest.raises(ValueError, match=r"a\.tar has no x\.en; it has x\.en, …"):
        extract(archive, {"x.en"}, tmp_path / "out")


@pytest.mark.parametrize("ending, mode", [("tgz", "w:bz2"), ("tar.bz2", "w:xz"), ("tar.xz", "w"), ("tar", "w:gz")])
def test_archives_are_known_by_their_content(tmp_path, ending, mode):
    archive = make(tmp_path / f"a.{ending}", ("x.en", b"one\n"), mode=mode)
    assert extract(archive, {"x.en"}, tmp_path / "out")["x.en"].read_bytes() == b"one\n"


@pytest.mark.parametrize("content, message", [
    (b"\x04\x22\x4d\x18", r"a\.tgz is a file compressed by lz4, .* lz4 -d a\.tgz"),
    (b"one\ntwo\n" * 999, r"a\.tgz is not a tar archive \(.*\), but x\.en is wanted out of it"),
    (gzip.compress(b"one\n" * 999, mtime=0), r"a\.tgz is not a tar archive \(.*\), but x\.en"),
    (gzip.compress(bytes(1024), mtime=0), r"a\.tgz has no x\.en; it has …"),
])  # fmt: skip
def test_what_is_no_tar_archive(tmp_path, content, message):
    (tmp_path / "a.tgz").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        extract(tmp_path / "a.tgz", {"x.en"}, tmp_path / "out")


def make_zip(path, *members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def test_a_zip_archive(tmp_path):
    archive = make_zip(
        tmp_path / "a.zip", ("d/", b""), ("d/x.en", b"one\n"), ("../x.de", b"eins\n"), ("d/y.en", b"two\n")
    )
    found = extract(archive, {"d/x.en", "../x.de"}, tmp_path / "out")
    assert {name: path.read_bytes() for name, path in found.items()} == {"d/x.en": b"one\n", "../x.de": b"eins\n"}
    assert all_files(tmp_path) == {archive, *found.values()}
    assert all(path.is_relative_to(tmp_path / "out") for path in found.values())
    with pytest.raises(ValueError, match=r"a\.zip has no x\.en; it has \.\./x\.de, d/, d/x\.en, d/y\.en, …"):
        extract(archive, {"x.en"}, tmp_path / "out")
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"a\.zip is broken \(File is not a zip file\); remove it and start again"):
        extract(archive, {"d/x.en"}, tmp_path / "out")


def test_a_zip_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(compressed, "_ROOM", 1 << 18)
    archive = make_zip(tmp_path / "a.zip", ("bomb", bytes(1 << 22)), ("x.en", b"one\n"))
    assert extract(archive, {"x.en"}, tmp_path / "out")["x.en"].read_bytes() == b"one\n"
    with pytest.raises(ValueError, match=r"a\.zip: bomb is larger than the archive can hold"):
        extract(archive, {"bomb"}, tmp_path / "out")


def size_of(folder):
    return sum(path.stat().st_size for path in all_files(folder))


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("wanted", ["x.en", "bomb"])
def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch, mode, wanted):
    monkeypatch.setattr(compressed, "_ROOM", 1 << 18)
    archive = make(tmp_path / "a.tar", ("bomb", bytes(1 << 22)), ("x.en", b"one\n"), mode=mode)
    with pytest.raises(ValueError, match=r"a\.tar unpacks to more than [\d,]+ bytes"):
        extract(archive, {wanted}, tmp_path / "out")
    assert not (tmp_path / "out").exists() or size_of(tmp_path / "out") <= max(1 << 18, 100 * archive.stat().st_size)


def test_holes_are_not_filled_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(compressed, "_ROOM", 1 << 20)
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("x.en")
        info.pax_headers = {
            "GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "x.en", "GNU.sparse.numblocks": "1",
            "GNU.sparse.map": "0,0", "GNU.sparse.size": str(1 << 50),
        }  # fmt: skip
        archive.addfile(info)
    with pytest.raises(ValueError, match=r"a\.tar: x\.en is larger than the archive can hold"):
        extract(path, {"x.en"}, tmp_path / "out")
    assert size_of(tmp_path / "out") <= 1 << 20


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["tar", "zip"]),
    st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=12)), min_size=1, max_size=4),
)
def test_damage_is_one_sentence_and_stays_in_the_folder(tmp_path, kind, damage):
    texts = ("x.en", b"one\n"), ("x.de", b"eins\n")
    whole = make_zip(tmp_path / "whole", *texts) if kind == "zip" else make(tmp_path / "whole", *texts, mode="w")
    content = bytearray(whole.read_bytes())
    for part, wrong in damage:
        place = int(part * min(len(content), 3 * 512))
        content[place : place + len(wrong)] = wrong
    (tmp_path / "a.tgz").write_bytes(content)
    try:
        found = extract(tmp_path / "a.tgz", {"x.en"}, tmp_path / "out")
        assert found["x.en"].is_relative_to(tmp_path / "out")
    except ValueError as error:
        assert str(error).startswith(str(tmp_path / "a.tgz")) and "\n" not in str(error)
    outside = {path for path in all_files(tmp_path) if not path.is_relative_to(tmp_path / "out")}
    assert outside == {tmp_path / "whole", tmp_path / "a.tgz"}


def test_members_stay_compressed_under_their_names(tmp_path):
    archive = make(tmp_path / "a.tgz", ("x.en.gz", gzip.compress(b"one\n")), ("x.de.xz", lzma.compress(b"eins\n")))
    found = extract(archive, {"x.en", "x.de"}, tmp_path / "out")
    assert [compressed.open_unpacked(found[f"x.{side}"]).read() for side in ("en", "de")] == [b"one\n", b"eins\n"]
    assert found["x.en"].name == "x.en.gz"
