"""Toy corpora for language understanding: text to pre-train on, and pairs of sentences with a label."""

import random
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq import tasks
from fairseq.binarizer import FileBinarizer, VocabularyDatasetBinarizer
from fairseq.data import Dictionary

from tests.conftest import LETTERS, USER_DIR
from tests.whole_trainings import configuration, of_rank, train_with_stops

ROBERTA = (
    "--user-dir", USER_DIR, "--cpu", "--encoder-layers", 2, "--encoder-attention-heads", 2, "--encoder-embed-dim", 16,
    "--encoder-ffn-embed-dim", 32, "--max-positions", 32, "--optimizer", "adam", "--max-tokens", 1000,
    "--num-workers", 0, "--data-buffer-size", 0, "--no-progress-bar",
)  # fmt: skip
STOCK = (*ROBERTA, "--arch", "roberta")
SPARSE = (*ROBERTA, "--arch", "moec_roberta", "--moec-sublayers", 1, "--moec-router-dim", 8)
MASKED_LM = ("--task", "masked_lm", "--criterion", "moec_masked_lm", "--tokens-per-sample", 32)
PAIRS = (
    "--task", "sentence_prediction", "--criterion", "moec_sentence_prediction", "--num-classes", 2, "--init-token", 0,
    "--separator-token", 2,
)  # fmt: skip


def write_binary(lines: Iterable[str], prefix: Path, dictionary: Dictionary) -> None:
    """Binarise lines of symbols, and save the dictionary beside them."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    dictionary.save(str(prefix.parent / "dict.txt"))
    text = prefix.parent / "text"
    text.write_text("".join(f"{line}\n" for line in lines))
    binarizer = VocabularyDatasetBinarizer(dictionary, append_eos=True)
    FileBinarizer.multiprocess_dataset(str(text), "mmap", binarizer, str(prefix), len(dictionary))
    text.unlink()


def dictionary_of(symbols: Iterable[str]) -> Dictionary:
    """Return the dictionary of these symbols."""
    dictionary = Dictionary()
    for symbol in symbols:
        dictionary.add_symbol(symbol)
    return dictionary


def sentences(number: int, seed: int = 0, shortest: int = 3, longest: int = 9) -> list[str]:
    """Return sentences in which each letter is followed by its successor, so that a masked one can be told."""
    draw = random.Random(seed)
    starts_lengths = [(draw.randrange(len(LETTERS)), draw.randint(shortest, longest)) for _ in range(number)]
    return [" ".join(LETTERS[(s + i) % len(LETTERS)] for i in range(n)) for s, n in starts_lengths]


def write_text(folder: Path, train: int = 400, valid: int = 40) -> Path:
    """Write data of the task ``masked_lm``; documents of four sentences."""
    for split, number in (("train", train), ("valid", valid)):
        lines = sentences(number, seed=number)
        with_ends = [part for i, line in enumerate(lines) for part in ((line, "") if i % 4 == 3 else (line,))]
        write_binary(with_ends, folder / split, dictionary_of(LETTERS))
    return folder


def write_pairs(
    folder: Path, train: int = 600, valid: int = 100, labels: tuple[str, str] = ("0", "1"), symbols: str = LETTERS
) -> Path:
    """Write data of the task ``sentence_prediction``: do two sentences begin with the same letter, a, b or c?"""
    draw = random.Random(1)
    for split, number in (("train", train), ("valid", valid)):
        first, second, label = [], [], []
        for i in range(number):
            words = [[draw.choice("abc") for _ in range(draw.randint(1, 2))] for _ in range(2)]
            same = i % 2 == 0
            words[1][0] = words[0][0] if same else draw.choice([x for x in "abc" if x != words[0][0]])
            first.append(" ".join(words[0]))
            second.append(" ".join(words[1]))
            label.append(labels[same])
        for name, lines in (("input0", first), ("input1", second)):
            write_binary(lines, folder / name / split, dictionary_of(symbols))
        write_binary(label, folder / "label" / split, dictionary_of(labels))
    return folder


def write_numbers(folder: Path, train: int = 60, valid: int = 20) -> Path:
    """Write data of the task ``sentence_prediction`` with a number between 0 and 1 for each pair."""
    write_pairs(folder, train, valid)
    for split, number in (("train", train), ("valid", valid)):
        (folder / "label" / f"{split}.label").write_text("".join(f"{i % 6 / 5}\n" for i in range(number)))
    return folder


@dataclass(frozen=True)
class Built:
    """What fairseq-train builds before it trains, its configuration and its data."""

    config: Any
    task: Any
    model: Any
    criterion: Any
    data: Any

    def batch(self, first: int = 0, size: int = 8) -> dict[str, Any]:
        """Return the batch of some examples, which have different lengths."""
        examples = [self.data[i] for i in range(first, first + size)]
        return dict(self.data.collater(examples))


def built(folder: Path, *flags: object, base: tuple[object, ...] = SPARSE, split: str = "train") -> Built:
    """Build task, model and criterion from the data and the flags of fairseq-train, and load a split of the data."""
    config = deepcopy(configuration(*map(str, (folder, *base, *flags))))
    task = tasks.setup_task(config.task)
    model = task.build_model(config.model)
    task.load_dataset(split)
    return Built(config, task, model, task.build_criterion(config.criterion), task.dataset(split))


def train_on_ranks(
    rank: int, world_size: int, data: Path, save_dir: Path, updates: int, base: tuple[object, ...], *flags: object
) -> dict[str, Any]:
    """Do what fairseq-train does, as one rank of a job that is running; return what the training has seen."""
    return vars(train_with_stops(data, save_dir, [updates], *flags, *of_rank(rank, world_size), base=base))
