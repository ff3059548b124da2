"""Recipes: which archives hold a corpus, which of their files are which part of it, and how to read them."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from moec_fairseq.data.catalogues import from_mtdata, from_opus
from moec_fairseq.data.formats.archives import Archive
from moec_fairseq.data.formats.places import Part, check_sides, read_place
from moec_fairseq.data.languages import SPLITS, check_languages

WAYS = ("texts", "opus", "mtdata")  # to say where a part is


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
        languages = content["source"], content["target"]
        _check_codes(languages, path)
        archives = {name: Archive(name, **values) for name, values in content.get("archives", {}).items()}
        parts = [part for values in content["parts"] for part in _parts(values, languages, archives)]
        recipe = Recipe(path.stem, *languages, archives, parts, content.get("valid_every"))
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} is not a recipe ({reason}); data/README.md describes them") from error
    _check(recipe, path)
    return _directed(recipe, source, target)


def _check_keys(values: Mapping[str, Any], known: Collection[str]) -> None:
    for key in values:
        if key not in known:
            raise KeyError(f"{key} is none of {', '.join(known)}")


def _parts(values: dict[str, Any], languages: tuple[str, str], archives: dict[str, Archive]) -> list[Part]:
    """Return the parts that an entry of a recipe stands for; archives that catalogues know are added to the others."""
    _check_keys(values, ("use", "reference", *WAYS))
    ways = [way for way in WAYS if way in values]
    if len(ways) != 1:
        raise KeyError(f"a part for {values['use']} needs one of {', '.join(WAYS)}")
    if "texts" in values:
        texts = [{language: read_place(place) for language, place in values["texts"].items()}]
    else:
        found, texts = (from_opus if "opus" in values else from_mtdata)(str(values[ways[0]]), *languages)
        archives.update(found)
    return [Part(values["use"], places, values.get("reference")) for places in texts]


def _check(recipe: Recipe, path: Path) -> None:
    _check_values(recipe, path)
    for part in recipe.parts:
        if part.use not in SPLITS:
            raise ValueError(f"{path}: a part is for {part.use!r}, but must be for one of {', '.join(SPLITS)}")
        if set(part.texts) != {recipe.source, recipe.target}:
            held = ", ".join(map(str, part.texts))
            raise ValueError(
                f"{path}: a part for {part.use} has {held}, but must have {recipe.source} and {recipe.target}"
            )
        for place in part.texts.values():
            if place.file not in recipe.archives:
                raise ValueError(f"{path}: a part for {part.use} is in {place.file!r}, which is not among the archives")
        if part.reference is not None and not isinstance(part.reference, str):
            raise ValueError(f"{path}: reference is {part.reference!r}, but must be text, in quotes")
        names = {key: place.member or recipe.archives[place.file].file_name for key, place in part.texts.items()}
        check_sides(part.texts, names, f"{path}: a part for {part.use}")
    for use in SPLITS:
        if not any(part.use == use for part in recipe.parts) and not (use == "valid" and recipe.valid_every):
            raise ValueError(f"{path}: no part is for {use}; add one" + (", or valid_every" if use == "valid" else ""))


def _check_codes(languages: tuple[Any, Any], path: Path) -> None:
    for language in languages:
        if not isinstance(language, str):
            raise ValueError(f"{path}: {language!r} is not a language; put a code such as no in quotes")
    check_languages(*languages)


def _check_values(recipe: Recipe, path: Path) -> None:
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
