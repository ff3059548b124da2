"""What makes a pair of messages a good pair of sentences: an ordered list of small rules."""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from moec_fairseq.corpus.placeholders import placeholders, without_placeholders
from moec_fairseq.corpus.text import normalise_space

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


@dataclass(frozen=True)
class Rule:
    """A reason to drop a pair, named as the report names it."""

    name: str
    drops: Callable[[Pair], bool]


def tidy(text: str) -> str:
    """Return `text` as a reader would see it: composed (NFC), on one line, without the marks of keyboard shortcuts."""
    return _ACCELERATOR.sub("", normalise_space(unicodedata.normalize("NFC", text)))


def is_empty(pair: Pair) -> bool:
    """Tell whether a side is empty."""
    return not pair.source or not pair.target


def is_untranslated(pair: Pair) -> bool:
    """Tell whether both sides are the same but for case."""
    return pair.source.casefold() == pair.target.casefold()


def has_html(pair: Pair) -> bool:
    """Tell whether a side holds tags or entities."""
    return _either(_HTML, pair)


def has_markdown(pair: Pair) -> bool:
    """Tell whether a side holds marks of Markdown or a similar language."""
    return _either(_MARKDOWN, pair)


def has_url(pair: Pair) -> bool:
    """Tell whether a side holds a web or mail address."""
    return _either(_URL, pair)


def placeholders_differ(pair: Pair) -> bool:
    """Tell whether a placeholder is on one side only, or a brace is left without its partner."""
    if placeholders(pair.source) != placeholders(pair.target):
        return True
    return any(brace in without_placeholders(side) for side in (pair.source, pair.target) for brace in "{}")


def is_short(pair: Pair) -> bool:
    """Tell whether the source has fewer than MIN_WORDS words."""
    return len(_WORD.findall(without_placeholders(pair.source))) < MIN_WORDS


def is_long(pair: Pair) -> bool:
    """Tell whether a side has more than MAX_TOKENS tokens."""
    return max(len(side.split()) for side in (pair.source, pair.target)) > MAX_TOKENS


def lengths_differ(pair: Pair) -> bool:
    """Tell whether a side is more than MAX_LENGTH_RATIO times as long as the other.

    Lengths are in characters: a good German translation of four words may well be one word.
    """
    shorter, longer = sorted((len(pair.source), len(pair.target)))
    return longer > MAX_LENGTH_RATIO * shorter


def is_mostly_symbols(pair: Pair) -> bool:
    """Tell whether fewer than MIN_LETTERS of a side's characters (spaces apart) are letters."""
    return any(_share_of_letters(side) < MIN_LETTERS for side in (pair.source, pair.target))


RULES = (
    Rule("empty", is_empty),
    Rule("untranslated", is_untranslated),
    Rule("html", has_html),
    Rule("markdown", has_markdown),
    Rule("url", has_url),
    Rule("placeholders differ", placeholders_differ),
    Rule(f"fewer than {MIN_WORDS} words", is_short),
    Rule(f"more than {MAX_TOKENS} tokens", is_long),
    Rule(f"length ratio above {MAX_LENGTH_RATIO}", lengths_differ),
    Rule(f"less than {MIN_LETTERS:.0%} letters", is_mostly_symbols),
)


def first_broken_rule(pair: Pair) -> Rule | None:
    """Return the first of RULES that drops `pair`, or None for a good pair."""
    return next((rule for rule in RULES if rule.drops(pair)), None)


def _either(pattern: re.Pattern[str], pair: Pair) -> bool:
    return pattern.search(pair.source) is not None or pattern.search(pair.target) is not None


def _share_of_letters(text: str) -> float:
    visible = "".join(without_placeholders(text).split())
    return sum(map(str.isalpha, visible)) / max(len(visible), 1)
