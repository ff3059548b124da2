"""Recipes: which archives hold a corpus, which of their files are which part of it, and how to read them."""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from moec_fairseq.data.archives import TAR, Archive
from moec_fairseq.data.languages import SPLITS, check_languages
from moec_fairseq.data.markup import is_named_as_markup

_LAYOUTS = re.compile(r"(\.(sgml?|xml|txt|gz|bz2|xz))+$", re.IGNORECASE)  # endings that stand after the language


@dataclass(frozen=True)
class Part:
    """A parallel text.

    Attributes:
        use: train, valid or test.
        texts: (archive, member) of each language, member None where the archive is the text itself.
        reference: whose translation it is, where a file has several; None: the first.
    """

    use: str
    texts: dict[str, tuple[str, str | None]]
    reference: str | None = None


@dataclass(frozen=True)
class Recipe:
    """A corpus.

    Attributes:
        name: of the recipe's file.
        source: language to translate from.
        target: language to translate to.
        archives: by name.
        parts: in the order in which they are joined.
        valid_every: this pair of every so many of the training text is for validation; None: there are parts for it.
    """

    name: str
    source: str
    target: str
    archives: dict[str, Archive]
    parts: list[Part] = field(default_factory=list)
    valid_every: int | None = None


def read_recipe(path: Path, source: str | None = None, target: str | None = None) -> Recipe:
    """Return what a recipe says.

    Args:
        path: a YAML file as in ``data/``.
        source: translate from this one of its two languages instead of its own choice.
        target: likewise.

    Raises:
        ValueError: the file does not make sense; says where.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        _check_keys(content, ("source", "target", "archives", "parts", "valid_every"))
        recipe = Recipe(
            path.stem,
            content["source"],
            content["target"],
            {name: Archive(name, **values) for name, values in content["archives"].items()},
            [_part(values) for values in content["parts"]],
            content.get("valid_every"),
        )
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} is not a recipe ({reason}); data/README.md describes them") from error
    _check(recipe, path)
    return _directed(recipe, source, target)


def _check_keys(values: Mapping[str, Any], known: Collection[str]) -> None:
    for key in values:
        if key not in known:
            raise KeyError(f"{key} is none of {', '.join(known)}")


def _part(values: dict[str, Any]) -> Part:
    _check_keys(values, ("use", "texts", "reference"))
    texts = {}
    for language, place in values["texts"].items():
        archive, _, member = place.partition(":")
        texts[language] = (archive, member or None)
    return Part(values["use"], texts, values.get("reference"))


def _check(recipe: Recipe, path: Path) -> None:
    _check_values(recipe, path)
    for part in recipe.parts:
        if part.use not in SPLITS:
            raise ValueError(f"{path}: a part is for {part.use!r}, but must be for one of {', '.join(SPLITS)}")
        if set(part.texts) != {recipe.source, recipe.target}:
            raise ValueError(
                f"{path}: a part for {part.use} has {', '.join(part.texts)}, but must have {recipe.source} and "
                f"{recipe.target}"
            )
        for archive, _ in part.texts.values():
            if archive not in recipe.archives:
                raise ValueError(f"{path}: a part for {part.use} is in {archive!r}, which is not among the archives")
        _check_sides(recipe, part, path)
    _check_members(recipe, path)
    for use in SPLITS:
        if not any(part.use == use for part in recipe.parts) and not (use == "valid" and recipe.valid_every):
            raise ValueError(f"{path}: no part is for {use}; add one" + (", or valid_every" if use == "valid" else ""))


def _check_values(recipe: Recipe, path: Path) -> None:
    for language in (recipe.source, recipe.target):
        if not isinstance(language, str):
            raise ValueError(f"{path}: {language!r} is not a language; put a code such as no in quotes")
    check_languages(recipe.source, recipe.target)
    for archive in recipe.archives.values():
        for key, value in asdict(archive).items():
            kind = int if key == "bytes" else str
            if not isinstance(value, kind) and value is not None:
                wanted = "a whole number" if kind is int else "text, in quotes"
                raise ValueError(f"{path}: {key} of archive {archive.name} is {value!r}, but must be {wanted}")
    every = recipe.valid_every
    if every is not None and (type(every) is not int or every < 2):
        raise ValueError(f"{path}: valid_every is {every!r}, but must be a whole number from 2")
    files = Counter(archive.file_name for archive in recipe.archives.values())
    if (common := files.most_common(1)) and common[0][1] > 1:
        raise ValueError(
            f"{path}: two archives would have the name {common[0][0]}; give one of them another with file:"
        )


def _check_sides(recipe: Recipe, part: Part, path: Path) -> None:
    """Raise ValueError if both sides are the same text, or the names say that they are exchanged."""
    names = {key: member or recipe.archives[archive].file_name for key, (archive, member) in part.texts.items()}
    if part.texts[recipe.source] == part.texts[recipe.target] and not is_named_as_markup(names[recipe.source]):
        raise ValueError(
            f"{path}: both sides of a part for {part.use} are {':'.join(filter(None, part.texts[recipe.source]))}, but "
            "each must have a file; split a file of two columns first"
        )
    if part.reference is not None and not isinstance(part.reference, str):
        raise ValueError(f"{path}: reference is {part.reference!r}, but must be text, in quotes")
    other = {recipe.source: recipe.target, recipe.target: recipe.source}
    for language, name in names.items():
        if _LAYOUTS.sub("", name).endswith(f".{other[language]}"):
            raise ValueError(
                f"{path}: {name} is taken for {language}; exchange the two sides of this part for {part.use}"
            )


def _check_members(recipe: Recipe, path: Path) -> None:
    """Raise ValueError if an archive is not used as what it is: one text, or several."""
    whole = {archive for part in recipe.parts for archive, member in part.texts.values() if member is None}
    for part in recipe.parts:
        for name, member in part.texts.values():
            if name in whole and (member or recipe.archives[name].file_name.endswith(TAR)):
                raise ValueError(f"{path}: a part for {part.use} must say which file of {name} it is, as {name}:FILE")


def _directed(recipe: Recipe, source: str | None, target: str | None) -> Recipe:
    languages = (recipe.source, recipe.target)
    for option, language in (("--source", source), ("--target", target)):
        if language is not None and language not in languages:
            raise ValueError(f"{option} is {language}, but {recipe.name} has {' and '.join(languages)}")
    if source is not None and source == target:
        raise ValueError(f"--source and --target are both {source}, but must differ")
    if source == recipe.target or target == recipe.source:
        return replace(recipe, source=recipe.target, target=recipe.source)
    return recipe
