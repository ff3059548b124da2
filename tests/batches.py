"""Dictionaries, sentences and batches as the translation task makes them."""

import random
from pathlib import Path
from typing import Any

import torch
from fairseq.data import Dictionary, LanguagePairDataset
from torch import Tensor

LETTERS = "abcdefghij"
Pair = tuple[Tensor, Tensor]


def dictionary_of(symbols: str = LETTERS) -> Dictionary:
    dictionary = Dictionary()
    for symbol in symbols:
        dictionary.add_symbol(symbol)
    return dictionary


def write_dictionaries(folder: Path) -> Path:
    """Write the dictionaries of both languages, src and tgt; return the folder."""
    for language in ("src", "tgt"):
        dictionary_of().save(str(folder / f"dict.{language}.txt"))
    return folder


def random_pairs(dictionary: Dictionary, seed: int, size: int, shortest: int = 1, longest: int = 9) -> list[Pair]:
    """Return sentence pairs, each side of its own length; the end-of-sentence symbol comes on top of that."""
    source = random.Random(seed)

    def sentence() -> Tensor:
        words = [
            source.randrange(dictionary.nspecial, len(dictionary)) for _ in range(source.randint(shortest, longest))
        ]
        return torch.tensor([*words, dictionary.eos()])

    return [(sentence(), sentence()) for _ in range(size)]


def collate(dictionary: Dictionary, pairs: list[Pair], pad_to_length: dict[str, int] | None = None) -> dict[str, Any]:
    """Return the batch of these pairs, longest sources first."""
    sources, targets = zip(*pairs, strict=True)
    data = LanguagePairDataset(
        sources, [len(s) for s in sources], dictionary, targets, [len(t) for t in targets], dictionary, shuffle=False
    )
    return data.collater([data[i] for i in range(len(pairs))], pad_to_length)
