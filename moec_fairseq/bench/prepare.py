"""The prepare suite: sentence pairs a second from raw text to pieces."""

import io
import random
from contextlib import redirect_stderr, redirect_stdout
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from moec_fairseq.bench.report import Row, Target, rows_of
from moec_fairseq.bench.sizes import TextSizes
from moec_fairseq.bench.timing import Contender, interleave
from moec_fairseq.corpus.own import own
from moec_fairseq.corpus.segment import segment


def write_text(folder: Path, pairs: int) -> None:
    """Write text whose words are as unevenly used as those of a language (Zipf), about 20 to a sentence."""
    source = random.Random(1)
    letters = "etaoinshrdlucmfw"
    words = ["".join(source.choices(letters, k=source.randint(2, 9))) for _ in range(20_000)]
    weights = list(accumulate(1 / rank for rank in range(1, len(words) + 1)))
    for language in ("en", "de"):
        with (folder / f"text.{language}").open("w", encoding="utf-8") as file:
            for _ in range(pairs):
                file.write(" ".join(source.choices(words, cum_weights=weights, k=source.randint(12, 28))) + ".\n")


def run(sizes: TextSizes, device: torch.device) -> tuple[list[Row], list[Target]]:
    """Time cleaning and splitting, and learning and cutting pieces."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_text(folder, sizes.pairs)

        def split() -> None:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                own(str(folder / "text"), None, None, "en", "de", folder / "split")

        def cut() -> None:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                segment(folder / "split", "en", "de", sizes.vocabulary, folder / "pieces", "bpe", 1.0)

        case = f"{sizes.pairs} sentence pairs"
        contenders = {"split": Contender(split), "learn and cut pieces": Contender(cut)}
        times = interleave(f"prepare {case}", contenders, sizes.repeats, 0, torch.device("cpu"))
        return rows_of("prepare", case, times, dict.fromkeys(contenders, (0, sizes.pairs))), []
