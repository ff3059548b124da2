"""The data of a model: dictionaries, its sentencepiece model, texts."""

from pathlib import Path

from moec_fairseq.evaluate.model import ModelFacts
from moec_fairseq.evaluate.sets import EvaluationSet, from_files, from_prepared, from_sacrebleu


class DataOfModel:
    """Where the data of a model are, and between which languages it translates.

    Args:
        data: binary data, or the folder of ``prepare_data.sh`` around it.
        facts: of the model.

    Raises:
        ValueError: there are no such data, or not for these languages.
    """

    def __init__(self, data: Path, facts: ModelFacts) -> None:
        prepared = [folder for folder in (data, data.parent) if (folder / "spm.model").is_file()]
        self.prepared = prepared[0] if prepared and (prepared[0] == data or data.name == "binary") else None
        self.binary = self.prepared / "binary" if self.prepared else data
        dictionaries = sorted(path.name.split(".")[1] for path in self.binary.glob("dict.*.txt"))
        if facts.source is None or facts.target is None or {facts.source, facts.target} - set(dictionaries):
            languages = f"{facts.source} to {facts.target}"
            raise ValueError(
                f"the model translates {languages}, but {self.binary} has dictionaries of "
                f"{' and '.join(dictionaries) or 'no language'}; give --data of its training"
            )
        self.source, self.target = facts.source, facts.target

    def evaluation_set(
        self, subset: str, test_set: str | None, text: Path | None, references: list[Path]
    ) -> EvaluationSet:
        """Return what is to be translated."""
        if (test_set or text) and self.prepared is None:
            raise ValueError(
                f"text can only be translated with the spm.model of prepare_data.sh, which is not beside "
                f"{self.binary}; give --data of prepare_data.sh, or leave out --test-set and --input"
            )
        if test_set:
            return from_sacrebleu(test_set, self.source, self.target)
        if text:
            return from_files(text, references)
        if self.prepared:
            return from_prepared(self.prepared, subset, self.source, self.target)
        return EvaluationSet(f"{self.binary.name}/{subset}", None, [])
