"""GPT-2's BPE of bytes, with which RoBERTa was published: its two files, read by fairseq's code without a network."""

import json
from pathlib import Path

from moec_fairseq.data.formats.text import check_file

GPT2_BPE = ("encoder.json", "vocab.bpe")


def check_gpt2(folder: Path) -> None:
    """Raise ValueError unless a folder has both files."""
    for name in GPT2_BPE:
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}; give the folder with {' and '.join(GPT2_BPE)} of GPT-2's BPE")
        check_file(folder / name)
    encoder = folder / GPT2_BPE[0]
    try:
        numbers = json.loads(encoder.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{encoder} is not JSON ({error}); get another copy of it") from error
    if not isinstance(numbers, dict) or not all(isinstance(number, int) for number in numbers.values()):
        raise ValueError(f"{encoder} does not give each subword a number; get another copy of it")


class Gpt2Model:
    """Segments lines; fairseq spells each subword as its number.

    Args:
        folder: with both files.
    """

    def __init__(self, folder: Path) -> None:
        # Here, because it imports torch, which the workers do without otherwise.
        from fairseq.data.encoders.gpt2_bpe_utils import get_encoder

        self.folder = folder
        self.encoder = get_encoder(*(str(folder / name) for name in GPT2_BPE))

    def encode(self, lines: list[str]) -> list[list[int]]:
        """Return the numbers of each line's subwords.

        Raises:
            ValueError: the two files do not fit.
        """
        try:
            return [self.encoder.encode(line) for line in lines]
        except KeyError as error:
            raise ValueError(
                f"{self.folder}: {GPT2_BPE[0]} lacks {error}, which {GPT2_BPE[1]} makes; take both from one place"
            ) from None

    def spelled(self, ids: list[int]) -> str:
        """Return subwords as one line."""
        return " ".join(map(str, ids)) + "\n"
