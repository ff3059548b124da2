"""The clean suite: sentence pairs a second from published text to pieces, ours and Moses' scripts with subword-nmt."""

import io
import shutil
import subprocess
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from moec_fairseq.bench.prepare import write_text
from moec_fairseq.bench.report import Row, Target, rows_of
from moec_fairseq.bench.sizes import CleanSizes
from moec_fairseq.bench.timing import Contender, interleave
from moec_fairseq.corpus.output import parallel_paths
from moec_fairseq.corpus.segment import train_model
from moec_fairseq.prepare import parallel
from moec_fairseq.prepare.cleaning import Limits
from moec_fairseq.prepare.pieces import write_pieces
from moec_fairseq.prepare.recipe import USES, Archive, Part, Recipe
from moec_fairseq.prepare.texts import write_texts

LANGUAGES = ("en", "de")
TEXT, HELD_OUT = "text", "held-out"  # names of files
WORKERS = 2
PAIRS_A_SECOND = 20_000  # what ours should reach


def run(sizes: CleanSizes, text: str | None, moses: Path | None) -> tuple[list[Row], list[Target]]:
    """Time cleaning and segmentation; models of pieces are learned before.

    Args:
        sizes: how much.
        text: prefix of real text, TEXT.en and TEXT.de, repeated as often as needed; None: made up.
        moses: folder with normalize-punctuation.perl and a tokenizer*.perl; subword-nmt must be on the PATH.

    Raises:
        ValueError: they are not there.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        _write(folder, text, sizes.pairs)
        model = folder / "spm.model"
        with redirect_stderr(io.StringIO()):
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
        return rows, [Target("pairs a second, cleaned and segmented", speed, PAIRS_A_SECOND, at_most=False)]


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
    parts = [Part(use, {language: (use, None) for language in LANGUAGES}) for use in USES]
    recipe = Recipe("text", source, target, {use: Archive(use, "", "") for use in USES}, parts)
    names = [TEXT, HELD_OUT, HELD_OUT]
    files = [dict(zip(LANGUAGES, parallel_paths(folder, name, source, target), strict=True)) for name in names]
    with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()), parallel.processes(WORKERS) as pool:
        write_texts(recipe, files, folder / "clean", pool, 4 * WORKERS)
        write_pieces(folder / "clean", source, target, model, Limits(), folder / "pieces", pool, 4 * WORKERS)


def _learn_codes(folder: Path, vocabulary: int) -> Path:
    codes = folder / "codes"
    text = b"".join(path.read_bytes() for path in parallel_paths(folder, TEXT, *LANGUAGES))
    command = ["subword-nmt", "learn-bpe", "-s", str(vocabulary), "-o", str(codes)]
    subprocess.run(command, input=text, check=True, stderr=subprocess.DEVNULL)
    return codes


def _theirs(folder: Path, scripts: list[Path], codes: Path) -> None:
    """Run both languages side by side, each as a pipe of three programs, as the published recipes do."""
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
            raise ValueError("Moses' scripts or subword-nmt failed, so there is nothing to compare with.")
