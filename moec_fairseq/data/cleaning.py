"""How text is normalised, and which pairs are kept: published corpora by length, messages by more rules."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from moec_fairseq.data.formats.text import normalise_space, without_invisible
from moec_fairseq.data.scripts import bare, is_arabic, is_east_asian, length, spaced

# One way to write each punctuation mark, as Moses' normalize-punctuation has it; spaces stay where they are. It is made
# for Europe: elsewhere some of these marks are the only right ones, and references have them.
_PUNCTUATION = str.maketrans(
    {
        **dict.fromkeys("„“”«»〝〞", '"'),
        **dict.fromkeys("‘’‚‛`´", "'"),
        **dict.fromkeys("–‒‐‑", "-"),
        **dict.fromkeys("—―", " - "),
        "…": "...",
        "،": ",",
        "：": ":",
        "；": ";",
        "？": "?",
        "！": "!",
        "（": "(",
        "）": ")",
        "％": "%",
    }
)
_PUNCTUATION_BUT_ARABIC = {mark: written for mark, written in _PUNCTUATION.items() if chr(mark) != "،"}
_MARKED = re.compile(f"[{''.join(map(chr, _PUNCTUATION))}]")


def normalise(text: str) -> str:
    """Return ``text`` composed (Unicode NFC), on one line, with one way to write each punctuation mark.

    Text with Chinese characters or kana keeps its punctuation, and Arabic text its comma.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", without_invisible(text))  # which would keep letters and accents apart
    if _MARKED.search(text) and not is_east_asian(text):
        text = text.translate(_PUNCTUATION_BUT_ARABIC if is_arabic(text) else _PUNCTUATION)
    return normalise_space(text)


@dataclass(frozen=True)
class Limits:
    """Which pairs are kept, in subwords.

    Attributes:
        max_length: most subwords of a side.
        max_ratio: how many times as long as the other a side may be.
    """

    max_length: int
    max_ratio: float

    def broken(self, source_length: int, target_length: int) -> str | None:
        """Return the first rule that a pair breaks, in words; None for a good pair."""
        shorter, longer = sorted((source_length, target_length))
        if not shorter:
            return "a side without subwords"
        if longer > self.max_length:
            return f"more than {self.max_length} subwords"
        if longer > self.max_ratio * shorter:
            return f"length ratio above {self.max_ratio:g}"
        return None


# After a digit, "%" is a per cent sign ("100%d" does not occur, "100%" and "5 % of" do).
PLACEHOLDER = re.compile(
    r"""
    %\(\w+\)[-#0+]*\d*(?:\.\d+)?[a-zA-Z]            # %(name)s  %(price).2f
    | (?<!\d)%(?:\d+\$)?[-#0+]*\d*(?:\.\d+)?[sdifgrxXc]  # %s  %d  %1$s  %.2f
    | (?<!\d)%[1-9](?![0-9A-Za-z_])                 # %1 (Qt)
    | \$?\{\{?[^{}]*\}\}?                           # {}  {0}  {name!r}  {{ name }}  ${name}
    """,
    re.VERBOSE,
)


def placeholders(text: str) -> Counter[str]:
    """Return the placeholders of `text`, each with how often it occurs."""
    return Counter(PLACEHOLDER.findall(text))


def without_placeholders(text: str) -> str:
    """Return `text` with a space in the place of each placeholder."""
    return PLACEHOLDER.sub(" ", text)


MAX_TOKENS = 80
MAX_LENGTH_RATIO = 3
MIN_WORDS = 2
MIN_LETTERS = 0.7

_HTML = re.compile(r"</?[a-zA-Z][^<>]*>|<!--|&(?:[a-zA-Z]+|#\d+);")
_MARKDOWN = re.compile(
    r"\*\*|__|`|~~~|\]\(|\[\[|\[%|={3,}|-{3,}"  # bold, code, links, references to other messages, headings
    r"|(?<!\S)(?:[*•]|\#+)\s|(?<!\S)\*\w"  # items of lists, headings, emphasis
)
_URL = re.compile(r"\w://|\bwww\.|\b\w[\w.+-]*@\w|\bmailto:")
# "E&xit", "&File", but not "R&D", "Q & A", "&nbsp;".
_ACCELERATOR = re.compile(r"(?:(?<!\w)&(?=\w)|(?<=\w)&(?=[a-z]))(?!\w+;)")
_WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class Pair:
    """A sentence and its translation."""

    source: str
    target: str

    @property
    def sides(self) -> tuple[str, str]:
        """Both, as a tuple."""
        return self.source, self.target


@dataclass(frozen=True)
class Rule:
    """A reason to drop a pair, named as the report names it."""

    name: str
    drops: Callable[[Pair], bool]


def tidy(text: str) -> str:
    """Return `text` as a reader would see it: composed (NFC), on one line, without the marks of keyboard shortcuts."""
    return _ACCELERATOR.sub("", normalise_space(unicodedata.normalize("NFC", text)))


def placeholders_differ(pair: Pair) -> bool:
    """Tell whether a placeholder is on one side only, or a brace is left without its partner."""
    if placeholders(pair.source) != placeholders(pair.target):
        return True
    return any(brace in without_placeholders(side) for side in pair.sides for brace in "{}")


def lengths_differ(pair: Pair) -> bool:
    """Tell whether a side is more than MAX_LENGTH_RATIO times as long as the other.

    Lengths are in letters: a good German translation of four words may well be one word, and Chinese has no blanks.
    """
    shorter, longer = sorted(map(length, pair.sides))
    return longer > MAX_LENGTH_RATIO * shorter


def _either(pattern: re.Pattern[str], pair: Pair) -> bool:
    return any(map(pattern.search, pair.sides))


def _share_of_letters(text: str) -> float:
    visible = "".join(bare(without_placeholders(text)).split())
    return sum(map(str.isalpha, visible)) / max(len(visible), 1)


def _words(text: str) -> int:
    return len(_WORD.findall(spaced(without_placeholders(text))))


def _tokens(text: str) -> int:
    return len(spaced(text).split())


RULES = (
    Rule("empty", lambda pair: not pair.source or not pair.target),
    Rule("untranslated", lambda pair: pair.source.casefold() == pair.target.casefold()),
    Rule("html", partial(_either, _HTML)),
    Rule("markdown", partial(_either, _MARKDOWN)),
    Rule("url", partial(_either, _URL)),
    Rule("placeholders differ", placeholders_differ),
    Rule(f"fewer than {MIN_WORDS} words", lambda pair: _words(pair.source) < MIN_WORDS),
    Rule(f"more than {MAX_TOKENS} tokens", lambda pair: max(map(_tokens, pair.sides)) > MAX_TOKENS),
    Rule(f"length ratio above {MAX_LENGTH_RATIO}", lengths_differ),
    Rule(f"less than {MIN_LETTERS:.0%} letters", lambda pair: min(map(_share_of_letters, pair.sides)) < MIN_LETTERS),
)


def first_broken_rule(pair: Pair) -> Rule | None:
    """Return the first of RULES that drops `pair`, or None for a good pair."""
    return next((rule for rule in RULES if rule.drops(pair)), None)
