"""Scores of translations, each with the signature that says how to get the same number again."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER
from sacremoses import MosesTokenizer

from moec_fairseq.corpus.languages import language_of

TOKENISED = "BLEU, tokenised"
COMPOUND_SPLIT = "BLEU, compounds split"

Metrics = Mapping[str, Callable[[], Any]]
References = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Score:
    """A score from 0 to 100 (TER: from 0, less is better), and its signature."""

    value: float
    signature: str


def metrics(target: str, tokenized: bool) -> dict[str, Callable[[], Any]]:
    """Return sacreBLEU's metrics by name.

    Args:
        target: language of the translations, which decides how BLEU tokenises.
        tokenized: the text is tokenised, and BLEU takes it as it is.

    Raises:
        ValueError: the tokeniser for this language is not installed.
    """

    def bleu() -> BLEU:
        return BLEU(tokenize="none", force=True) if tokenized else BLEU(trg_lang=language_of(target))

    try:
        bleu()
    except (RuntimeError, ImportError) as error:
        raise ValueError(f"sacrebleu cannot tokenise {target}: {str(error).strip()}") from error
    return {"BLEU": bleu, "chrF": CHRF, "TER": TER}


def score(hypotheses: Sequence[str], references: References, chosen: Metrics) -> dict[str, Score]:
    """Score translations.

    Args:
        hypotheses: one for each sentence.
        references: one or several texts of as many sentences.
        chosen: of ``metrics``.
    """
    scores = {}
    for name, make in chosen.items():
        metric = make()
        value = metric.corpus_score(hypotheses, references).score
        scores[name] = Score(round(value, 2), str(metric.get_signature()))
    return scores


def split_compounds(text: str) -> str:
    """Make three tokens of a word with a hyphen, as ``compound_split_bleu.sh`` of fairseq and tensor2tensor do."""
    return re.sub(r"(\S)-(\S)", r"\1 ##AT##-##AT## \2", text)


def tokenised_bleu(hypotheses: Sequence[str], references: References, target: str, tokenized: bool) -> dict[str, Score]:
    """Return what papers before sacreBLEU report: BLEU of tokenised text, for German with words with hyphens split.

    Args:
        hypotheses: one for each sentence.
        references: one or several texts of as many sentences.
        target: their language, for Moses' tokeniser.
        tokenized: they are tokenised.
    """
    tokens = (lambda text: text) if tokenized else _moses(language_of(target))
    tokenizer = "as given" if tokenized else f"sacremoses-{version('sacremoses')}"
    texts = [[tokens(line) for line in text] for text in (hypotheses, *references)]

    def bleu(texts: Sequence[Sequence[str]], changed: str = "") -> Score:
        metric = BLEU(tokenize="none", force=True, smooth_method="none")
        value = metric.corpus_score(texts[0], texts[1:]).score
        return Score(round(value, 2), f"{metric.get_signature()}|moses:{tokenizer}{changed}")

    split = [[split_compounds(line) for line in text] for text in texts]
    return {TOKENISED: bleu(texts), COMPOUND_SPLIT: bleu(split, "|compounds:split")}


def _moses(language: str) -> Callable[[str], str]:
    tokenizer = MosesTokenizer(lang=language)

    def tokens(text: str) -> str:
        tokenized: str = tokenizer.tokenize(text, return_str=True)
        return tokenized

    return tokens
