"""What a token is: a part of which word, of which class, how frequent, at which position."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from moec_fairseq.data.gpt2_bpe import Gpt2Model
from moec_fairseq.data.subwords import WORD_MARK

FREQUENT = 100  # words of letters that count as frequent: nearly all function words of a language are among them
MOST_WORDS = 1000  # words that are counted one by one
MOST_COUNTED = 200_000  # different words that are kept while all are counted
CACHED = 100_000

SPECIAL = "special symbol"
KINDS = ("frequent word", "other word", "number", "punctuation", SPECIAL)
BANDS = ("1 to 10", "11 to 100", "101 to 1000", "rarer", SPECIAL)
POSITIONS = ("1", "2", "3 to 4", "5 to 8", "9 to 16", "17 to 32", "33 and later")
PARTS = ("whole word", "beginning", "rest")
CLASS, RANK, POSITION, PART, LANGUAGE, WORD = (
    "word class",
    "rank of the word",
    "position",
    "part of the word",
    "language",
    "word",
)
OTHERS = "all others"

_BPE_MARK = "@@"  # subword-nmt: the word goes on
# what stands for no text of a language, beside the first symbols of every dictionary: masks, tags, filling
_SPECIALS = re.compile(rf"{WORD_MARK}?<2[\w-]+>|<mask>|__[\w-]+__|madeupword\d+")
# scripts that put no blanks between words (Thai to Khmer, Chinese, Japanese): a subword is a word
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")

Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Feature:
    """Something by which tokens are classed, and the names of its classes."""

    name: str
    labels: Sequence[str]


class Subwords:
    """How the subwords of a dictionary form words: sentencepiece, subword-nmt, GPT-2's BPE, or words as they are.

    A punctuation mark is a word of its own, whatever it is attached to; so is a subword of a script without blanks.

    Args:
        symbols: of the dictionary, by number.
        specials: how many of them, at the beginning, stand for no text.
        gpt2: what spells the subwords where symbols are its numbers; None: they are text.

    Attributes:
        spelled: the text of each subword, without marks.
        is_special: whether it stands for no text.
    """

    def __init__(self, symbols: Sequence[str], specials: int, gpt2: Gpt2Model | None = None) -> None:
        texts = [gpt2.encoder.decode([int(symbol)]) if gpt2 and symbol.isdigit() else symbol for symbol in symbols]
        marked = any(text.startswith(WORD_MARK) for text in texts)
        self.is_special = [i < specials or bool(_SPECIALS.fullmatch(text)) for i, text in enumerate(texts)]
        self.spelled = [
            text.removeprefix(WORD_MARK).removesuffix("" if marked else _BPE_MARK).strip()
            or text.strip(WORD_MARK + " ")
            for text in texts
        ]
        alone = [
            special or bool(spelled and not any(map(str.isalnum, spelled))) or bool(_UNSPACED.search(spelled))
            for special, spelled in zip(self.is_special, self.spelled, strict=True)
        ]
        # a blank stands before a subword, or behind it if no mark says that its word goes on
        before = (" ", WORD_MARK) if gpt2 or marked else ()
        self._blank_before = [
            special or text.startswith(before) for special, text in zip(self.is_special, texts, strict=True)
        ]
        self._blank_behind = [
            special or not (gpt2 or marked or text.endswith(_BPE_MARK))
            for special, text in zip(self.is_special, texts, strict=True)
        ]
        self._begins = [blank or one for blank, one in zip(self._blank_before, alone, strict=True)]
        self._ends = [blank or one for blank, one in zip(self._blank_behind, alone, strict=True)]

    def words(self, ids: Sequence[int]) -> list[tuple[int, ...]]:
        """Divide a sentence into words, each a tuple of subwords."""
        found: list[list[int]] = []
        for before, now in zip((None, *ids), ids, strict=False):
            joined = before is not None and (not self.spelled[before] or not (self._begins[now] or self._ends[before]))
            if joined:
                found[-1].append(now)
            else:
                found.append([now])
        return [tuple(word) for word in found]

    def text(self, word: Sequence[int]) -> str:
        """Return the text of a word."""
        return "".join(self.spelled[subword] for subword in word)

    def shown(self, ids: Sequence[int]) -> list[str]:
        """Return the text of each token of a sentence, with a blank before it where the text has one."""
        befores = (None, *ids)
        return [
            (" " if before is not None and (self._blank_before[now] or self._blank_behind[before]) else "")
            + self.spelled[now]
            for before, now in zip(befores, ids, strict=False)
        ]

    def kind(self, word: Sequence[int]) -> int:
        """Return the index in ``KINDS`` of a word, as if it was not frequent."""
        text = self.text(word)
        if not text or any(self.is_special[subword] for subword in word):
            return KINDS.index(SPECIAL)
        if any(map(str.isnumeric, text)):
            return KINDS.index("number")
        return KINDS.index("other word" if any(map(str.isalpha, text)) else "punctuation")


class WordCounts:
    """How often each word occurs; of too many different ones, the rarest so far are forgotten."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, words: Iterable[str]) -> None:
        """Count words."""
        self.counts.update(words)
        if len(self.counts) > MOST_COUNTED:
            self.counts = Counter(dict(self.counts.most_common(MOST_COUNTED // 2)))


class TokenClasses:
    """Classes of the tokens of one stack.

    Args:
        subwords: of its dictionary.
        counts: of words, by language; "" where there is but one.
    """

    def __init__(self, subwords: Subwords, counts: Mapping[str, WordCounts]) -> None:
        self.subwords = subwords
        self.languages = list(counts)
        self._ranks = {
            language: {word: rank for rank, (word, _) in enumerate(found.counts.most_common())}
            for language, found in counts.items()
        }
        self._frequent = {
            language: {word for word, _ in _words_of_letters(found.counts)[:FREQUENT]}
            for language, found in counts.items()
        }
        together: Counter[str] = sum((found.counts for found in counts.values()), Counter())
        self.listed = [word for word, _ in together.most_common(MOST_WORDS)]
        self._columns = {word: column for column, word in enumerate(self.listed)}
        self.features = [
            Feature(CLASS, KINDS),
            Feature(RANK, BANDS),
            Feature(POSITION, POSITIONS),
            Feature(PART, PARTS),
            Feature(LANGUAGE, self.languages),
            Feature(WORD, [*self.listed, OTHERS]),
        ]
        self._of_word = lru_cache(CACHED)(self._look_up)

    def codes(self, ids: Sequence[int], language: str = "") -> Codes:
        """Return the class of each token of a sentence by each of the ``features``, (T, F)."""
        rows = list[tuple[int, ...]]()
        code = self.languages.index(language)
        for word in self.subwords.words(ids):
            kind, band, column = self._of_word(word, language)
            for place in range(len(word)):
                part = 0 if len(word) == 1 else 1 if place == 0 else 2
                position = min(len(rows).bit_length(), len(POSITIONS) - 1)
                rows.append((kind, band, position, part, code, column))
        return np.array(rows, dtype=np.int64).reshape(len(ids), len(self.features))

    def _look_up(self, word: tuple[int, ...], language: str) -> tuple[int, int, int]:
        text, kind = self.subwords.text(word), self.subwords.kind(word)
        column = self._columns.get(text, len(self.listed))
        if KINDS[kind] == SPECIAL:
            return kind, BANDS.index(SPECIAL), column
        if KINDS[kind] == "other word" and text in self._frequent[language]:
            kind = KINDS.index("frequent word")
        rank = self._ranks[language].get(text, MOST_COUNTED)
        return kind, sum(rank >= limit for limit in (10, 100, 1000)), column


def _words_of_letters(counts: Counter[str]) -> list[tuple[str, int]]:
    return [(word, count) for word, count in counts.most_common() if word.isalpha()]
