"""The model that translates, a checkpoint or the mean of several, and its data: dictionaries, subwords, languages."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from moec_fairseq.checkpoint.names import find_files, last_checkpoints
from moec_fairseq.checkpoint.state import State, group, load_state, num_experts, num_updates
from moec_fairseq.checkpoint.tools import average as write_average
from moec_fairseq.data.cleaning import normalise
from moec_fairseq.data.formats.text import normalise_space
from moec_fairseq.data.languages import language_pairs
from moec_fairseq.data.multilingual import MANY, Languages, tag
from moec_fairseq.data.pipeline import PREPARED, SENTENCEPIECE
from moec_fairseq.data.subwords import WORD_MARK, binarise_sentences
from moec_fairseq.evaluate.multilingual import Multilingual, multilingual
from moec_fairseq.util.files import alone_with
from moec_fairseq.util.stages import Stages

AVERAGE = 10
FINE_TUNED = "sentence_prediction"
MASKED_LM = "masked_lm"
# tasks of fairseq whose models do not translate, and what to do with them
OTHERWISE = {
    FINE_TUNED: "was fine-tuned to predict labels of sentences, and does not translate; score it with moec evaluate",
    MASKED_LM: "was pre-trained on text of one language; fine-tune it with moec glue",
}


@dataclass(frozen=True)
class Selection:
    """Checkpoints whose mean is evaluated.

    Attributes:
        name: which of their folder they are, in a word.
        paths: NAME.pt of each.
        folder: where they are.
    """

    name: str
    paths: list[Path]
    folder: Path

    @property
    def system(self) -> str:
        """Return what to call the system in tables: the last two folders of a training."""
        return "/".join(self.folder.resolve().parts[-2:])

    def fingerprint(self) -> list[Any]:
        """Return what changes when one of the files does: name, size and time of each."""
        files = [file.resolve() for path in self.paths for file in find_files(path).ranks.values()]
        return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]

    def task(self) -> str | None:
        """Return the name of fairseq's task that they were trained for."""
        return task_of(load_state(next(iter(find_files(self.paths[0]).ranks.values())), optimizer=False))

    def write(self, out: Path) -> Path:
        """Write the mean as one file, unless that was done before; return the file.

        Args:
            out: folder, which is made.

        Raises:
            ValueError: files are missing or do not belong together, or the checkpoints are of different models.
        """
        out.mkdir(parents=True, exist_ok=True)
        model = out / "model.pt"
        with alone_with(out):
            Stages(out).do("model", self.fingerprint(), partial(write_average, self.paths, model, merge=True), [model])
        return model


def task_of(state: State) -> str | None:
    """Return the name of fairseq's task that a checkpoint was trained for."""
    task = group(state, "task")
    return task.get("_name") or task.get("task")


def num_embeddings(state: State, kind: str) -> int:
    """Return for how many ``tokens`` or ``positions`` a model for language understanding has embeddings."""
    ending = f".sentence_encoder.embed_{kind}.weight"
    return next(len(weight) for name, weight in state["model"].items() if name.endswith(ending))


def check_translates(path: Path, task: str | None) -> None:
    """Raise ValueError if a checkpoint was trained for a task of fairseq that is no translation."""
    if otherwise := OTHERWISE.get(str(task)):
        raise ValueError(f"{path} {otherwise}")


def signature_of(state: State) -> dict[str, Any]:
    """Return what reproduces a checkpoint, by name: seed, experts, updates and the like."""
    model = group(state, "model")
    return {
        "arch": model.get("_name") or model.get("arch"),
        "experts": num_experts(state),
        "clusters": model.get("moec_cluster_count", 0),
        "seed": group(state, "common").get("seed"),
        "updates": num_updates(state),
    }


def select(path: Path, average: int | None, best: bool, kind: str | None) -> Selection:
    """Return the checkpoints that were asked for.

    Args:
        path: the ``save_dir`` of a training, or one checkpoint.
        average: how many of the last; None: ``AVERAGE``, or as many as there are.
        best: take ``checkpoint_best.pt`` instead.
        kind: ``epoch`` or ``update``, where the folder has both.

    Raises:
        ValueError: there are none, or fewer.
    """
    if (best or not path.is_dir()) and (average, kind) != (None, None):
        raise ValueError(f"--average and --by are for several checkpoints, but only one was asked for: {path}")
    if not path.is_dir():
        return Selection(path.name.removesuffix(".pt"), [path], path.parent)
    if best:
        return Selection("best", [path / "checkpoint_best.pt"], path)
    wanted = AVERAGE if average is None else average
    try:
        paths = last_checkpoints(path, wanted, kind, or_fewer=average is None)
    except ValueError as error:
        raise ValueError(f"{str(error).replace('--last', '--average').rstrip('.')}; or give --best") from error
    return Selection(f"last{len(paths)}", paths, path)


@dataclass(frozen=True)
class ModelFacts:
    """What a checkpoint says of itself.

    Attributes:
        data: the binary data of its training; of several folders the first, in which fairseq, too, looks for test data.
        source: language it translates from; None if the file does not say so.
        target: language it translates to, likewise.
        longest_source: most subwords of a source that it takes.
        truncates_sources: training truncated longer ones.
        written: when the file was, in ns.
        signature: seed, experts, updates and the like, by name.
        several: what it was told of several pairs of languages; None for a model of one pair.
    """

    data: Path
    source: str | None
    target: str | None
    longest_source: int
    truncates_sources: bool
    written: int
    signature: dict[str, Any]
    several: Multilingual | None = None


def first_folder(data: Path) -> Path:
    """Return the first of several folders of binary data, given with colons between them as fairseq takes them."""
    return Path(str(data).split(os.pathsep)[0])


def model_facts(path: Path) -> ModelFacts:
    """Read what a checkpoint, one file, says of itself.

    Raises:
        ValueError: it says what no training has written, or is of a model that does not translate.
    """
    written = path.stat().st_mtime_ns
    state = load_state(path, optimizer=False)
    check_translates(path, task_of(state))
    task, model = (group(state, name) for name in ("task", "model"))
    several = multilingual(task)
    # such a word takes a position, but fairseq truncates a source before it puts one in, and then finds it too long
    word_before = several is not None and several.mark is not None and not several.replaces_end
    return ModelFacts(
        first_folder(Path(str(task.get("data", "")))),
        task.get("source_lang"),
        task.get("target_lang"),
        # 1024: fairseq's
        min(int(options.get("max_source_positions") or 1024) for options in (task, model)) - word_before,
        bool(task.get("truncate_source")) and not word_before,
        written,
        signature_of(state),
        several,
    )


def data_of_directions(
    data: Path | None, facts: ModelFacts, source: str | None, target: str | None
) -> list["DataOfModel"]:
    """Return the data of each direction that is asked for: of models of many languages all that fit, else of one.

    The arguments are those of ``DataOfModel``.

    Raises:
        ValueError: there are no such data, or not for this model.
    """
    languages = _languages_of(_find_data(first_folder(data) if data else facts.data)[1], facts)
    pairs = languages.choose(source, target) if languages else [(source, target)]
    return [DataOfModel(data, facts, *pair) for pair in pairs]


def targets_of_data(data: Path) -> list[str]:
    """Return the languages that models of such data translate into; none if the names of the files leave it open."""
    binary, prepared = _find_data(first_folder(data))
    about = about_data(prepared)
    if "many" in about:
        return list(about["many"]) if about["target"] == MANY else [about["target"]]
    pairs = language_pairs(binary)
    return [pairs[0][1]] if len(pairs) == 1 else []


def _find_data(place: Path) -> tuple[Path, Path | None]:
    """Return binary data, and the folder of ``moec prepare`` around it, if there is one."""
    around = [folder for folder in (place, place.parent) if (folder / SENTENCEPIECE).is_file()]
    prepared = around[0] if around and (around[0] == place or place.name == "binary") else None
    return (prepared / "binary" if prepared else place), prepared


def about_data(prepared: Path | None) -> dict[str, Any]:
    """Return what a folder of ``moec prepare`` says of itself; nothing before version 0.3."""
    if prepared is None or not (prepared / PREPARED).is_file():
        return {}
    about: dict[str, Any] = json.loads((prepared / PREPARED).read_text(encoding="utf-8"))
    return about


def _languages_of(prepared: Path | None, facts: ModelFacts) -> Languages | None:
    """Return the languages of a model of ``moec prepare --targets`` or ``--sources``; None for others."""
    about = about_data(prepared)
    names = about.get("source"), about.get("target")
    if "many" not in about or facts.several or (facts.source or names[0], facts.target or names[1]) != names:
        return None
    return Languages(about["source"], about["target"], tuple(about["many"]))


class DataOfModel:
    """Where the data of a model are, and between which languages it translates.

    Args:
        data: binary data, or the folder of ``moec prepare`` around it; None: those of the training.
        facts: of the model.
        source: language to translate from, where the model leaves a choice.
        target: language to translate to, likewise.

    Attributes:
        binary: binary data.
        prepared: the folder of ``moec prepare``; None for binary data that others have made.
        source: language it translates from.
        target: language it translates to.
        many: the languages of a model that ``moec prepare`` made data of many languages for; else None.
        chosen: the pair of languages, if that was a choice, else "".
        mark: word that fairseq puts into sources to name a language, or "".

    Raises:
        ValueError: there are no such data, or not for this model.
    """

    def __init__(
        self, data: Path | None, facts: ModelFacts, source: str | None = None, target: str | None = None
    ) -> None:
        self.binary, self.prepared = _find_data(first_folder(data) if data else facts.data)
        if not self.binary.is_dir():
            raise ValueError(f"there is no folder {self.binary}; give --data, the data that the model was trained on")
        if kind := about_data(self.prepared).get("kind"):
            raise ValueError(
                f"{self.prepared} was prepared for language understanding ({kind}), but the model translates; give "
                "--data of its training"
            )
        self.many = _languages_of(self.prepared, facts)
        self.source, self.target = self._languages(facts, source, target)
        recorded = facts.source and facts.target
        is_choice = facts.several or self.many or (source and not recorded)
        self.chosen = f"{self.source}-{self.target}" if is_choice else ""
        self.mark = facts.several.source_mark(self.source, self.target) if facts.several else ""
        self._others = facts.several.dictionaries if facts.several else {}
        for side in ("source", "target"):
            self._check_dictionary(side, facts)

    def _languages(self, facts: ModelFacts, source: str | None, target: str | None) -> tuple[str, str]:
        """Return the languages of the model; of those that were given where it leaves a choice."""
        if facts.several:
            return facts.several.pair(source, target)
        if self.many:
            directions = self.many.choose(source, target)
            if len(directions) > 1:
                option = "--target-lang" if self.many.target == MANY else "--source-lang"
                raise ValueError(f"the model translates {self.many}; choose with {option}")
            return directions[0]
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
        names = self.many or self
        language = names.source if side == "source" else names.target
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

    def text(self) -> Path:
        """Return the folder that has the text of ``moec prepare`` in these languages."""
        assert self.prepared is not None
        text = self.prepared / "text"
        return text / (self.target if self.many.target == MANY else self.source) if self.many else text

    def subword_model(self) -> Path:
        """Return the sentencepiece model.

        Raises:
            ValueError: there is none.
        """
        if self.prepared is None:
            raise ValueError(
                "text can only be translated with the spm.model of moec prepare, which is not beside "
                f"{self.binary}; give --data of moec prepare, or leave out --test-set and --input"
            )
        return self.prepared / SENTENCEPIECE

    def binarise(self, sentences: Iterable[str], out: Path, translations: Iterable[str] | None = None) -> Path:
        """Segment and binarise plain text as that of the training was; see ``binarise_sentences``."""
        model = self.subword_model()
        dictionaries = [self.dictionary(side) for side in ("source", "target")]
        normalised = about_data(self.prepared).get("normalised", True)  # as all text was before version 0.3
        clean = normalise if normalised else normalise_space
        sentences = map(clean, sentences)
        translations = None if translations is None else map(clean, translations)
        if self.many:
            sentences = (f"{tag(self.target)} {sentence}" for sentence in sentences)
        return binarise_sentences(sentences, model, dictionaries, self.source, self.target, out, translations)

    def segmentation(self) -> str:
        """Return how words are segmented, as fairseq calls it, judged by the dictionary."""
        with self.dictionary("target").open(encoding="utf-8") as file:
            return "sentencepiece" if any(line.startswith(WORD_MARK) for line in file) else "subword_nmt"
