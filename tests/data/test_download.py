import errno
import hashlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from moec_fairseq.data.formats import archives as module
from moec_fairseq.data.formats.archives import Archive, download

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def web(tmp_path, server):
    (tmp_path / "web" / "a.tgz").write_bytes(CONTENT)
    return server


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0.0)


def archive(server, **known):
    return Archive("a", f"{server.url}/a.tgz", "none", **known)


def test_a_file_comes_once(tmp_path, web):
    known = {
        "bytes": len(CONTENT),
        "sha256": hashlib.sha256(CONTENT).hexdigest().upper(),
        "md5": hashlib.md5(CONTENT).hexdigest(),
    }
    for _ in range(2):
        assert download(archive(web, **known), tmp_path / "raw").read_bytes() == CONTENT
    assert len(web.requests) == 1
    assert [path.name for path in (tmp_path / "raw").glob("[!.]*")] == ["a.tgz"]


def test_a_broken_connection_goes_on_where_it_was(tmp_path, web):
    web.break_after["/a.tgz"] = [1000, 500]
    assert download(archive(web), tmp_path / "raw").read_bytes() == CONTENT
    assert web.requests == [("/a.tgz", None), ("/a.tgz", "bytes=1000-"), ("/a.tgz", "bytes=1500-")]


def test_a_download_goes_on_in_the_next_run(tmp_path, web, monkeypatch):
    web.break_after["/a.tgz"] = [1000] + 10 * [0]
    with pytest.raises(ValueError, match=r"cannot be downloaded .*check the network and start again"):
        download(archive(web), tmp_path / "raw")
    assert not (tmp_path / "raw" / "a.tgz").exists()
    web.break_after.clear()
    assert download(archive(web), tmp_path / "raw").read_bytes() == CONTENT
    assert web.requests[-1] == ("/a.tgz", "bytes=1000-")


def test_a_file_that_has_changed_meanwhile_comes_anew(tmp_path, web):
    web.break_after["/a.tgz"] = [1000] + 10 * [0]
    with pytest.raises(ValueError):
        download(archive(web), tmp_path / "raw")
    web.break_after.clear()
    web.version = "2"
    (tmp_path / "web" / "a.tgz").write_bytes(CONTENT[::-1])
    assert download(archive(web), tmp_path / "raw").read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize(
    "known, message",
    [
        ({"bytes": 7}, "has 10240 bytes instead of 7"),
        ({"md5": "X"}, "has the md5 checksum [0-9a-f]{32} instead of X"),
        ({"sha256": "x"}, "has the sha256 checksum [0-9a-f]{64} instead of x"),
    ],
)
def test_a_wrong_file_does_not_stay(tmp_path, web, known, message):
    with pytest.raises(ValueError, match=message):
        download(archive(web, **known), tmp_path / "raw")
    assert not any(path.suffix in (".tgz", ".part") for path in (tmp_path / "raw").iterdir())


def test_what_is_longer_than_the_file_is_dropped(tmp_path, web):
    (tmp_path / "a.tgz.part").write_bytes(CONTENT + b"of another file")
    (tmp_path / "a.tgz.part.etag").write_text('"1"')
    assert download(archive(web), tmp_path).read_bytes() == CONTENT


def test_what_has_come_whole_is_not_downloaded_again(tmp_path, web):
    (tmp_path / "a.tgz.part").write_bytes(CONTENT)
    (tmp_path / "a.tgz.part.etag").write_text('"1"')
    assert download(archive(web), tmp_path).read_bytes() == CONTENT
    assert web.requests == [("/a.tgz", f"bytes={len(CONTENT)}-")]


def test_two_recipes_that_want_the_same_file_get_it_once(tmp_path, web):
    web.break_after["/a.tgz"] = [1000] * 9
    with ThreadPoolExecutor() as pool:
        paths = list(pool.map(lambda _: download(archive(web), tmp_path), range(4)))
    assert {path.read_bytes() for path in paths} == {CONTENT}
    assert len(web.requests) == 10


@pytest.mark.parametrize("error", [429, 503])
def test_a_busy_server_is_asked_again(tmp_path, web, error):
    web.busy["/a.tgz"] = [error, error]
    assert download(archive(web), tmp_path).read_bytes() == CONTENT


def test_a_full_disk_is_no_trouble_of_the_network(tmp_path, web, monkeypatch):
    monkeypatch.setattr(module.tqdm, "update", full)
    with pytest.raises(OSError, match="No space left"):
        download(archive(web), tmp_path)
    assert len(web.requests) == 1


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_wrong_file_of_the_user_stays(tmp_path, web):
    (tmp_path / "a.tgz").write_bytes(b"mine")
    with pytest.raises(ValueError, match="has 4 bytes instead of 7; remove it and start again"):
        download(archive(web, bytes=7), tmp_path)
    assert (tmp_path / "a.tgz").read_bytes() == b"mine" and web.requests == []


def test_a_folder_that_cannot_be_written_to(tmp_path, web, monkeypatch):
    monkeypatch.setattr(module.os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(ValueError, match=r"has no a\.tgz, and cannot be written to; get it from http"):
        download(archive(web), tmp_path)


def test_a_server_that_always_begins_anew_is_given_up(tmp_path, web):
    web.break_after["/a.tgz"] = [900, 1000, *range(800, 900)]
    web.version = "weak"
    with pytest.raises(ValueError, match="the connection ended after"):
        download(archive(web), tmp_path)
    assert len(web.requests) == 2 + module.TRIES


def test_no_such_file(tmp_path, server):
    with pytest.raises(ValueError, match="the server says 404 .*; put the file into --raw-dir as a.tgz"):
        download(archive(server), tmp_path)


def test_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TRIES", 2)
    with pytest.raises(ValueError, match=r"cannot be downloaded \(.*refused"):
        download(Archive("a", "http://127.0.0.1:9/a.tgz", "none"), tmp_path)
