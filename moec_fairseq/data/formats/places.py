"""Where the sides of parallel texts are: which file, which member of an archive, which column or field of it.

A place is written FILE:MEMBER#FIELD. MEMBER is for archives, and may have wildcards; without it, the file that is named
as its language is taken, or the only one. FIELD is for files of several texts: the number of a column, its name in the
header, a path such as translation.en, or a language.
"""

import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from moec_fairseq.data.formats.archives import extract, is_archive, members_of
from moec_fairseq.data.formats.compressed import ENDINGS
from moec_fairseq.data.formats.sentences import Side
from moec_fairseq.data.languages import same_language

# endings that stand after the language
_LAYOUTS = re.compile(rf"(\.(sgml?|xml|txt|{'|'.join(ENDINGS)}))+$", re.IGNORECASE)
_ABOUT = re.compile(r"(readme|licen[cs]e|copying|notice)\b.*|\..*|.*\.(md|pdf|html?)", re.IGNORECASE)  # no texts
_WILDCARD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Place:
    """Where one side of a text is.

    Attributes:
        file: its path; in a recipe, the name of an archive.
        member: name of a file in it, where it is an archive; None: it is none, or its only text in this language.
        field: column, field or language in the file; None: the file has one text, or says which is in this language.
    """

    file: str
    member: str | None = None
    field: str | None = None

    def __str__(self) -> str:
        """Return it as it is written."""
        return self.file + (f":{self.member}" if self.member else "") + (f"#{self.field}" if self.field else "")


@dataclass(frozen=True)
class Part:
    """A parallel text.

    Attributes:
        use: train, valid or test.
        texts: where the text in each language is.
        reference: whose translation it is, where a file of SGML or XML has several; None: the first.
    """

    use: str
    texts: dict[str, Place]
    reference: str | None = None


def read_place(text: str) -> Place:
    """Return what ARCHIVE:MEMBER#FIELD says, in a recipe."""
    place, field = text.rsplit("#", 1) if "#" in text else (text, "")
    file, _, member = place.partition(":")
    return Place(file, member or None, field or None)


def own_place(text: str) -> Place:
    """Return what FILE:MEMBER#FIELD says on a command line; names of files may have these signs, too."""
    if Path(text).is_file():
        return Place(text)
    ways = [text.rsplit("#", 1), (text, "")] if "#" in text else [(text, "")]
    for whole, named in ways:
        for end in (len(whole), *(colon.start() for colon in re.finditer(":", whole))):
            if Path(whole[:end]).is_file():
                return Place(whole[:end], whole[end + 1 :] or None, named or None)
    return Place(text)  # there is no such file, which will be said


def check_sides(texts: Mapping[str, Place], names: Mapping[str, str], what: str) -> None:
    """Raise ValueError if both sides are the same text, or the names say that they are exchanged.

    Args:
        texts: where both are, by language.
        names: of the files that they are in.
        what: names the text in the message.
    """
    one, other = texts
    field = texts[one].field
    if texts[one] == texts[other] and field is not None and field.isdecimal():
        raise ValueError(f"{what}: both sides are {texts[one]}, but each must have a column of its own")
    for language, wrong in ((one, other), (other, one)) if texts[one] != texts[other] else ():
        if texts[language].field is None and _ends_in(names[language], wrong):
            raise ValueError(f"{what}: {names[language]} is taken for {language}; exchange the two sides")


def _ends_in(name: str, language: str) -> bool:
    return _LAYOUTS.sub("", name).endswith(f".{language}")


@contextmanager
def located(parts: Sequence[Part], files: Mapping[str, Path], folder: Path) -> Iterator[list[dict[str, Side]]]:
    """Yield the sides of each part, those in archives unpacked into a folder, which is removed at the end.

    Args:
        parts: that say where texts are.
        files: by the names that the parts have for them.
        folder: for what archives hold.

    Raises:
        ValueError: an archive is broken, or does not have what is wanted, or it is not clear what is.
    """
    found: dict[tuple[str, str | None, str], Path] = {}
    names: dict[Path, str] = {}  # of what is unpacked, for messages
    try:
        for number, (file, path) in enumerate(files.items()):
            wanted = dict.fromkeys(  # in this order, so that messages are always the same
                (place.member, language)
                for part in parts
                for language, place in part.texts.items()
                if place.file == file
            )
            if any(member for member, _ in wanted) or is_archive(path):
                members = _members(path, wanted)
                unpacked = extract(path, set(members.values()), folder / str(number))
                names |= {place: f"{path}:{member}" for member, place in unpacked.items()}
                found |= {(file, *text): unpacked[member] for text, member in members.items()}
            else:
                found |= {(file, *text): path for text in wanted}
        sides = []
        for part in parts:
            texts = {}
            for language, place in part.texts.items():
                path = found[place.file, place.member, language]
                texts[language] = Side(path, language, place.field, names.get(path))
            sides.append(texts)
        yield sides
    except ValueError as error:
        said = str(error)
        for path, name in names.items():
            said = said.replace(str(path), name)
        raise ValueError(said) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _members(archive: Path, wanted: Collection[tuple[str | None, str]]) -> dict[tuple[str | None, str], str]:
    """Return the names of the members that are meant by names, wildcards or languages alone."""
    if all(member and not _WILDCARD.search(member) for member, _ in wanted):
        return {(member, language): member for member, language in wanted if member}
    names = members_of(archive)
    return {(member, language): _member(archive, names, member, language) for member, language in wanted}


def _member(archive: Path, names: Sequence[str], member: str | None, language: str) -> str:
    if member and (member in names or not _WILDCARD.search(member)):
        return member
    if member:
        candidates = [name for name in names if fnmatchcase(name, member)]
        what = f"{member} means"
    else:
        texts = [name for name in names if not _ABOUT.fullmatch(PurePosixPath(name).name)]
        candidates = (
            [name for name in texts if _ends_in(f".{PurePosixPath(name).name}", language)]
            or [name for name in texts if same_language(_LAYOUTS.sub("", name).rpartition(".")[2], language)]
            or texts
        )
        what = f"the text in {language} may be"
    if len(candidates) == 1:
        return candidates[0]
    listed = ", ".join([*candidates[:8], *(["…"] if len(candidates) > 8 else [])])
    if not candidates:
        raise ValueError(f"{archive} has no {member or 'text'}; it has {', '.join([*names[:8], '…'])}")
    raise ValueError(f"{archive}: {what} any of {listed}; say which, as {archive}:{candidates[0]}")
