"""What published recipes do to text: characters made alike, and pairs dropped that cannot be translations."""

import re
import unicodedata
from dataclasses import dataclass

from moec_fairseq.corpus.text import normalise_space, without_invisible

# One way to write each punctuation mark, as Moses' normalize-punctuation has it; spaces stay where they are.
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
_MARKED = re.compile(f"[{''.join(map(chr, _PUNCTUATION))}]")


def normalise(text: str) -> str:
    """Return ``text`` composed (Unicode NFC), on one line, with one way to write each punctuation mark."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", without_invisible(text))  # which would keep letters and accents apart
    if _MARKED.search(text):
        text = text.translate(_PUNCTUATION)
    return normalise_space(text)


@dataclass(frozen=True)
class Limits:
    """Which pairs are kept, in pieces of the segmented text.

    Attributes:
        max_length: most pieces of a side.
        max_ratio: most times that one side is as long as the other.
    """

    max_length: int = 250
    max_ratio: float = 1.5

    def broken(self, source_length: int, target_length: int) -> str | None:
        """Return the first rule that a pair breaks, in words; None for a good pair."""
        shorter, longer = sorted((source_length, target_length))
        if not shorter:
            return "a side without pieces"
        if longer > self.max_length:
            return f"more than {self.max_length} pieces"
        if longer > self.max_ratio * shorter:
            return f"length ratio above {self.max_ratio:g}"
        return None
