"""Plain text to plain text with a trained model."""

import shutil
import sys
from collections.abc import Mapping
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

from moec_fairseq.checkpoint.names import find_files
from moec_fairseq.checkpoint.tools import merge
from moec_fairseq.data.formats.text import normalise_space, raw_lines
from moec_fairseq.data.pipeline import SENTENCEPIECE
from moec_fairseq.evaluate.generate import Binarised, Hypothesis, Search, generate, read_hypotheses
from moec_fairseq.evaluate.model import DataOfModel, model_facts
from moec_fairseq.util.files import whole_texts

CHECKPOINTS = ("checkpoint_best.pt", "checkpoint_last.pt")  # of a training, the first that is there


def translate(
    model: Path,
    text: Path | None,
    output: Path | None,
    data: Path | None,
    source_lang: str | None,
    target_lang: str | None,
    beam: int,
    lenpen: float,
    max_tokens: int,
    cpu: bool,
    batch_size: int | None,
    n_best: int,
    score: bool,
) -> None:
    """Translate line by line; the arguments are the options of ``moec translate``.

    An empty line stays empty. Lines of the translation are in the order of the text, with ``n_best`` for each.

    Raises:
        ValueError: something is wrong with what was given.
    """
    search = Search(beam, lenpen, max_tokens, cpu, batch_size, n_best)
    checkpoint = find_checkpoint(model)
    with TemporaryDirectory(prefix="moec-translate-") as folder:
        scratch = Path(folder)
        sentences = _read(text, scratch)
        wanted = {number: sentence for number, sentence in enumerate(sentences, start=1) if sentence}
        with redirect_stdout(sys.stderr):  # all but translations
            found = iter(_translated(wanted, checkpoint, data, (source_lang, target_lang), search, scratch))
        with whole_texts([output]) if output else nullcontext([sys.stdout]) as (file,):
            for sentence in sentences:
                for hypothesis in next(found) if sentence else [Hypothesis("", 0.0)] * n_best:
                    words = normalise_space(hypothesis.text)
                    file.write(f"{hypothesis.score:.4f}\t{words}\n" if score else f"{words}\n")


def find_checkpoint(model: Path) -> Path:
    """Return the checkpoint of a training's folder, or of the one training in a folder such as the quickstart's.

    Raises:
        ValueError: there is none, or several trainings.
    """
    if not model.is_dir():
        return model
    trainings = [model, *sorted(path for path in model.iterdir() if path.is_dir())]
    for folders in (trainings[:1], trainings[1:]):
        found = [path for path in map(_checkpoint_in, folders) if path is not None]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(str(path.parent) for path in found)
            raise ValueError(f"{model} holds several trainings; give one of {names}")
    raise ValueError(f"{model} holds neither {' nor '.join(CHECKPOINTS)}; give the save_dir of a training, or a file")


def _checkpoint_in(folder: Path) -> Path | None:
    for name in CHECKPOINTS:
        try:
            return find_files(folder / name).path
        except ValueError:
            continue
    return None


def in_one_file(checkpoint: Path, scratch: Path) -> Path:
    """Return a checkpoint as one file; that of several ranks is merged into the folder ``scratch``."""
    files = find_files(checkpoint)
    if not files.sharded:
        return files.ranks[0]
    whole = scratch / "merged.pt"
    merge(checkpoint, whole, optimizer=False)
    return whole


def data_beside(checkpoint: Path, trained_on: Path) -> Path | None:
    """Return what ``moec prepare`` has made around a checkpoint, if the data of its training are not where they were.

    They were moved, or the training was started in another folder.
    """
    if trained_on.is_dir():
        return None
    return next((folder for folder in checkpoint.resolve().parents[:2] if (folder / SENTENCEPIECE).is_file()), None)


def _read(text: Path | None, scratch: Path) -> list[str]:
    """Return the lines of a file, or of standard input."""
    if text is None:
        text = scratch / "standard-input"
        with text.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        if not text.stat().st_size:
            return []
    return [normalise_space(line) for line in raw_lines(text)]


def _translated(
    sentences: Mapping[int, str],
    checkpoint: Path,
    data: Path | None,
    languages: tuple[str | None, str | None],
    search: Search,
    scratch: Path,
) -> list[list[Hypothesis]]:
    if not sentences:
        return []
    whole = in_one_file(checkpoint, scratch)
    facts = model_facts(whole)
    data = data or data_beside(checkpoint, facts.data)
    place = DataOfModel(data, facts, *languages)
    folder = place.binarise(sentences.values(), scratch / "input")
    binary = Binarised(folder, "test", "sentencepiece", [*sentences])
    log = scratch / "generate.log"
    count = generate(whole, facts, binary, place.source, place.target, search, log, sys.stderr)
    return read_hypotheses(raw_lines(log), count)
