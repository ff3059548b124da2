"""Where pairs to translate come from: a recipe, the quickstart's messages, or the user's own text."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from moec_fairseq.__main__ import ROOT
from moec_fairseq.data.formats.archives import EXTRACTED
from moec_fairseq.data.formats.places import Part, located
from moec_fairseq.data.identification import OTHER, drop_other_languages, names_of
from moec_fairseq.data.languages import SPLITS, check_languages
from moec_fairseq.data.messages import Pin, fetch, read_pins, write_messages
from moec_fairseq.data.multilingual import MANY, Languages, check_temperature, read_languages, write_together
from moec_fairseq.data.published import TEXTS, write_published
from moec_fairseq.data.recipes import read_recipe
from moec_fairseq.data.splits import Sides, check_apart, common_share, own_files, own_parts, write_own
from moec_fairseq.util.files import find_yaml

QUICKSTART = "quickstart"
WHEELS = ROOT / "data" / QUICKSTART / "wheels.txt"


@dataclass(frozen=True)
class Corpus:
    """Where text comes from.

    Attributes:
        name: of the corpus.
        source: language to translate from; MANY for several.
        target: language to translate to; likewise.
        write: writes the text of every split, given the folder of raw files, that of the text, a pool, and how many
            chunks may be in progress; returns pairs by what became of them.
        settings: what the text depends on, beside its inputs.
        inputs: names of the raw files that it is made of.
        texts: names of what is written, for each language.
        normalised: whether punctuation is normalised; then that of sentences to translate must be, too.
        limits: on pairs: most subwords of a side, ratio of the sides.
        several: what MANY stands for.
    """

    name: str
    source: str
    target: str
    write: Callable[[Path, Path, Executor, int], Counter[str]]
    settings: Any
    inputs: tuple[str, ...] = ()
    texts: tuple[str, ...] = SPLITS
    normalised: bool = False
    limits: tuple[int, float] | None = None
    several: Languages | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """Return the names of parts of valid and test."""
        return self.several.parts if self.several else ()


def _published(recipe: Path, source: str | None, target: str | None, distinct: bool) -> Corpus:
    read = read_recipe(recipe, source, target)
    return Corpus(
        read.name,
        read.source,
        read.target,
        lambda raw, out, pool, ahead: write_published(read, raw, out, pool, ahead, distinct),
        [asdict(read), distinct],
        tuple(archive.file_name for archive in read.archives.values()),
        TEXTS,
        normalised=True,
        limits=(250, 1.5),
    )


def _messages(source: str, target: str, tier: str) -> Corpus:
    pins = _pins("source", source, tier)
    return Corpus(
        QUICKSTART,
        source,
        target,
        lambda raw, out, *_: write_messages(fetch(pins, raw), source, {target: out})[target],
        [pin.requirement for pin in pins],
    )


def _pins(option: str, language: str, tier: str) -> list[Pin]:
    if language != "en":
        raise ValueError(f"--{option} is {language}, but the messages are in English; give en, or --train FILE")
    return read_pins(WHEELS, tier)


def _own(parts: list[Part], source: str, target: str) -> Corpus:
    def write(_: Path, out: Path, *__: Any) -> Counter[str]:
        with located(parts, own_files(parts), out.with_name(EXTRACTED)) as texts:
            sides = {part.use: (text[source], text[target]) for part, text in zip(parts, texts, strict=True)}
            return write_own(sides, source, target, out)

    return Corpus("own", source, target, write, [source, target, _states(parts)])


def _states(parts: Sequence[Part]) -> list[Any]:
    files = own_files(parts)
    return [
        [part.use, str(place), files[place.file].stat().st_mtime_ns] for part in parts for place in part.texts.values()
    ]


def _identified(corpus: Corpus) -> Corpus:
    """Return the corpus without pairs in other languages."""
    languages = corpus.source, corpus.target
    for language in languages:
        names_of(language)  # says what is missing before anything is downloaded

    def write(raw: Path, out: Path, pool: Executor, ahead: int) -> Counter[str]:
        return drop_other_languages(out, *languages, corpus.write(raw, out, pool, ahead), pool, ahead)

    return replace(corpus, write=write, settings=[corpus.settings, OTHER])


def _messages_of_many(several: Languages, tier: str, temperature: float, identify: bool) -> Corpus:
    pins = _pins("target" if several.source == MANY else "source", several.one, tier)

    def write(raw: Path, out: Path) -> dict[str, Counter[str]]:
        return write_messages(fetch(pins, raw), several.one, {language: out / language for language in several.many})

    return _of_many(QUICKSTART, several, temperature, write, [pin.requirement for pin in pins], identify)


def _own_of_many(parts_of: dict[str, list[Part]], several: Languages, temperature: float, identify: bool) -> Corpus:
    parts = [(language, part) for language, parts in parts_of.items() for part in parts]
    alone = [part for _, part in parts]

    def write(_: Path, out: Path) -> dict[str, Counter[str]]:
        with located(alone, own_files(alone), out.with_name(EXTRACTED)) as texts:
            sides: dict[str, dict[str, Sides]] = {language: {} for language in several.many}
            for (language, part), text in zip(parts, texts, strict=True):
                sides[language][part.use] = text[several.one], text[language]
            check_apart((side.path for splits in sides.values() for pair in splits.values() for side in pair), out)
            share = common_share([splits["train"] for splits in sides.values()])
            return {
                language: write_own(splits, several.one, language, out / language, share)
                for language, splits in sides.items()
            }

    return _of_many("own", several, temperature, write, _states(alone), identify)


def _of_many(
    name: str,
    several: Languages,
    temperature: float,
    write: Callable[[Path, Path], Mapping[str, Counter[str]]],
    settings: Any,
    identify: bool,
) -> Corpus:
    """Return a corpus whose pairs ``write`` writes, given raw files and the folder for one of each language."""
    if identify:
        settings = [settings, OTHER]
        for language in (several.one, *several.many):
            names_of(language)

    def write_all(raw: Path, out: Path, pool: Executor, ahead: int) -> Counter[str]:
        counts = write(raw, out)
        if identify:
            counts = {
                language: drop_other_languages(out / language, *several.direction(language), count, pool, ahead)
                for language, count in counts.items()
            }
        return write_together(several, temperature, out, counts)

    return Corpus(
        name,
        several.source,
        several.target,
        write_all,
        [settings, asdict(several), temperature],
        texts=(*SPLITS, *several.parts),
        several=several,
    )


def choose_corpus(
    corpus: str | None,
    recipes: Path,
    source: str | None,
    target: str | None,
    prefixes: Mapping[str, str | None],
    files: Mapping[str, Sequence[str] | None],
    tier: str,
    distinct: bool,
    sources: str | None,
    targets: str | None,
    sampling_temperature: float,
    identify_language: bool = False,
) -> Corpus:
    """Return a recipe's corpus, the quickstart's, or the user's own text.

    Raises:
        ValueError: there is no such corpus or text, or the options do not go together.
    """
    given = {split for split in SPLITS if prefixes.get(split) or files.get(split)}
    several = read_languages(sources, targets, source, target)
    check_temperature(sampling_temperature)
    if several is None and sampling_temperature != 1:
        raise ValueError("--sampling-temperature is for several languages; give --targets or --sources, too")
    own = "train" in given and corpus is None
    if given and not own:
        options = " and ".join(
            f"--{split}{'-prefix' if prefixes.get(split) else ''}" for split in SPLITS if split in given
        )
        raise ValueError(f"{options} is for your own text: give --train or --train-prefix, and no CORPUS")
    if corpus is None and not own:
        ways = "a recipe of data/, quickstart, --train, --train-prefix, --train-text or glue/TASK"
        raise ValueError(f"nothing to prepare was given; give {ways}")
    if several is None:
        languages = source or "en", target or "de"
        if own or corpus == QUICKSTART:
            check_languages(*languages)
        if own:
            chosen = _own(own_parts(prefixes, files, *languages), *languages)
        elif corpus == QUICKSTART:
            chosen = _messages(*languages, tier)
        else:
            chosen = _published(find_yaml("recipe", str(corpus), recipes), source, target, distinct)
        return _identified(chosen) if identify_language else chosen
    if corpus == QUICKSTART:
        return _messages_of_many(several, tier, sampling_temperature, identify_language)
    if not own:
        raise ValueError("--sources and --targets are for quickstart and your own text; a recipe has a single pair")
    if two := [split for split in SPLITS if len(files.get(split) or ()) > 1]:
        raise ValueError(
            f"--{two[0]} names several files, but for --sources and --targets one file must hold all languages; or "
            f"give --{two[0]}-prefix"
        )
    parts_of = {language: own_parts(prefixes, files, several.one, language) for language in several.many}
    return _own_of_many(parts_of, several, sampling_temperature, identify_language)
