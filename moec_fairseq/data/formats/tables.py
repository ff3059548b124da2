"""Files that hold several texts: tables (TSV, CSV, Parquet), JSON lines, and translation memories (TMX).

Each is read as a stream, and once for all texts that are wanted of it. Memory holds a row, of Parquet a batch of rows.
"""

import csv
import json
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from lxml import etree

from moec_fairseq.data.formats.compressed import open_unpacked, unpacking_command
from moec_fairseq.data.formats.text import LONGEST, Sentence, check_file, raw_lines, too_long
from moec_fairseq.data.languages import same_language

_DELIMITERS = ",;\t"  # of CSV, the second where a comma is for decimals
_BATCH = 1000  # rows of Parquet
_TRANSLATION = "translation"  # where data sets of Hugging Face have languages
_CODES = ("bpt", "ept", "ph", "it", "ut", "sub")  # of TMX: formatting, and what is no part of the sentence
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_XML = "{http://www.w3.org/XML/1998/namespace}"


class Wanted(NamedTuple):
    """A text that is wanted of a file: its language, and the column, field or language that it is there, if named."""

    language: str
    field: str | None


# --- columns


def read_tsv(path: Path, wanted: Sequence[Wanted]) -> Iterator[tuple[Sentence, ...]]:
    """Yield texts of each line of a table with tabs, where quotes are text."""
    return _columns(path, wanted, enumerate((line.split("\t") for line in raw_lines(path)), start=1))


def read_csv(path: Path, wanted: Sequence[Wanted]) -> Iterator[tuple[Sentence, ...]]:
    """Yield texts of each row of a table with commas or semicolons, where quotes are around text that has them."""
    return _columns(path, wanted, _csv_rows(path))


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield rows, and the number of the line in which each ends."""
    # what is white space to us would be an error to Python's parser
    lines = (f"{line}\n".replace("\0", " ").replace("\r", " ") for line in raw_lines(path))
    first = next(lines)
    delimiter = next(filter(lambda sign: _separates(sign, first), _DELIMITERS), ",")
    rows = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
    try:
        for row in rows:
            yield rows.line_num, row
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {rows.line_num}: {error}; is a quotation mark missing, or is it a table with tabs (.tsv)?"
        ) from error


def _separates(sign: str, line: str) -> bool:
    try:
        return len(next(csv.reader([line], delimiter=sign, strict=True))) > 1
    except csv.Error:
        return False


def _columns(
    path: Path, wanted: Sequence[Wanted], rows: Iterator[tuple[int, list[str]]]
) -> Iterator[tuple[Sentence, ...]]:
    """Yield the wanted columns; the first row is a header unless all of them are numbers."""
    first = next(rows)
    header = not all(field and field.isdecimal() for _, field in wanted)
    places = [_column(path, first[1], *text) for text in wanted]
    for number, row in rows if header else chain([first], rows):
        try:
            yield tuple([row[place] for place in places])
        except IndexError:
            if any(row):
                raise ValueError(
                    f"{path}, line {number}: has {_counted(row)}, but column {max(places) + 1} is wanted"
                ) from None
            yield ("",) * len(places)  # an empty line


def _column(path: Path, first: Sequence[str], language: str, field: str | None) -> int:
    """Return the place of a column, of which ``first`` is the first row.

    Raises:
        ValueError: it is not clear which; says what there is, and how to name one.
    """
    if field and field.isdecimal():
        if not 1 <= int(field) <= len(first):
            raise ValueError(f"{path}, line 1: has {_counted(first)}, but column {field} is wanted")
        return int(field) - 1
    names = [name.strip() for name in first]
    fitting = _fitting(names, language) if field is None else [name for name in names if name == field]
    if len(fitting) == 1:
        return names.index(fitting[0])
    if len(first) < 2:
        raise ValueError(f"{path} has one text, without columns; give a file for the other language, too")
    shown = ", ".join(f"{number} ({name[:30]})" for number, name in enumerate(names[:9], start=1))
    raise ValueError(
        f"{path}: the first line has {_counted(first)}, {shown}, and does not name "
        f"{f'the text in {language}' if field is None else field}; say which column it is, as {path}#1"
    )


def _counted(row: Sequence[str]) -> str:
    return f"{len(row)} column{'s' if len(row) > 1 else ''}"


def _fitting(names: Iterable[str], language: str) -> list[str]:
    """Return the names that are that of the language, or of a variety where none is: en-US for en."""
    names = list(names)
    return [name for name in names if name.lower() == language.lower()] or [
        name for name in names if same_language(name, language)
    ]


# --- objects


def read_json(path: Path, wanted: Sequence[Wanted]) -> Iterator[tuple[Sentence, ...]]:
    """Yield texts of the object on each line."""
    return _objects(path, wanted, _json_rows(path), "line")


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(raw_lines(path), start=1):
        if not line.strip():
            continue
        if number == 1 and line.lstrip().startswith("["):
            command = f"jq -c '.[]' {shlex.quote(path.name)}"
            raise ValueError(f"{path} is one JSON array; write each object on a line of its own: {command}")
        try:
            row = json.loads(line, strict=False)
            if _SURROGATE.search(line):
                json.dumps(row, ensure_ascii=False).encode()
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: is not JSON ({error}); write an object on each line") from error
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{path}, line {number}: has half a character, such as \\ud83d alone; mend or remove the line"
            ) from error
        yield number, row


def read_parquet(path: Path, wanted: Sequence[Wanted]) -> Iterator[tuple[Sentence, ...]]:
    """Yield texts of each row of a Parquet file.

    Raises:
        ValueError: it cannot be read, or pyarrow, which reads it, is not installed.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ValueError(f'{path} is read by pyarrow, which is missing; pip install "moec-fairseq[parquet]"') from error
    check_file(path)
    if command := unpacking_command(path):
        raise ValueError(f"{path} is compressed, and Parquet is read only as it is; unpack it first: {command}")
    try:
        with parquet.ParquetFile(path, pre_buffer=False) as file:  # which would hold all of the file
            paths = _paths(path, _keys(file.schema_arrow), wanted)
            batches = file.iter_batches(_BATCH, columns=sorted({keys[0] for keys in paths}), use_threads=False)
            rows = enumerate((row for batch in batches for row in batch.to_pylist()), start=1)
            yield from _values(path, paths, rows, "row")
    except (ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the system
        raise ValueError(
            f"{path} cannot be read as Parquet ({str(error).splitlines()[0]}); get a whole copy"
        ) from error


def _keys(fields: Iterable[Any]) -> dict[str, Any]:
    """Return what a schema has as an object would have it: a dictionary for a field with fields."""
    from pyarrow.types import is_struct

    return {field.name: _keys(field.type) if is_struct(field.type) else "" for field in fields}


def _objects(
    path: Path, wanted: Sequence[Wanted], rows: Iterator[tuple[int, Any]], unit: str
) -> Iterator[tuple[Sentence, ...]]:
    """Yield the wanted fields of objects, all of which the first must have."""
    first = next(rows, None)
    if first is None:
        raise ValueError(f"{path} has no object; write one on each line")
    yield from _values(path, _paths(path, first[1], wanted), chain([first], rows), unit)


def _paths(path: Path, example: Any, wanted: Sequence[Wanted]) -> list[tuple[str, ...]]:
    """Return the keys that lead to each text in objects like an example."""
    return [_path(path, example, *text) for text in wanted]


def _path(path: Path, example: Any, language: str, field: str | None) -> tuple[str, ...]:
    if not isinstance(example, Mapping):
        raise ValueError(f'{path}: the first line is {json.dumps(example)[:40]}, not an object such as {{"en": "a"}}')
    starts: list[tuple[str, ...]] = [(), (_TRANSLATION,)]
    if field is not None:
        starts = [keys for keys in _leading(example) if ".".join(keys) == field]
    for keys in starts:
        found = _at(example, keys)
        if isinstance(found, Mapping):
            fitting = _fitting((key for key in found if not isinstance(found[key], Mapping)), language)
            if len(fitting) == 1:
                return (*keys, fitting[0])
        elif field is not None:
            return keys
    names = [".".join(keys) for keys in _leading(example) if not isinstance(_at(example, keys), Mapping)]
    raise ValueError(
        f"{path} has the fields {', '.join(names[:12]) or 'of an empty object'}, and does not say which is "
        f"{f'the text in {language}' if field is None else field}; name it, as {path}#{(names or ['text'])[0]}"
    )


def _leading(example: Mapping[str, Any], before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the keys that lead to everything in an object."""
    for key, value in example.items():
        yield (*before, key)
        if isinstance(value, Mapping):
            yield from _leading(value, (*before, key))


def _at(row: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        row = row.get(key) if isinstance(row, Mapping) else None
    return row


def _values(
    path: Path, paths: Sequence[tuple[str, ...]], rows: Iterable[tuple[int, Any]], unit: str
) -> Iterator[tuple[Sentence, ...]]:
    for number, row in rows:
        texts = tuple([_at(row, keys) for keys in paths])
        for keys, text in zip(paths, texts, strict=True):
            if text is not None and not isinstance(text, str):
                raise ValueError(
                    f"{path}, {unit} {number}: {'.'.join(keys)} is {repr(text)[:40]}, not text; name another field"
                )
            if text is not None and len(text) > LONGEST:
                raise too_long(path, f"{unit} {number}")
        yield texts


# --- translation memories


def read_tmx(path: Path, wanted: Sequence[Wanted]) -> Iterator[tuple[Sentence, ...]]:
    """Yield texts of each unit of a translation memory, None where it has none in a language.

    Raises:
        ValueError: it is not well-formed, or has nothing in a language.
    """
    check_file(path)
    languages: Counter[str] = Counter()
    found: Counter[Wanted] = Counter()
    choices: dict[tuple[str, ...], list[str | None]] = {}  # the languages of a unit -> those that are wanted
    with open_unpacked(path) as file:
        units = etree.iterparse(
            file, tag="{*}tu", resolve_entities=False, load_dtd=False, no_network=True, remove_comments=True,
            remove_pis=True,
        )  # fmt: skip
        try:
            for _, unit in units:
                texts = _variants(unit)
                languages.update(texts.keys())
                if (names := tuple(texts)) not in choices:
                    choices[names] = [next(iter(_fitting(names, text.field or text.language)), None) for text in wanted]
                chosen = tuple([None if name is None else texts[name] for name in choices[names]])
                found.update(text for text, sentence in zip(wanted, chosen, strict=True) if sentence is not None)
                yield chosen
                unit.clear()
                while unit.getprevious() is not None:
                    del unit.getparent()[0]
        except etree.XMLSyntaxError as error:
            reason = " ".join((error.msg or "it ends too early").partition(", line ")[0].split())
            raise ValueError(f"{path}, line {error.lineno}: is not XML ({reason}); mend the file") from error
    for text in wanted:
        if not found[text]:
            held = ", ".join(f"{name} ({number})" for name, number in languages.most_common()) or "no text"
            raise ValueError(
                f"{path} has nothing in {text.field or text.language}, but {held}; name a language, as "
                f"{path}#{text.language}"
            )


def _variants(unit: Any) -> dict[str, str]:
    """Return the text of a unit in each language."""
    texts: dict[str, str] = {}
    for variant in unit.iter("{*}tuv"):
        segment = variant.find("{*}seg")
        language = variant.get(f"{_XML}lang") or variant.get("lang") or ""
        if segment is not None:
            texts.setdefault(language, _without_codes(segment))
    return texts


def _without_codes(element: Any) -> str:
    """Return the text of a segment, without that of the codes of a format."""
    parts = [element.text or ""]
    for child in element:
        if isinstance(child.tag, str) and etree.QName(child).localname not in _CODES:
            parts.append(_without_codes(child))
        parts.append(child.tail or "")
    return "".join(parts)
