"""Many languages in one model: a tag at the head of each source names the language to translate into.

With the tag (Johnson et al., 2017, https://aclanthology.org/Q17-1024) the model is, for fairseq, one of a single pair,
one side of which is MANY.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from moec_fairseq.data.formats.text import raw_lines
from moec_fairseq.data.languages import SPLITS, check_languages, parallel_paths
from moec_fairseq.data.splits import HELD_OUT
from moec_fairseq.util.files import whole_texts

MANY = "mul"  # ISO 639-2 has this code for several languages


def tag(language: str) -> str:
    """Return the word at the head of sources that are to be translated into a language."""
    return f"<2{language}>"


@dataclass(frozen=True)
class Languages:
    """Of one model: from one language into many, or from many into one.

    Attributes:
        source: the one language, or MANY.
        target: likewise.
        many: the others.
    """

    source: str
    target: str
    many: tuple[str, ...]

    @property
    def one(self) -> str:
        """Return the language of all pairs."""
        return self.source if self.target == MANY else self.target

    @property
    def parts(self) -> tuple[str, ...]:
        """Return the names of the validation and test sets of each language, such as ``test-de``."""
        return tuple(f"{split}-{language}" for split in HELD_OUT for language in self.many)

    @property
    def tags(self) -> tuple[str, ...]:
        """Return the tags that sources may have."""
        return tuple(dict.fromkeys(tag(self.direction(language)[1]) for language in self.many))

    def direction(self, language: str) -> tuple[str, str]:
        """Return source and target of the pair that one of ``many`` belongs to."""
        return (language, self.target) if self.source == MANY else (self.source, language)

    def choose(self, source: str | None, target: str | None) -> list[tuple[str, str]]:
        """Return the directions between these languages; None: any.

        Raises:
            ValueError: there are none.
        """
        directions = map(self.direction, self.many)
        found = [pair for pair in directions if source in (pair[0], None) and target in (pair[1], None)]
        if not found:
            asked = f"{source or self._side(self.source)} to {target or self._side(self.target)}"
            raise ValueError(f"the model translates {self}, but not {asked}")
        return found

    def _side(self, name: str) -> str:
        return ", ".join(self.many) if name == MANY else name

    def __str__(self) -> str:
        """Return them for a sentence."""
        return f"{self._side(self.source)} to {self._side(self.target)}"


def read_languages(
    sources: str | None, targets: str | None, source: str | None, target: str | None
) -> Languages | None:
    """Return the languages of ``--sources`` or ``--targets``, the other side of which is English by default; or None.

    Raises:
        ValueError: both were given, or with a single language of the same side, or they are not two different languages
            or more.
    """
    if not sources and not targets:
        return None
    if sources and targets:
        raise ValueError("--sources and --targets were both given; one model has many languages on one side only")
    side, given, single = ("targets", targets, target) if targets else ("sources", sources, source)
    if single:
        raise ValueError(f"--{side} and --{side[:-1]} were both given; give one of them")
    many = tuple(str(given).split(","))
    if len(many) < 2:
        raise ValueError(f"--{side} is {given}; give two languages or more, such as de,fr, or use --{side[:-1]}")
    languages = Languages(source or "en", MANY, many) if targets else Languages(MANY, target or "en", many)
    for language in many:
        check_languages(*languages.direction(language))
        if many.count(language) > 1:
            raise ValueError(f"--{side} names {language} more than once; give each language once")
    if MANY in (*many, languages.one):
        raise ValueError(f"{MANY} is the name of all languages together; give the code of a single language")
    return languages


def check_temperature(temperature: float) -> None:
    """Raise ValueError for a temperature that would make small languages even smaller."""
    if not temperature >= 1:  # nor NaN
        raise ValueError(f"--sampling-temperature is {temperature:g}, but must be 1 (no repetition) or more, such as 5")


def sampled_sizes(sizes: Mapping[str, int], temperature: float) -> dict[str, int]:
    """Return how many training pairs of each language make shares in proportion to n^(1/T).

    The largest language keeps its n pairs, and others are repeated, so that nothing is left out. T5
    (https://arxiv.org/abs/1910.10683, section 3.5.2) and NLLB (https://arxiv.org/abs/2207.04672) sample at these rates.

    Args:
        sizes: n of each language, 1 or more.
        temperature: T; 1: as they are, infinite: equally many.
    """
    largest = max(sizes.values())
    return {language: round(largest * (size / largest) ** (1 / temperature)) for language, size in sizes.items()}


def write_together(
    languages: Languages, temperature: float, text: Path, counts: Mapping[str, Counter[str]]
) -> Counter[str]:
    """Write the texts of all languages as one pair, sources with tags; and valid and test of each as ``parts``.

    Args:
        languages: of the text.
        temperature: at which training pairs are sampled.
        text: folder with {train,valid,test} of each pair in a folder named as the language; the result goes beside it.
        counts: what became of the pairs of each language, ``SPLIT: kept`` or ``SPLIT: why not``.

    Returns:
        the same with languages, ``SPLIT: LANGUAGE: pairs`` or why not, and how often pairs are repeated.
    """
    sizes = {language: counts[language]["train: kept"] for language in languages.many}
    sampled = sampled_sizes(sizes, temperature)
    for split in SPLITS:
        names = (split, *(part for part in languages.parts if part.startswith(split)))
        paths = [path for name in names for path in parallel_paths(text, name, languages.source, languages.target)]
        with whole_texts(paths) as opened:
            files = dict(zip(names, zip(opened[::2], opened[1::2], strict=True), strict=True))
            for language in languages.many:
                size, wanted = (sizes[language], sampled[language]) if split == "train" else (1, 1)
                direction = languages.direction(language)
                into = [files[name] for name in (split, f"{split}-{language}") if name in files]
                pairs = zip(*map(raw_lines, parallel_paths(text / language, split, *direction)), strict=True)
                for number, (source, target) in enumerate(pairs):
                    times = (number + 1) * wanted // size - number * wanted // size  # evenly over the text
                    for source_file, target_file in into:
                        source_file.write(f"{tag(direction[1])} {source}\n" * times)
                        target_file.write(f"{target}\n" * times)
    found: Counter[str] = Counter()
    for language in languages.many:
        for key, count in counts[language].items():
            split, _, what = key.partition(": ")
            found[f"{split}: {language}: {'pairs' if what == 'kept' else what}"] = count
        if temperature > 1:
            found[f"train: {language}: repeated"] = sampled[language] - sizes[language]
    return found
