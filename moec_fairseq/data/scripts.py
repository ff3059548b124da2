"""What scripts differ in: marks that belong to letters, words with and without blanks between them, direction."""

import unicodedata

import regex

_MARK_OR_FORMAT = regex.compile(r"[\p{M}\p{Cf}]")
# A mark of these classes makes another letter or syllable of its letter: vowel signs (0, and those of Thai, Lao,
# Tibetan, Telugu), signs of voice (7, 8), those that take a vowel away (9). Marks of the other classes are accents,
# Hebrew and Arabic points. Variation selectors and the like are of class 0, too, but nobody sees them.
_CLASSES = "".join(rf"\p{{ccc={number}}}" for number in (0, 6, 7, 8, 9, 84, 91, 103, 107, 118, 122, 129, 130, 132))
_SIGNS = rf"[[{_CLASSES}]&&[\p{{Mn}}\p{{Mc}}]--\p{{Default_Ignorable_Code_Point}}]"
_SIGN = regex.compile(_SIGNS, regex.VERSION1)
_NO_LETTERS = regex.compile(rf"[^\p{{L}}{_SIGNS}]+", regex.VERSION1)
_HAN = regex.compile(r"\p{Han}")
_HANGUL = regex.compile(r"\p{Hangul}")
_EAST_ASIAN = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}]")
_ARABIC = regex.compile(r"\p{Arabic}")
_RIGHT_TO_LEFT = regex.compile(r"[\p{Bidi_Class=R}\p{Bidi_Class=AL}--\p{Cf}]", regex.VERSION1)
# what stands for a word where there are no blanks: a Chinese character, two of kana, four letters of other scripts
_WORDS = regex.compile(
    r"\p{Han}|[\p{Hiragana}\p{Katakana}ー]{1,2}|[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]{1,4}"
)


def bare(text: str) -> str:
    """Return ``text`` without marks, which count with their letters, and without joiners and marks of direction."""
    return text if text.isascii() else _MARK_OR_FORMAT.sub("", text)


def length(text: str) -> int:
    """Return how many letters of an alphabet ``text`` is long.

    Marks count with their letters, a Chinese character as three letters, and one of Hangul, a syllable, as two.
    """
    if text.isascii():
        return len(text)
    return len(bare(text)) + 2 * len(_HAN.findall(text)) + len(_HANGUL.findall(text))


def spaced(text: str) -> str:
    """Return ``bare`` text, with blanks around what stands for a word in scripts that have none."""
    return text if text.isascii() else _WORDS.sub(r" \g<0> ", bare(text))


def letters(text: str) -> str:
    """Return the letters of ``text`` decomposed (NFKD), with signs that make other letters of them, but no accents."""
    decomposed = unicodedata.normalize("NFKD", text)
    if max(decomposed, default="") < "\u0900" or _SIGN.search(decomposed) is None:  # Devanagari: the first with signs
        return "".join(filter(str.isalpha, decomposed))
    return _NO_LETTERS.sub("", decomposed)


def is_east_asian(text: str) -> bool:
    """Tell whether ``text`` has Chinese characters or kana, and so their punctuation."""
    return _EAST_ASIAN.search(text) is not None


def is_arabic(text: str) -> bool:
    """Tell whether ``text`` has letters of the Arabic script, and so its punctuation."""
    return _ARABIC.search(text) is not None


def is_right_to_left(text: str) -> bool:
    """Tell whether ``text`` has letters that are written from right to left, among which marks of direction count."""
    return _RIGHT_TO_LEFT.search(text) is not None
