"""Shows fairseq's progress on one line, and keeps all that fairseq says in a file."""

import json
import re
import time
from collections.abc import Callable, Iterable
from typing import Any, TextIO

from tqdm import tqdm

BAR = "  {percentage:3.0f}% |{bar:24}| {n_fmt}/{total_fmt} {unit}, {elapsed} gone, {remaining} left{postfix}"
LINE = "  {percentage:3.0f}% {n_fmt}/{total_fmt} {unit}, {elapsed} gone, {remaining} left{postfix}"
RESUMED = re.compile(r"Loaded checkpoint .* @ ([1-9]\d*) updates")  # 0: fine-tuning begins
# what is shown of fairseq's measures, in words; translation has perplexity, GLUE has the rest
MEASURES = {
    "loss": "loss",
    "ppl": "ppl",
    "accuracy": "accuracy",
    "mcc": "Matthews correlation",
    "acc_and_f1": "accuracy and F1",
    "pearson_and_spearman": "Pearson and Spearman",
}
# with a colon where logging was set up before fairseq was imported
STATISTICS = re.compile(r"\b(train_inner|valid)(?: \| |:)(\{.*\})$")
# the same where common.log_format is simple
_SIMPLE_TRAINING = re.compile(r" \| train_inner \| epoch \d+: +\d+ / \d+ (\S+=.*)$")
_SIMPLE_VALIDATION = re.compile(r" \| valid \| epoch \d+ \| valid on '[^']*' subset \| (.*)$")


class Headlines:
    """What a command of several steps says before each: its number, its title, the time since the command began.

    Args:
        total: number of steps.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.number = 0
        self._start = time.monotonic()

    def show(self, title: str) -> None:
        """Print the next one."""
        self.number += 1
        print(f"\n[{self.number}/{self.total}] {title} ({self.duration()})", flush=True)

    def duration(self) -> str:
        """Return the time since the command began, in words."""
        minutes, seconds = divmod(int(time.monotonic() - self._start), 60)
        return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


class _Lines:
    """A file that is not a terminal: every state of the bar gets a line of its own."""

    def __init__(self, file: TextIO) -> None:
        self.file = file

    def write(self, text: str) -> None:
        """Write the text, without the moves of a cursor."""
        text = text.replace("\r", "").strip()
        if text:
            self.file.write(f"  {text}\n")

    def flush(self) -> None:
        """Write what is buffered."""
        self.file.flush()


def progress_bar(total: int, unit: str, file: TextIO) -> "tqdm[Any]":
    """Return a bar that redraws itself on a terminal, and writes a line every 30 seconds elsewhere."""
    if file.isatty():
        return tqdm(total=total, unit=unit, file=file, bar_format=BAR, dynamic_ncols=True)
    return tqdm(total=total, unit=unit, file=_Lines(file), bar_format=LINE, mininterval=30, maxinterval=60)


def start_at(bar: "tqdm[Any]", done: int) -> None:
    """Let the clock begin now, with so much done by an earlier run."""
    bar.initial = bar.n = bar.last_print_n = done
    bar.start_t = bar.last_print_t = time.time()


def show_training(line: str, bar: "tqdm[Any]") -> None:
    """Take in one line of fairseq-train."""
    if resumed := RESUMED.search(line):
        start_at(bar, int(resumed[1]))
        tqdm.write(f"  resuming from update {resumed[1]}", file=bar.fp)
    elif "Start iterating over samples" in line and bar.n == bar.initial:  # not again at every epoch
        start_at(bar, int(bar.n))
    elif found := STATISTICS.search(line):
        tag, values = found[1], json.loads(found[2])
        if tag == "train_inner":
            speed = f"{float(values['wps']):,.0f}".replace(",", " ")
            bar.set_postfix_str(f"{_measures(values)}, {speed} tokens/s", refresh=False)
            bar.update(int(values["num_updates"]) - bar.n)
        else:
            tqdm.write(
                f"  update {values['valid_num_updates']}, epoch {values['epoch']}: validation "
                f"{_measures(values, 'valid_')}",
                file=bar.fp,
            )
            bar.update(int(values["valid_num_updates"]) - bar.n)


def _measures(values: dict[str, str], prefix: str = "") -> str:
    """Return the measures in words; the one by which the best checkpoint is chosen with its best value so far."""
    found = []
    for name, words in MEASURES.items():
        if (value := values.get(f"{prefix}{name}")) is not None:
            best = values.get(f"{prefix}best_{name}")
            found.append(f"{words} {value}" + (f" (best {best})" if best is not None else ""))
    return ", ".join(found)


def show_generation(line: str, bar: "tqdm[Any]") -> None:
    """Take in one line of fairseq-generate; D- is the detokenised best translation of a sentence."""
    if line.startswith("D-"):
        bar.update()


KINDS: dict[str, tuple[str, Callable[[str, "tqdm[Any]"], None]]] = {
    "train": ("updates", show_training),
    "generate": ("sentences", show_generation),
}


def follow(lines: Iterable[str], kind: str, total: int, log: TextIO, screen: TextIO) -> None:
    """Copy the lines into the log as they come, and show on the screen how far fairseq is."""
    unit, show = KINDS[kind]
    with progress_bar(total, unit, screen) as bar:
        for line in lines:
            log.write(line)
            log.flush()
            show(line.rstrip("\n"), bar)


def history(lines: Iterable[str]) -> tuple[dict[int, dict[str, float]], dict[int, dict[str, float]]]:
    """Return what a log says of training and of validation, by update; of what was repeated, the last time.

    The log may be of ``common.log_format`` json or simple. Names of what was validated begin with ``valid_``.
    """
    found: dict[str, dict[int, dict[str, float]]] = {"train_inner": {}, "valid": {}}
    for line in lines:
        if resumed := RESUMED.search(line):
            for part in found.values():
                for update in [update for update in part if update > int(resumed[1])]:
                    del part[update]
        elif logged := STATISTICS.search(line):
            texts = {key: text for key, text in json.loads(logged[2]).items() if text is not None}
            _note(found, logged[1], {key: float(text) for key, text in texts.items()})
        elif logged := _SIMPLE_TRAINING.search(line):
            pairs = (pair.partition("=") for pair in logged[1].split(", "))
            _note(found, "train_inner", {key: float(text) for key, _, text in pairs})
        elif logged := _SIMPLE_VALIDATION.search(line):
            pairs = (pair.rpartition(" ") for pair in logged[1].split(" | "))
            _note(found, "valid", {f"valid_{key}": float(text) for key, _, text in pairs})
    return found["train_inner"], found["valid"]


def _note(found: dict[str, dict[int, dict[str, float]]], tag: str, values: dict[str, float]) -> None:
    found[tag][int(values["valid_num_updates" if tag == "valid" else "num_updates"])] = values
