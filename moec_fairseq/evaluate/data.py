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
        if not self.binary.is_dir():
            raise ValueError(f"there is no folder {self.binary}; give --data, the data that the model was trained on")
        source, target = (facts.source, facts.target) if facts.source and facts.target else self._only_pair()
        dictionaries = sorted(path.name.split(".")[1] for path in self.binary.glob("dict.*.txt"))
        if {source, target} - set(dictionaries):
            raise ValueError(
                f"the model translates {source} to {target}, but {self.binary} has dictionaries of "
                f"{' and '.join(dictionaries) or 'no language'}; give --data of its training"
            )
        self.source, self.target = source, target

    def _only_pair(self) -> tuple[str, str]:
        """Return the languages in the names of the binary files, as fairseq does where it was not told."""
        names = [path.name.split(".") for path in self.binary.glob("*.*-*.*.idx")]
        pairs = sorted({tuple(name[1].split("-")) for name in names if len(name) == 4})
        if len(pairs) != 1 or len(pairs[0]) != 2:
            raise ValueError(
                f"the checkpoint does not say between which languages it translates, and {self.binary} has "
                f"{len(pairs)} pairs of languages, not one; give --data of its training"
            )
        return pairs[0]

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
