"""Workaround for languages that fairseq reads from the names of files."""

from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path

from moec_fairseq.corpus.languages import language_pairs

Infer = Callable[[str], Sequence[str | None]]


def read_codes_with_hyphens(infer_language_pair: Infer) -> Infer:
    """Make fairseq tell source and target from names in which a code has a hyphen itself.

    Reason: fairseq splits the middle of each name at its hyphens, finds no pair in ``train.en-pt-BR.en.idx``, and takes
    ``dict.pt-BR.txt`` for data from pt to BR.
    """

    @wraps(infer_language_pair)
    def infer(path: str) -> Sequence[str | None]:
        found, pairs = infer_language_pair(path), language_pairs(Path(path))
        if not pairs or tuple(found) in pairs:
            return found
        if len(pairs) > 1:
            held = ", ".join("-".join(pair) for pair in pairs)
            raise ValueError(
                f"{path} has several pairs of languages ({held}), or names that can be read in several ways; give "
                "--source-lang and --target-lang (task.source_lang= and task.target_lang= to train.sh)"
            )
        return pairs[0]

    return infer
