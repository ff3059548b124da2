"""Read the translations out of what fairseq-generate prints, in the order of the text that was translated."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import sentencepiece

from moec_fairseq.corpus.output import complete_files
from moec_fairseq.corpus.text import check_file, normalise_space, raw_lines

# S: source, T: target, D: translation, with its score before it
_LINES = {
    "S": re.compile(r"S-(\d+)\t(.*)"),
    "T": re.compile(r"T-(\d+)\t(.*)"),
    "D": re.compile(r"D-(\d+)\t[^\t]+\t(.*)"),
}
PIECE_MARK = "\u2581"  # sentencepiece begins words with it


def read_sentences(log: Iterable[str], kind: str) -> dict[int, str]:
    """Return the sentences of a kind (S, T or D) by their ids, in the order of the ids; the first of each id."""
    found: dict[int, str] = {}
    for line in log:
        if match := _LINES[kind].match(line):
            found.setdefault(int(match[1]), match[2])
    return dict(sorted(found.items()))


def read_hypotheses(log: Iterable[str], count: int = 0) -> dict[int, str]:
    """Return the best translation of each sentence, by sentence id, in the order of the ids.

    Raises ValueError if the log holds no translations or lacks some, of `count` if that is known. D lines are read:
    fairseq prints them after its own post-processing (`--remove-bpe`), the best of an n-best list first.
    """
    log = list(log)
    found, expected = read_sentences(log, "D"), set(read_sentences(log, "S"))
    if not found:
        raise ValueError("no line begins with D-; give what fairseq-generate prints without --quiet")
    expected.update(found, range(max(expected | found.keys())), range(count))
    if missing := sorted(expected - found.keys()):
        raise ValueError(
            f"{len(missing)} of {len(expected)} translations are missing, the first has the id {missing[0]};"
            " run fairseq-generate to its end, and without --skip-invalid-size-inputs-valid-test"
        )
    return found


def join_pieces(texts: Iterable[str], decode: Callable[[list[str]], str] | None) -> list[str]:
    """Return `texts` with words in the place of pieces; texts that hold no pieces stay as they are."""
    texts = list(texts)
    if not any(PIECE_MARK in text for text in texts):
        return texts
    if decode is None:
        raise ValueError(
            "the translations are still in pieces; give the model that made them with --spm-model,"
            " or run fairseq-generate with --remove-bpe=sentencepiece"
        )
    return [decode(text.split()) for text in texts]


def write_hypotheses(generate_log: Path, out: Path, spm_model: Path | None) -> None:
    """Write the translations in a log of fairseq-generate to `out`, one a line."""
    decode = None
    if spm_model is not None:
        check_file(spm_model)
        decode = sentencepiece.SentencePieceProcessor(model_file=str(spm_model)).decode
    try:
        texts = join_pieces(read_hypotheses(raw_lines(generate_log)).values(), decode)
    except ValueError as error:
        raise ValueError(f"{generate_log}: {error}") from None
    with complete_files([out]) as (file,):
        file.writelines(normalise_space(text) + "\n" for text in texts)
    print(f"{len(texts)} translations in {out}")
