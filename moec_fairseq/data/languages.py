"""Codes of languages, such as de, pt-BR, zh_CN or zh-Hant, and the names of files that hold them."""

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

SPLITS = ("train", "valid", "test")
CHINESE = frozenset(("zh", "yue", "wuu", "lzh"))  # with Cantonese, Wu, and the classical language
# languages that have no blanks between words
WITHOUT_BLANKS = CHINESE | {"ja", "th", "lo", "km", "my", "bo", "dz"}
# languages with thousands of characters, some of them too rare to be learned
_MANY_CHARACTERS = CHINESE | {"ja", "ko"}
_TWO_LETTERS = {
    "zho": "zh", "cmn": "zh", "jpn": "ja", "kor": "ko", "tha": "th", "lao": "lo", "khm": "km", "mya": "my",
}  # fmt: skip


def check_languages(source: str, target: str) -> None:
    """Raise ValueError unless the names can be endings of two files."""
    for language in (source, target):
        if not re.fullmatch(r"[A-Za-z][\w-]*", language):
            raise ValueError(f"language {language!r} is not a language code; give one such as en, de, pt-BR or zh_CN")
    if source == target:
        raise ValueError(f"source and target are both {source!r}; they must differ")


def language_of(code: str) -> str:
    """Return the two letters by which sacreBLEU and Moses know a language, such as zh for zh_CN and zho_Hans."""
    language = re.split("[-_]", code)[0].lower()
    return _TWO_LETTERS.get(language, language)


def default_coverage(codes: Iterable[str]) -> float:
    """Return which share of the characters of text in these languages sentencepiece is to learn, as it recommends."""
    return 1.0 if _MANY_CHARACTERS.isdisjoint(map(language_of, codes)) else 0.9995


def same_language(one: str, other: str) -> bool:
    """Tell whether two codes may be of one text: pt is any of pt-BR and pt_PT, which are not each other."""
    languages = [language_of(code) for code in (one, other)]
    varieties = [re.split("[-_]", code.lower())[1:] for code in (one, other)]
    return languages[0] == languages[1] and ([] in varieties or varieties[0] == varieties[1])


def language_pairs(binary: Path) -> list[tuple[str, str]]:
    """Return source and target of each pair in the names of fairseq's binary data, SPLIT.SOURCE-TARGET.LANGUAGE.idx.

    Codes may have hyphens themselves: LANGUAGE, and then the dictionaries, tell where the source ends. A name that can
    still be read in two ways gives two pairs.
    """
    languages: dict[str, set[str]] = defaultdict(set)
    for name in (path.name.split(".") for path in binary.glob("*.*-*.*.idx")):
        if len(name) == 4:
            languages[name[1]].add(name[2])
    pairs: set[tuple[str, str]] = set()
    for pair, known in languages.items():
        ways = [(pair[: hyphen.start()], pair[hyphen.end() :]) for hyphen in re.finditer("-", pair)]
        if len(ways) > 1:
            ways = [way for way in ways if known.issubset(way)]
        if len(ways) > 1:
            ways = [way for way in ways if all((binary / f"dict.{code}.txt").is_file() for code in way)]
        pairs.update(ways)
    return sorted(pairs)


def parallel_paths(folder: Path, split: str, source: str, target: str) -> tuple[Path, Path]:
    """Return where ``folder`` holds the two sides of a split."""
    return folder / f"{split}.{source}", folder / f"{split}.{target}"
