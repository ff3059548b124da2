"""The suites of text: sentence pairs a second, your own text to subwords (prepare), published text to subwords (clean).

The second also with Moses' scripts and subword-nmt.
"""

import io
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from itertools import accumulate, cycle, islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from moec_fairseq.bench.measure import Contender, interleave
from moec_fairseq.bench.report import Row, Target, rows_of
from moec_fairseq.bench.sizes import CleanSizes, TextSizes
from moec_fairseq.data.cleaning import Limits
from moec_fairseq.data.formats.archives import Archive
from moec_fairseq.data.formats.places import Part, Place
from moec_fairseq.data.formats.sentences import Side
from moec_fairseq.data.languages import SPLITS, parallel_paths
from moec_fairseq.data.published import write_texts
from moec_fairseq.data.recipes import Recipe
from moec_fairseq.data.splits import write_own
from moec_fairseq.data.subwords import segment, train_model
from moec_fairseq.util.processes import start_workers

LANGUAGES = ("en", "de")
TEXT, HELD_OUT = "text", "held-out"  # names of files
WORKERS = 2
PAIRS_A_SECOND = 20_000  # the target for ours


@contextmanager
def quiet() -> Iterator[None]:
    """Show neither results nor progress."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


def write_text(folder: Path, pairs: int) -> None:
    """Write text with word frequencies like those of a language (Zipf), about 20 words per sentence."""
    source = random.Random(1)
    letters = "etaoinshrdlucmfw"
    words = ["".join(source.choices(letters, k=source.randint(2, 9))) for _ in range(20_000)]
    weights = list(accumulate(1 / rank for rank in range(1, len(words) + 1)))
    for language in ("en", "de"):
        with (folder / f"text.{language}").open("w", encoding="utf-8") as file:
            for _ in range(pairs):
                file.write(" ".join(source.choices(words, cum_weights=weights, k=source.randint(12, 28))) + ".\n")


def prepare(sizes: TextSizes) -> tuple[list[Row], list[Target]]:
    """Time splitting, and training a subword model and segmenting with it."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_text(folder, sizes.pairs)

        def split() -> None:
            with quiet():
                source, target = (Side(folder / f"{TEXT}.{language}", language) for language in LANGUAGES)
                write_own({"train": (source, target)}, *LANGUAGES, folder / "split")

        def learn() -> None:
            with quiet(), start_workers(WORKERS) as pool:
                model = folder / "spm.model"
                train_model(parallel_paths(folder / "split", "train", *LANGUAGES), sizes.vocabulary, "bpe", 1.0, model)
                segment(folder / "split", *LANGUAGES, model, None, folder / "subwords", pool, 4 * WORKERS)

        case = f"{sizes.pairs} sentence pairs"
        contenders = {"split": Contender(split), "learn and segment": Contender(learn)}
        times = interleave(f"prepare {case}", contenders, sizes.repeats, 0, torch.device("cpu"))
        return rows_of("prepare", case, times, dict.fromkeys(contenders, (0, sizes.pairs))), []


def clean(sizes: CleanSizes, text: str | None, moses: Path | None) -> tuple[list[Row], list[Target]]:
    """Time cleaning and segmentation; subword models are trained before.

    Args:
        sizes: how much.
        text: prefix of real text, TEXT.en and TEXT.de, repeated as often as needed; None: generated.
        moses: folder with normalize-punctuation.perl and a tokenizer*.perl; subword-nmt must be on the PATH.

    Raises:
        ValueError: the scripts or subword-nmt are missing.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        _write(folder, text, sizes.pairs)
        model = folder / "spm.model"
        with quiet():
            train_model(parallel_paths(folder, TEXT, *LANGUAGES), sizes.vocabulary, "bpe", 1.0, model)
        contenders = {"ours": Contender(lambda: _ours(folder, model))}
        if moses is not None:
            scripts = [*moses.glob("normalize-punctuation.perl"), *sorted(moses.glob("tokenizer*.perl"))[-1:]]
            if len(scripts) != 2 or shutil.which("subword-nmt") is None:
                raise ValueError(
                    f"--moses needs normalize-punctuation.perl and tokenizer.perl in {moses}, and subword-nmt on the "
                    "PATH; pip install mosestokenizer subword-nmt brings them."
                )
            codes = _learn_codes(folder, sizes.vocabulary)
            contenders["Moses and subword-nmt"] = Contender(lambda: _theirs(folder, scripts, codes))
        case = f"{sizes.pairs} sentence pairs"
        times = interleave(f"clean {case}", contenders, sizes.repeats, 0, torch.device("cpu"))
        rows = rows_of("clean", case, times, dict.fromkeys(contenders, (0, sizes.pairs)))
        speed = sizes.pairs / median(times["ours"].total)
        return rows, [Target("pairs per second, cleaned and segmented", speed, PAIRS_A_SECOND, at_most=False)]


def _write(folder: Path, text: str | None, pairs: int) -> None:
    if text is None:
        write_text(folder, pairs)
    for language in LANGUAGES:
        path = folder / f"{TEXT}.{language}"
        if text is not None:
            lines = Path(f"{text}.{language}").read_text(encoding="utf-8").split("\n")[:-1]
            with path.open("w", encoding="utf-8") as file:
                file.writelines(line + "\n" for line in islice(cycle(lines), pairs))
        with path.open(encoding="utf-8") as file:
            (folder / f"{HELD_OUT}.{language}").write_text("".join(islice(file, 10)), encoding="utf-8")


def _ours(folder: Path, model: Path) -> None:
    source, target = LANGUAGES
    parts = [Part(use, {language: Place(use) for language in LANGUAGES}) for use in SPLITS]
    recipe = Recipe("text", source, target, {use: Archive(use, "", "") for use in SPLITS}, parts)
    names = [TEXT, HELD_OUT, HELD_OUT]
    texts = [{language: Side(folder / f"{name}.{language}", language) for language in LANGUAGES} for name in names]
    with quiet(), start_workers(WORKERS) as pool:
        write_texts(recipe, texts, folder / "clean", pool, 4 * WORKERS)
        segment(folder / "clean", source, target, model, Limits(250, 1.5), folder / "subwords", pool, 4 * WORKERS)


def _learn_codes(folder: Path, vocabulary: int) -> Path:
    codes = folder / "codes"
    text = b"".join(path.read_bytes() for path in parallel_paths(folder, TEXT, *LANGUAGES))
    command = ["subword-nmt", "learn-bpe", "-s", str(vocabulary), "-o", str(codes)]
    subprocess.run(command, input=text, check=True, stderr=subprocess.DEVNULL)
    return codes


def _theirs(folder: Path, scripts: list[Path], codes: Path) -> None:
    """Run both languages in parallel, each as a pipe of three programs, as the published recipes do."""
    with ExitStack() as stack:
        processes: list[subprocess.Popen[bytes]] = []
        for language in LANGUAGES:
            stream = stack.enter_context((folder / f"{TEXT}.{language}").open("rb"))
            commands = [["perl", str(script), "-l", language] for script in scripts]
            commands.append(["subword-nmt", "apply-bpe", "-c", str(codes)])
            for number, command in enumerate(commands):
                is_last = number == len(commands) - 1
                out = stack.enter_context((folder / f"theirs.{language}").open("wb")) if is_last else subprocess.PIPE
                process = stack.enter_context(
                    subprocess.Popen(command, stdin=stream, stdout=out, stderr=subprocess.DEVNULL)
                )
                processes.append(process)
                stream = process.stdout  # type: ignore[assignment]
        if any(process.wait() for process in processes):
            raise ValueError("Moses' scripts or subword-nmt failed, so there is no comparison.")
