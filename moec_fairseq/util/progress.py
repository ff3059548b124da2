"""Shows fairseq's progress on one line, and keeps all that fairseq says in a file."""

import json
import re
import time
from collections.abc import Callable, Iterable
from typing import Any, TextIO

from tqdm import tqdm

BAR = "  {percentage:3.0f}% |{bar:24}| {n_fmt}/{total_fmt} {unit}, {elapsed} gone, {remaining} left{postfix}"
LINE = "  {percentage:3.0f}% {n_fmt}/{total_fmt} {unit}, {elapsed} gone, {remaining} left{postfix}"
RESUMED = re.compile(r"Loaded checkpoint .* @ (\d+) updates")
STATISTICS = re.compile(r" \| (train_inner|valid) \| (\{.*\})$")


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
            bar.set_postfix_str(f"loss {values['loss']}, ppl {values['ppl']}, {speed} tokens/s", refresh=False)
            bar.update(int(values["num_updates"]) - bar.n)
        else:
            tqdm.write(
                f"  update {values['valid_num_updates']}, epoch {values['epoch']}: validation loss "
                f"{values['valid_loss']} (best {_best(values)}), perplexity {values['valid_ppl']}",
                file=bar.fp,
            )
            bar.update(int(values["valid_num_updates"]) - bar.n)


def _best(values: dict[str, str]) -> str:
    """Return the best validation loss so far; fairseq leaves it out at the first validation."""
    return values.get("valid_best_loss", values["valid_loss"])


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
