"""The data of a model: its dictionaries, its sentencepiece model, the languages it translates."""

from pathlib import Path

from moec_fairseq.corpus.hypotheses import PIECE_MARK
from moec_fairseq.corpus.languages import language_pairs
from moec_fairseq.evaluate.model import ModelFacts


class DataOfModel:
    """Where the data of a model are, and between which languages it translates.

    Args:
        data: binary data, or the folder of ``prepare_data.sh`` around it; None: those of the training.
        facts: of the model.

    Attributes:
        binary: binary data.
        prepared: the folder of ``prepare_data.sh``; None for binary data that others have made.
        source: language it translates from.
        target: language it translates to.

    Raises:
        ValueError: there are no such data, or not for this model.
    """

    def __init__(self, data: Path | None, facts: ModelFacts) -> None:
        place = data or facts.data
        around = [folder for folder in (place, place.parent) if (folder / "spm.model").is_file()]
        self.prepared = around[0] if around and (around[0] == place or place.name == "binary") else None
        self.binary = self.prepared / "binary" if self.prepared else place
        if not self.binary.is_dir():
            raise ValueError(f"there is no folder {self.binary}; give --data, the data that the model was trained on")
        if facts.source and facts.target:
            self.source, self.target = facts.source, facts.target
        else:
            self.source, self.target = self._only_pair()
        for language in (self.source, self.target):
            self._check_dictionary(language, facts)

    @property
    def name(self) -> str:
        """Return the name of the folder."""
        return (self.prepared or self.binary).resolve().name

    def _only_pair(self) -> tuple[str, str]:
        """Return the languages in the names of the binary files, as fairseq does where it was not told."""
        pairs = language_pairs(self.binary)
        if len(pairs) != 1:
            raise ValueError(
                f"the checkpoint does not say between which languages it translates, and {self.binary} has "
                f"{len(pairs)} pairs of languages, not one; give --data of its training"
            )
        return pairs[0]

    def _check_dictionary(self, language: str, facts: ModelFacts) -> None:
        own, trained = (folder / f"dict.{language}.txt" for folder in (self.binary, facts.data))
        if not own.is_file():
            raise ValueError(
                f"the model translates {self.source} to {self.target}, but there is no {own}; give --data of its "
                "training"
            )
        if trained.is_file() and trained.read_bytes() != own.read_bytes():
            raise ValueError(
                f"{own} is not the dictionary of the training, {trained}; other text is translated with --input and "
                "--references"
            )

    def pieces_model(self) -> Path:
        """Return the model of sentencepiece.

        Raises:
            ValueError: there is none.
        """
        if self.prepared is None:
            raise ValueError(
                "text can only be translated with the spm.model of prepare_data.sh, which is not beside "
                f"{self.binary}; give --data of prepare_data.sh, or leave out --test-set and --input"
            )
        return self.prepared / "spm.model"

    def segmentation(self) -> str:
        """Return how words are cut into pieces, as fairseq calls it, by the look of the dictionary."""
        with (self.binary / f"dict.{self.target}.txt").open(encoding="utf-8") as file:
            return "sentencepiece" if any(line.startswith(PIECE_MARK) for line in file) else "subword_nmt"
