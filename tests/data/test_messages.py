import json
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import polib
import pytest

from moec_fairseq.data.cleaning import Pair
from moec_fairseq.data.corpora import WHEELS
from moec_fairseq.data.formats import compressed
from moec_fairseq.data.messages import Pin, fetch, find_wheels, read_pins, read_wheel, write_messages

from .made import make_wheel

COLOURS = ["red", "green", "blue", "black", "white", "grey", "brown", "pink", "gold", "teal"]
THINGS = ["house", "tree", "car", "dog", "lamp", "door", "book", "cup", "ship", "road", "hill", "bird"]


def catalog(pairs: dict[str, str]) -> polib.POFile:
    po = polib.POFile()
    po.metadata = {"Content-Type": "text/plain; charset=utf-8"}
    po.extend(polib.POEntry(msgid=source, msgstr=target) for source, target in pairs.items())
    return po


def compiled(po: polib.POFile, folder: Path) -> bytes:
    po.save_as_mofile(str(folder / "x.mo"))
    return (folder / "x.mo").read_bytes()


def test_catalogs_of_a_wheel(tmp_path: Path) -> None:
    po = catalog({"From a po file": "Aus einer po-Datei"})
    po.append(polib.POEntry(msgid="Not sure of it", msgstr="Unsicher", flags=["fuzzy"]))
    po.append(polib.POEntry(msgid="Long gone", msgstr="Weg", obsolete=True))
    po.append(polib.POEntry(msgid="%d file", msgid_plural="%d files", msgstr_plural={0: "%d Datei", 1: "%d Dateien"}))
    mo = compiled(catalog({"From an mo file": "Aus einer mo-Datei"}), tmp_path)
    make_wheel(
        tmp_path / "x.whl",
        {
            "a/locale/de_DE/LC_MESSAGES/a.mo": mo,
            "a/locale/de_DE/LC_MESSAGES/a.po": str(catalog({"Same as mo": "Wie mo"})).encode(),
            "a/locale/de_AT/LC_MESSAGES/a.mo": compiled(catalog({"Other variety": "Andere Art"}), tmp_path),
            "b/locale/angular/de.po": str(po).encode(),
            "c/translations/en.json": json.dumps({"a": {"b": "Hello you"}, "c": "Only English"}).encode(),
            "c/translations/de.json": json.dumps({"a": {"b": "Hallo du"}, "d": "Nur deutsch"}).encode(),
        },
    )
    assert list(read_wheel(tmp_path / "x.whl", "de")) == [
        Pair("From an mo file", "Aus einer mo-Datei"),
        Pair("From a po file", "Aus einer po-Datei"),
        Pair("%d file", "%d Datei"),
        Pair("%d files", "%d Dateien"),
        Pair("Hello you", "Hallo du"),
    ]


@pytest.mark.parametrize("target", ["pt-BR", "pt_BR"])
def test_a_variety_is_one_with_hyphen_and_underscore(tmp_path, target):
    files = {
        f"{name}.po": str(catalog({f"The {name}": f"O {name}"})).encode()
        for name in ("pt_BR/a", "pt-BR/b", "locale/pt_BR", "pt/c", "pt_PT/d")
    }
    files |= {f"translations/{name}.json": b'{"x": "%b"}' % name.encode() for name in ("en", "pt-BR", "pt")}
    make_wheel(tmp_path / "x.whl", files)
    found = {pair.target for pair in read_wheel(tmp_path / "x.whl", target)}
    assert found == {"O pt_BR/a", "O pt-BR/b", "O locale/pt_BR", "pt-BR"}


PO = str(catalog({"A red house": "Ein rotes Haus"})).encode()


@pytest.mark.parametrize("name", ["../../de/x.po", "{}/de/x.po", "./de//x.po", "de/x.po"])
def test_names_in_a_wheel_are_no_places(tmp_path, monkeypatch, name):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    make_wheel(tmp_path / "x.whl", {name.format(tmp_path): PO})
    assert list(read_wheel(tmp_path / "x.whl", "de")) == [Pair("A red house", "Ein rotes Haus")]
    assert list(tmp_path.iterdir()) == [tmp_path / "x.whl"]


def test_a_catalog_that_is_the_name_of_a_file(tmp_path):
    (tmp_path / "secret.po").write_bytes(PO)
    make_wheel(tmp_path / "x.whl", {"de/x.po": str(tmp_path / "secret.po").encode()})
    with pytest.raises(ValueError, match=r"x\.whl, de/x\.po cannot be read \(Syntax error"):
        list(read_wheel(tmp_path / "x.whl", "de"))


DEEP = b"[" * 100_000


@pytest.mark.parametrize("files", [
    {"de/x.mo": b"\xde\x12\x04\x95" + b"\xff" * 24}, {"de/x.mo": b""}, {"de/x.po": b"msgid \xff"},
    {"de/x.po": b'msgid "a"\nmsgid_plural "b"\nmsgstr[0] ""\nmsgstr "c"\nmsgstr'},
    {"translations/de.json": DEEP, "translations/en.json": DEEP},
    {"translations/de.json": b"{", "translations/en.json": b"{}"},
])  # fmt: skip
def test_a_broken_catalog_is_one_sentence(tmp_path, files):
    make_wheel(tmp_path / "x.whl", files)
    with pytest.raises(ValueError, match=r"x\.whl, .*\.(mo|po|json) cannot be read \(.*\); remove the wheel") as error:
        list(read_wheel(tmp_path / "x.whl", "de"))
    assert "\n" not in str(error.value)


def test_a_wheel_that_is_none(tmp_path):
    (tmp_path / "x.whl").write_bytes(b"PK none")
    with pytest.raises(ValueError, match=r"x\.whl cannot be read \(File is not a zip file\)"):
        list(read_wheel(tmp_path / "x.whl", "de"))


@pytest.mark.parametrize("others", [0, 9])
def test_a_bomb_in_a_wheel_is_not_unpacked(tmp_path, monkeypatch, others):
    monkeypatch.setattr(compressed, "_ROOM", 1 << 18)
    files = {"de/x.po": bytes(1 << (22 if not others else 17))} | {f"{n}/de.po": bytes(1 << 17) for n in range(others)}
    make_wheel(tmp_path / "x.whl", files, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=r"x\.whl cannot be read \(it unpacks to more than [\d,]+ bytes"):
        list(read_wheel(tmp_path / "x.whl", "de"))


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    pairs = {f"{a} {b}": f"{a.title()}es {b.title()}" for a in COLOURS for b in THINGS}
    first = str(catalog(pairs)).encode()
    second = str(catalog({"RED HOUSE": "rotes Haus", "Hello <b>you</b>": "Hallo du", "Good day": "Guten Tag"})).encode()
    hashes = [
        make_wheel(folder / f"{name}.whl", {"locale/de/LC_MESSAGES/x.po": content})
        for name, content in (("one", first), ("two", second))
    ]
    (folder / "wheels.txt").write_text(
        f"# a comment\none==1 --hash=sha256:{hashes[0]}  # MIT\n"
        f"two==2 --hash=sha256:{hashes[1]}  # BSD; full tier only\n"
    )
    return folder


def build(wheels: Path, target: str, out: Path) -> None:
    write_messages(find_wheels(wheels, read_pins(wheels / "wheels.txt", "full")), "en", {target: out})


def test_build_counts_and_repeats_itself(wheels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for out in ("a", "b"):
        build(wheels, "de", tmp_path / out)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["report.json", "test.de", "test.en", "train.de", "train.en", "valid.de", "valid.en"]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)
    report = json.loads((tmp_path / "a/report.json").read_text())
    assert report["packages"] == {"one": {"kept": 120}, "two": {"repeated source": 1, "html": 1, "kept": 1}}
    assert report["distinct pairs"] == 121
    assert sum(report["splits"].values()) + sum(report["left out of splits"].values()) == 121
    assert "repeated source" in capsys.readouterr().out


def test_tiers_and_damaged_wheels(wheels: Path, tmp_path: Path) -> None:
    assert [pin.name for pin in read_pins(wheels / "wheels.txt", "small")] == ["one"]
    (wheels / "two.whl").write_bytes(b"damaged")
    pins = read_pins(wheels / "wheels.txt", "full")
    assert [pin.name for pin in find_wheels(wheels, pins)] == ["one"]


def test_a_language_without_translations(wheels: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no translations into 'xx'"):
        build(wheels, "xx", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_list_of_the_repository_is_well_formed() -> None:
    pins = read_pins(WHEELS, "full")
    assert len(pins) == 15
    assert {pin.name for pin in pins if pin.full_only} == {"homeassistant", "indico"}
    assert {pin.licence for pin in pins} == {"Apache-2.0", "BSD", "BSD-3-Clause", "MIT"}


@pytest.fixture
def one_pin(tmp_path: Path) -> list[Pin]:
    digest = make_wheel(tmp_path / "one.whl", {"one": b"1"})
    path = tmp_path / "list.txt"
    path.write_text(f"one==1 --hash=sha256:{digest}  # MIT\n")
    return read_pins(path, "full")


def fake_pip(wheel: Path, log: str, code: int) -> Any:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        if code == 0:
            Path(command[-1], wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, code, "", log)

    return run


def test_a_wheel_is_fetched_once(one_pin: list[Pin], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(subprocess, "run", fake_pip(tmp_path / "one.whl", "", 0))
    fetch(one_pin, out)
    monkeypatch.setattr(subprocess, "run", fake_pip(tmp_path / "one.whl", "ERROR: called again", 1))
    fetch(one_pin, out)
    assert [path.name for path in out.iterdir()] == ["one.whl"]


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ("WARNING: Retrying after connection broken by ...\nERROR: No matching distribution", "does not answer"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES", "another hash"),
        ("noise\nERROR: disk full", "pip says 'ERROR: disk full'"),
    ],
)
def test_failures_are_one_sentence(
    one_pin: list[Pin], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: str, message: str
) -> None:
    monkeypatch.setattr(subprocess, "run", fake_pip(tmp_path / "one.whl", log, 1))
    with pytest.raises(ValueError, match=message) as error:
        fetch(one_pin, tmp_path / "out")
    assert "\n" not in str(error.value)
