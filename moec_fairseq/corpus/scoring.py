"""Score translations with sacreBLEU's BLEU and chrF, and show some of them."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from moec_fairseq.corpus.metrics import metrics
from moec_fairseq.corpus.metrics import score as scores_of
from moec_fairseq.corpus.output import write_json
from moec_fairseq.corpus.text import lines


@dataclass(frozen=True)
class Scores:
    """BLEU and chrF (0 to 100) of `n` sentences; the signatures say how to get the same numbers again."""

    bleu: float
    chrf: float
    signatures: dict[str, str]
    n: int


def score(hypotheses: Sequence[str], references: Sequence[str]) -> Scores:
    """Score plain (detokenised) sentences against one reference each."""
    kinds = metrics("", tokenized=False)
    found = scores_of(hypotheses, [references], {name: kinds[name] for name in ("BLEU", "chrF")})
    signatures = {name.lower(): value.signature for name, value in found.items()}
    return Scores(found["BLEU"].value, found["chrF"].value, signatures, len(hypotheses))


def show_samples(texts: Mapping[str, Sequence[str]], samples: int, seed: int = 1) -> None:
    """Print some sentences of parallel texts, by name; an empty text is left out."""
    texts = {name: text for name, text in texts.items() if text}
    count = min(map(len, texts.values()), default=0)
    for index in sorted(random.Random(seed).sample(range(count), min(samples, count))):
        print(f"sentence {index + 1}")
        for name, text in texts.items():
            print(f"  {name:12}{text[index]}")
        print()


def score_files(
    hypotheses: Path, references: Path, source: Path | None, samples: int, seed: int, json_file: Path | None
) -> None:
    """Print the scores of a file of translations and `samples` examples; write the scores to `json_file`, if given."""
    if samples < 0:
        raise ValueError(f"{samples} samples are not possible; give 0 or more")
    if samples and source is None:
        raise ValueError("samples show the source, too: give its file with --source")
    files = {"source": source, "reference": references, "translation": hypotheses}
    texts = {name: list(lines(path)) for name, path in files.items() if path is not None}
    if len({len(text) for text in texts.values()}) > 1:
        counts = ", ".join(f"{files[name]} has {len(text)} lines" for name, text in texts.items())
        raise ValueError(f"{counts}; line N of each must belong to the same sentence")
    scores = score(texts["translation"], texts["reference"])
    show_samples(texts, samples, seed)
    print(f"BLEU {scores.bleu:.2f}   {scores.signatures['bleu']}")
    print(f"chrF {scores.chrf:.2f}   {scores.signatures['chrf']}")
    print(f"on {scores.n} sentences")
    if json_file is not None:
        write_json(json_file, asdict(scores))
