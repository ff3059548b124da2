"""From a checkpoint and a test set to a report."""

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from moec_fairseq.checkpoint.state import group, load_state
from moec_fairseq.data.gpt2_bpe import GPT2_BPE, Gpt2Model
from moec_fairseq.data.multilingual import MANY
from moec_fairseq.data.text import normalise_space, raw_lines
from moec_fairseq.evaluate.generate import Search, generate, read_hypotheses
from moec_fairseq.evaluate.model import (
    FINE_TUNED,
    MASKED_LM,
    DataOfModel,
    ModelFacts,
    data_of_directions,
    first_folder,
    model_facts,
    signature_of,
    task_of,
)
from moec_fairseq.evaluate.routing import ModelOnData
from moec_fairseq.evaluate.sets import TextSet, Wanted, choose
from moec_fairseq.evaluate.translate import data_beside, find_checkpoint, in_one_file
from moec_fairseq.report.collect import Reading, survey
from moec_fairseq.report.page import NUMBERS, PAGE, write
from moec_fairseq.report.tables import Reported, information_of
from moec_fairseq.util.progress import Headlines, history

LOG = "rank-0.log"  # of a training, where moec quickstart, glue and study put it


def report(
    model: Path,
    against: Path | None,
    log: list[Path],
    data: Path | None,
    source_lang: str | None,
    target_lang: str | None,
    subset: str | None,
    test_set: str | None,
    text: Path | None,
    references: list[Path],
    sentences: int,
    max_tokens: int,
    cpu: bool,
    out: Path | None,
) -> None:
    """Report what the experts of a model do, or of two side by side; the arguments are the options of ``moec report``.

    Raises:
        ValueError: something is wrong with what was given.
    """
    if sentences < 0:
        raise ValueError(f"--sentences is {sentences}; give 0 or more")
    wanted = Wanted(subset, test_set, text, references, None, source_lang, target_lang)
    if references and not text:
        raise ValueError("--references are the translations of --input; give both")
    checkpoints = [find_checkpoint(path) for path in (model, against) if path]
    logs = _logs(checkpoints, log)
    names = [_name(checkpoint) for checkpoint in checkpoints]
    if len(set(names)) < len(names):
        raise ValueError(f"--against {against} is the model itself; give another one")
    headlines = Headlines(len(checkpoints) + 1)
    with TemporaryDirectory(prefix="moec-report-") as folder:
        runs = [
            _Run(checkpoint, name, log, Path(folder, str(number)))
            for number, (checkpoint, name, log) in enumerate(zip(checkpoints, names, logs, strict=True))
        ]
        for run in runs:
            run.prepare(data, wanted, max_tokens, cpu)
        _check_same(runs)
        reported = []
        for run, other in zip(runs, reversed(runs), strict=True):
            headlines.show(f"Following the tokens through {run.name}")
            reported.append(run.report(sentences, other.clusters))
    headlines.show("Drawing and writing")
    out = out or checkpoints[0].parent / "report" / f"{checkpoints[0].name.removesuffix('.pt')}-{wanted.name}"
    write(reported, out)
    print(f"{out}: {PAGE}, {NUMBERS}, tables as CSV, pictures as PNG and SVG ({headlines.duration()})")


def _logs(checkpoints: Sequence[Path], given: Sequence[Path]) -> list[Path | None]:
    """Return the log of each model's training, if there is one.

    Raises:
        ValueError: more logs were given than models, or one is not there.
    """
    if len(given) > len(checkpoints):
        raise ValueError(f"--log names {len(given)} logs, but there are {len(checkpoints)} models; give one for each")
    for path in given:
        if not path.is_file():
            raise ValueError(f"there is no log {path}; give the rank-0.log of the training")
    beside = [checkpoint.parent / LOG for checkpoint in checkpoints[len(given) :]]
    return [*given, *(path if path.is_file() else None for path in beside)]


def _name(checkpoint: Path) -> str:
    """Return what to call a model: its file and the last two folders of its training."""
    return "/".join([*checkpoint.resolve().parts[-3:-1], checkpoint.name.removesuffix(".pt")])


def _check_same(runs: Sequence["_Run"]) -> None:
    """Raise ValueError unless all models read the same sentences."""
    if len({run.content for run in runs}) > 1:
        raise ValueError(
            f"{' and '.join(run.name for run in runs)} would read different sentences; give --data, or the text itself "
            "with --input"
        )


class _Run:
    """A model that is reported on.

    Args:
        checkpoint: NAME.pt.
        name: of the model.
        log: of its training; None: there is none.
        scratch: folder for what has to be made.

    Attributes:
        content: changes when what it reads does.
        clusters: number of clusters that its experts form.
    """

    def __init__(self, checkpoint: Path, name: str, log: Path | None, scratch: Path) -> None:
        scratch.mkdir()
        self.name = name
        self.log = log
        self.scratch = scratch
        self.checkpoint = checkpoint
        self.file = in_one_file(checkpoint, scratch)
        state = load_state(self.file, optimizer=False)
        self.task = task_of(state)
        self.signature = signature_of(state)
        self.clusters = int(self.signature["clusters"] or 1)
        self.trained_on = first_folder(Path(str(group(state, "task").get("data", ""))))
        self.content = ""
        self.set = ""
        self.readings: list[Reading] = []

    def prepare(self, data: Path | None, wanted: Wanted, max_tokens: int, cpu: bool) -> None:
        """Find what the model is to read.

        Raises:
            ValueError: there is no such set, or it is not for this model.
        """
        of_languages = (wanted.test_set, wanted.text, wanted.source_lang, wanted.target_lang)
        if self.task not in (MASKED_LM, FINE_TUNED):
            facts = model_facts(self.file)
            place = data or data_beside(self.checkpoint, facts.data)
            self.readings = list(self._translations(place, facts, wanted, Search(max_tokens=max_tokens, cpu=cpu)))
        elif any(of_languages):
            raise ValueError(
                f"{self.checkpoint} does not translate; give a part of its data with --subset and --data, and leave "
                "out --test-set, --input, --source-lang and --target-lang"
            )
        else:
            place = data or self.trained_on
            subset = wanted.subset or "valid"
            self.set, self.content = f"{place.resolve().name}/{subset}", f"{place.resolve()} {subset}"
            self.readings = [Reading("", subset, partial(ModelOnData, self.file, place, max_tokens, cpu), _gpt2(place))]

    def _translations(self, data: Path | None, facts: ModelFacts, wanted: Wanted, search: Search) -> Iterator[Reading]:
        """Yield what is read in each direction of a model that translates."""
        contents = []
        places = data_of_directions(data, facts, wanted.source_lang, wanted.target_lang)
        for number, place in enumerate(places):
            folder = self.scratch / f"input{number}"
            if wanted.is_of_data:
                name, content = f"{place.name}/{wanted.part}", str(place.binary.resolve())
                binary, subset, pair = _part_of_data(place, wanted.part)
            else:
                chosen = choose(place, wanted)
                assert isinstance(chosen, TextSet)
                name, content, subset, pair = chosen.name, chosen.checksum(), "test", (place.source, place.target)
                translations = (
                    chosen.references[0] if chosen.references else self._own(place, facts, chosen, search, folder)
                )
                binary = place.binarise(chosen.source, folder, translations)
            contents.append(f"{content} {subset} {pair}")
            self.set = f"{name} {', '.join(place.chosen for place in places)}".rstrip()
            # a word that names the language is a class of tokens only where there are several
            language = place.chosen if len(places) > 1 else ""
            yield Reading(
                language, subset, partial(ModelOnData, self.file, binary, search.max_tokens, search.cpu, pair)
            )
        self.content = "\n".join(contents)

    def _own(self, place: DataOfModel, facts: ModelFacts, chosen: TextSet, search: Search, folder: Path) -> list[str]:
        """Return the model's own translations of sentences that have none."""
        print(f"{chosen.name} has no translations (--references); the model makes its own", flush=True)
        binarised = chosen.binarised(place, folder)
        log = folder / "generate.log"
        count = generate(self.file, facts, binarised, place.source, place.target, search, log, sys.stdout)
        return [normalise_space(best.text) for best, *_ in read_hypotheses(raw_lines(log), count)]

    def report(self, sentences: int, groups: int) -> Reported:
        """Let the model read.

        Args:
            sentences: to show of each direction.
            groups: clusters of the model that it is compared with.
        """
        found = survey(self.readings, sentences, groups)
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log else []
        train, valid = history(lines)
        return Reported(self.name, self.signature, self.set, found, information_of(found), train, valid)


def _part_of_data(place: DataOfModel, part: str) -> tuple[Path, str, tuple[str, str]]:
    """Return the binary data that have a part of the data of a model, its name there, and the languages there."""
    if place.many is None:
        return place.binary, part, (place.source, place.target)
    language = place.target if place.many.target == MANY else place.source
    return place.binary, f"{part}-{language}", (place.many.source, place.many.target)


def _gpt2(data: Path) -> Gpt2Model | None:
    """Return GPT-2's BPE if its files are with the data."""
    found = [folder for folder in (data, data.parent) if all((folder / name).is_file() for name in GPT2_BPE)]
    return Gpt2Model(found[0]) if found else None
