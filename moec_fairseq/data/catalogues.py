"""Corpora by their names in catalogues: OPUS, and mtdata, which knows those of many publishers.

OPUS (https://opus.nlpl.eu) has a zip archive of two aligned files for each pair of languages. mtdata
(https://github.com/thammegowda/mtdata) is a package with an index that needs no network; it says where a corpus is.
"""

import re
from typing import Any

from moec_fairseq.data.formats.archives import Archive
from moec_fairseq.data.formats.places import Place

OPUS = "https://object.pouta.csc.fi/OPUS-{corpus}/{version}/moses/{pair}.txt.zip"
_TWO_FILES = ("txt", "raw", "sgm")  # mtdata's names of formats that have a file for each side
_ONE_FILE = ("tsv", "tmx", "wmt21xml")  # and of those that have one for both; others are not read here

Found = tuple[dict[str, Archive], list[dict[str, Place]]]  # archives by name, texts of each part


def from_opus(name: str, source: str, target: str) -> Found:
    """Return where a corpus of OPUS is.

    Args:
        name: CORPUS/VERSION, or CORPUS/VERSION/SRC-TGT where OPUS has other codes of the languages.
        source: language.
        target: language.

    Raises:
        ValueError: the name is none.
    """
    known = re.fullmatch(r"([\w.-]+)/([\w.-]+)(?:/([\w-]+))?", name)
    if known is None:
        raise ValueError(f"opus is {name}, but must be CORPUS/VERSION, such as Tatoeba/v2023-04-12")
    corpus, version, pair = known.groups()
    pair = pair or "-".join(sorted((source, target)))
    archive = Archive(
        f"opus {corpus}/{version}/{pair}",
        OPUS.format(corpus=corpus, version=version, pair=pair),
        f"see https://opus.nlpl.eu/{corpus}",
        f"{corpus}-{version}-{pair}.txt.zip",
    )
    return {archive.name: archive}, [{language: Place(archive.name) for language in (source, target)}]


def from_mtdata(name: str, source: str, target: str) -> Found:
    """Return where a corpus is that mtdata knows.

    Args:
        name: its id there, such as Statmt-europarl-9-deu-eng.
        source: language.
        target: language.

    Raises:
        ValueError: mtdata is not installed, does not know it, or it is not in these languages or in a form that is not
            read here.
    """
    entry = _entry(name)
    order = _in_order(entry, source, target)
    form = (entry.in_ext or entry.ext.partition(".")[0]).lower()
    urls = [entry.url] if isinstance(entry.url, str) else list(entry.url)
    endings = [f".{language}" for language in order] if len(urls) > 1 else [""]
    archives = [
        Archive(f"mtdata {url}", url, f"see mtdata {name}", f"{name}{ending}.{entry.ext}")
        for url, ending in zip(urls, endings, strict=True)
    ]
    places = [(archive.name, member) for archive in archives for member in entry.in_paths or [None]]
    two_files = form in _TWO_FILES or len(urls) > 1
    if form not in (*_TWO_FILES, *_ONE_FILE) or (two_files and len(places) != 2):
        raise ValueError(
            f"{name} is published in a form ({form}) that is not read here; fetch it with mtdata get, and give the "
            "files as your own text, or as archives with a URL"
        )
    columns = entry.cols or ((0, 1) if form == "tsv" else ())  # from 0
    fields: list[str | None] = [str(column + 1) for column in columns] or [None]
    fields = fields * 2 if len(fields) == 1 else fields
    texts = [
        {
            language: Place(file, member, field)
            for language, (file, member), field in zip(order, both, fields, strict=True)
        }
        for both in ([places] if two_files else [[place, place] for place in places])
    ]
    return {archive.name: archive for archive in archives}, texts


def _entry(name: str) -> Any:
    try:
        from mtdata import cached_index_file

        if not cached_index_file.exists():
            print("mtdata makes its index, which it does once; that takes a minute ...", flush=True)
        from mtdata.entry import DatasetId
        from mtdata.index import INDEX
    except ImportError as error:
        raise ValueError(
            f'{name} is looked up in mtdata, which is missing: pip install "moec-fairseq[mtdata]"; or name archives '
            "with their URLs"
        ) from error
    try:
        return INDEX[DatasetId.parse(name)]
    except Exception as error:  # mtdata raises nothing more special
        raise ValueError(
            f"mtdata knows no {name} ({type(error).__name__}); mtdata list -id shows what it knows, and the id must be "
            "written as there"
        ) from error


def _in_order(entry: Any, source: str, target: str) -> list[str]:
    """Return the two languages in the order in which an entry of mtdata has them."""
    from mtdata.iso.bcp47 import BCP47Tag, bcp47

    try:
        fits, swapped = BCP47Tag.check_compat_swap((bcp47(source), bcp47(target)), entry.did.langs)
    except Exception:  # of codes that are none, or of one language
        fits = swapped = False
    if not fits:
        raise ValueError(f"mtdata's {entry.did} is not in {source} and {target}")
    return [target, source] if swapped else [source, target]
