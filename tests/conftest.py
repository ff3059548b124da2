"""A tiny reversal corpus, real fairseq command lines run on it, and models built in this process."""

import gc
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from moec_fairseq.util.files import alone_with
from tests.python import ROOT, Done, python_m

USER_DIR = ROOT / "moec_fairseq"
LETTERS = "abcdefghij"

TINY = ("--user-dir", USER_DIR, "--cpu", "--arch", "moec_transformer_tiny", "--share-all-embeddings")
CRITERION = ("--criterion", "moec_label_smoothed_cross_entropy", "--label-smoothing", "0.1")
ADAM = ("--optimizer", "adam", "--adam-betas", "(0.9, 0.98)", "--lr", "5e-3", "--clip-norm", "1")
# Without the thread that reads ahead: it may still be at work when a training that stops inside an epoch exits
DATA = ("--max-tokens", "1000", "--num-workers", "0", "--data-buffer-size", "0")
SCHEDULE = ("--lr-scheduler", "inverse_sqrt", "--warmup-updates", "100", "--dropout", "0", *DATA)


Command = Callable[..., Done]


def pytest_collection_finish() -> None:
    """Keep the garbage collector from searching all of torch and fairseq again and again, a fifth of a fast test."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture
def signals_are_heard() -> Iterator[None]:
    """Let this process, and those that it starts, hear signals that ``&`` in a script or nohup makes them ignore."""
    numbers = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
    ignored = [number for number in numbers if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture(scope="session")
def fairseq() -> Command:
    """Run ``fairseq-NAME ARGUMENTS`` in a process of its own; fail when it fails, unless ``ok=False``."""

    def run(name: str, *arguments: object, stdin: str = "", ok: bool = True, cwd: Path | None = None) -> Done:
        done = python_m(f"fairseq_cli.{name}", *arguments, stdin=stdin, cwd=cwd)
        assert not ok or done.returncode == 0, f"{name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done

    return run


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Callable[..., Path]:
    """Make a folder with ``fill(folder)`` once for all processes of pytest-xdist, and return it."""
    session = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):  # a process among several, with a folder of its own in that of all
        session = session.parent

    def make(name: str, fill: Callable[[Path], None]) -> Path:
        folder, filled = session / f"once-{name}", session / f"once-{name}.filled"
        with alone_with(filled):
            if not filled.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of another process, in which it failed
                folder.mkdir()
                fill(folder)
                filled.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def reversal_data(once: Callable[..., Path], fairseq: Command) -> Path:
    """Return the binarised corpus: 3 to 6 letters, and the same backwards; no sentence is in two splits."""
    return once("reversal", lambda folder: write_reversal(folder, fairseq)) / "bin"


def write_reversal(folder: Path, fairseq: Command) -> None:
    """Write the texts, and binarise them to ``bin``."""
    source = random.Random(7)
    distinct: dict[str, None] = {}
    while len(distinct) < 3000:
        distinct[" ".join(source.choice(LETTERS) for _ in range(source.randint(3, 6)))] = None
    lines = list(distinct)
    for split, part in {"valid": lines[:100], "test": lines[100:300], "train": lines[300:]}.items():
        (folder / f"{split}.src").write_text("".join(f"{line}\n" for line in part))
        (folder / f"{split}.tgt").write_text("".join(f"{line[::-1]}\n" for line in part))
    pairs = [a for s in ("train", "valid", "test") for a in (f"--{s}pref", folder / s)]
    fairseq("preprocess", "-s", "src", "-t", "tgt", *pairs, "--destdir", folder / "bin", "--joined-dictionary")


@pytest.fixture(scope="session")
def trained(once: Callable[..., Path], fairseq: Command, reversal_data: Path) -> Path:
    """Return the folder of a model that has learned to reverse: checkpoints, ``train.log``, TensorBoard files.

    The run also uses gradient accumulation, an exponential moving average, BLEU at validation and TensorBoard.
    """
    return once("trained", lambda save_dir: train_reversal(save_dir, fairseq, reversal_data))


def train_reversal(save_dir: Path, fairseq: Command, reversal_data: Path) -> None:
    """Train for as long as reversal takes to learn."""
    done = fairseq(
        "train", reversal_data, *TINY, *CRITERION, *ADAM, *SCHEDULE, "--save-dir", save_dir,
        "--max-epoch", "14", "--validate-interval", "7", "--keep-last-epochs", "2", "--save-interval", "7",
        "--moec-expert-dropout-interval", "20", "--max-tokens", "500", "--update-freq", "2",
        "--lr-scheduler", "polynomial_decay", "--total-num-update", "240",
        "--store-ema", "--ema-decay", "0.9", "--eval-bleu", "--eval-bleu-args", '{"beam": 1, "max_len_a": 1.2}',
        "--tensorboard-logdir", save_dir / "tensorboard", "--log-format", "simple", "--log-interval", "10",
    )  # fmt: skip
    (save_dir / "train.log").write_text(done.stderr + done.stdout)


@dataclass(frozen=True)
class Built:
    """What fairseq-train builds before it trains."""

    task: Any
    model: Any
    criterion: Any

    def batch(self, size: int = 8, seed: int = 0, min_length: int = 2) -> dict[str, Any]:
        """Return a batch of random sentences of different lengths."""
        from tests.batches import collate, random_pairs

        dictionary = self.task.source_dictionary
        return collate(dictionary, random_pairs(dictionary, seed, size, min_length))


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Built]:
    """Build task, model and criterion from the flags of fairseq-train, in this process."""
    from fairseq import options, tasks
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    from tests.batches import write_dictionaries

    write_dictionaries(tmp_path)

    def make(*flags: object, base: tuple[object, ...] = (*TINY, *CRITERION, *ADAM)) -> Built:
        arguments = [str(tmp_path), "-s", "src", "-t", "tgt", *map(str, base), "--max-tokens", "1000", *map(str, flags)]
        parser = options.get_training_parser()
        config = convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, input_args=arguments))
        task = tasks.setup_task(config.task)
        return Built(task, task.build_model(config.model), task.build_criterion(config.criterion))

    return make
