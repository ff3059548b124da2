from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moec_fairseq.data.formats.text import lines, normalise_space
from moec_fairseq.util.files import whole_texts


@pytest.mark.parametrize(
    "space", ["\u2028", "\u2029", "\u0085", "\f", "\v", "\x1c", "\t", "\u00a0", "\u2581", "\r\n", "\0"]
)
def test_every_separator_becomes_a_space(space: str) -> None:
    assert normalise_space(f"{space}one{space} two{space}") == "one two"


@given(st.text())
def test_normalised_text_is_one_line_and_stays_as_it_is(text: str) -> None:
    once = normalise_space(text)
    assert len(once.splitlines()) <= 1
    assert once.split() == ([] if not once else once.split(" "))
    assert normalise_space(once) == once


def test_lines_end_at_newlines_only_and_the_byte_order_mark_goes(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_bytes("\ufeffone\u2028two\r\n\r\nthree".encode())
    assert list(lines(file)) == ["one two", "", "three"]


def test_invalid_utf8_names_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_bytes(b"fine\nM\xfcnchen\n")
    with pytest.raises(ValueError, match=r"text, line 2: byte 2 is not valid UTF-8"):
        list(lines(file))


@pytest.mark.parametrize(("content", "message"), [(None, "no such file"), (b"", "the file is empty")])
def test_missing_and_empty_files(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "text"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(lines(file))


def test_an_interrupted_file_leaves_the_old_one(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_text("old")
    with pytest.raises(KeyboardInterrupt), whole_texts([file]) as (opened,):
        opened.write("half")
        raise KeyboardInterrupt
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]
