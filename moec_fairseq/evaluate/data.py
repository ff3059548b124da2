"""The data of a model: its dictionaries, its sentencepiece model, the languages it translates."""

from pathlib import Path

from moec_fairseq.corpus.hypotheses import PIECE_MARK
from moec_fairseq.corpus.languages import language_pairs
from moec_fairseq.evaluate.model import ModelFacts, first_folder


class DataOfModel:
    """Where the data of a model are, and between which languages it translates.

    Args:
        data: binary data, or the folder of ``prepare_data.sh`` around it; None: those of the training.
        facts: of the model.
        source: language to translate from, where the model leaves a choice.
        target: language to translate to, likewise.

    Attributes:
        binary: binary data.
        prepared: the folder of ``prepare_data.sh``; None for binary data that others have made.
        source: language it translates from.
        target: language it translates to.
        chosen: the pair of languages, if that was a choice, else "".
        mark: word that fairseq puts into sources to name a language, or "".

    Raises:
        ValueError: there are no such data, or not for this model.
    """

    def __init__(
        self, data: Path | None, facts: ModelFacts, source: str | None = None, target: str | None = None
    ) -> None:
        place = first_folder(data) if data else facts.data
        around = [folder for folder in (place, place.parent) if (folder / "spm.model").is_file()]
        self.prepared = around[0] if around and (around[0] == place or place.name == "binary") else None
        self.binary = self.prepared / "binary" if self.prepared else place
        if not self.binary.is_dir():
            raise ValueError(f"there is no folder {self.binary}; give --data, the data that the model was trained on")
        self.source, self.target = self._languages(facts, source, target)
        recorded = facts.source and facts.target
        self.chosen = f"{self.source}-{self.target}" if facts.several or (source and not recorded) else ""
        self.mark = facts.several.source_mark(self.source, self.target) if facts.several else ""
        self._others = facts.several.dictionaries if facts.several else {}
        for side in ("source", "target"):
            self._check_dictionary(side, facts)

    def _languages(self, facts: ModelFacts, source: str | None, target: str | None) -> tuple[str, str]:
        """Return the languages of the model; of those that were given where it leaves a choice."""
        if facts.several:
            return facts.several.pair(source, target)
        if facts.source and facts.target:
            if (source or facts.source, target or facts.target) != (facts.source, facts.target):
                raise ValueError(
                    f"the model translates {facts.source} to {facts.target}; leave out --source-lang and --target-lang"
                )
            return facts.source, facts.target
        if source and target:
            return source, target
        if source or target:
            raise ValueError("--source-lang and --target-lang go together; give both")
        try:
            return self._only_pair()
        except ValueError as error:
            raise ValueError(f"{error}, or --source-lang and --target-lang") from None

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

    def dictionary(self, side: str) -> Path:
        """Return the dictionary of ``source`` or ``target``."""
        language = self.source if side == "source" else self.target
        return self._others.get(side) or self.binary / f"dict.{language}.txt"

    def _check_dictionary(self, side: str, facts: ModelFacts) -> None:
        own = self.dictionary(side)
        trained = facts.data / own.name
        if not own.is_file():
            raise ValueError(
                f"the model translates {self.source} to {self.target}, but there is no {own}; give --data of its "
                "training"
            )
        if side not in self._others and trained.is_file() and trained.read_bytes() != own.read_bytes():
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
        with self.dictionary("target").open(encoding="utf-8") as file:
            return "sentencepiece" if any(line.startswith(PIECE_MARK) for line in file) else "subword_nmt"
