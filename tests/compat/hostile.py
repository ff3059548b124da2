"""Lets every command load checkpoints whose options are code, in this process, and prints as JSON what came of it.

Usage: python -m tests.compat.hostile FOLDER
"""

import contextlib
import copy
import io
import json
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq_cli import generate, interactive, preprocess, train, validate

from moec_fairseq.__main__ import main as moec
from moec_fairseq.models import MoECTransformerModel
from tests.conftest import USER_DIR

MARK = "ran-"
# what is done to files and by other programs; code that runs leaves a file
WATCHED = {f"os.{name}" for name in ("exec", "mkdir", "posix_spawn", "remove", "rename", "rmdir", "symlink", "system")}
WATCHED |= {"ctypes.dlopen", "import", "shutil.move", "shutil.rmtree", "socket.getaddrinfo", "subprocess.Popen"}
# fairseq fails for these with errors that do not name them: tried alone
ALONE = ("model._name", "task._name", "dataset.batch_size", "generation.constraints", "generation.print_alignment")

Place = tuple[Any, ...]


def name(place: Place) -> str:
    return ".".join(map(str, place))


def payload(place: Place) -> str:
    """Return code that leaves a file of its own; without dots and slashes also a name of folders and packages."""
    return f"open('{MARK}{'-'.join(map(str, place))}','w')"


def leaves(tree: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Yield all values of a configuration, also those in its lists."""
    if isinstance(tree, (dict, list)):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from leaves(value, (*place, key))
    else:
        yield place, tree


class Attack:
    """Checkpoints like one, but with payloads, and the commands that load them.

    Attributes:
        done: what a command did with a payload: run it, import it, write to it, hand it on.
    """

    def __init__(self, base: Path, file: Path, commands: dict[str, Callable[[], None]]) -> None:
        self.state = torch.load(base, weights_only=True)
        self.state.pop("last_optimizer_state")
        self.file, self.commands = file, commands
        self.done: set[str] = set()
        self.running = ""
        sys.addaudithook(self._see)

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if self.running and (writes or event in WATCHED) and MARK in (what := str(arguments)):
            self.done.add(f"{self.running}: {event} {what}")

    def run(self, command: str, places: list[Place], old: bool = False) -> str | None:
        """Return the error of a command, None if there is none; ``old``: with ``args`` instead of ``cfg``."""
        config = copy.deepcopy(self.state["cfg"])
        for *path, last in places:
            tree = config
            for key in path:
                tree = tree[key]
            tree[last] = payload((*path, last))
        state = {**self.state, "cfg": config}
        if old:
            names = {"arch": config["model"]["_name"], "task": "translation", "criterion": config["criterion"]["_name"]}
            flat = [item for group in config.values() if isinstance(group, dict) for item in group.items()]
            state |= {"args": Namespace(**dict(flat) | names), "cfg": None}
        torch.save(state, self.file)
        self.running = command
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                self.commands[command]()
        except (Exception, SystemExit) as error:
            return f"{type(error).__name__}: {error}"
        finally:
            self.running = ""
        return None

    def sweep(self, command: str, places: list[Place]) -> tuple[list[Place], dict[Place, str]]:
        """Run without the options that errors name until there is no error; return the options left, and the errors."""
        failed: dict[Place, str] = {}
        for place in (place for place in places if name(place) in ALONE):
            failed[place] = self.run(command, [place]) or ""
        while (error := self.run(command, left := [place for place in places if place not in failed])) is not None:
            named = [place for place in left if payload(place) in error]
            if len(named) != 1:
                named = left
                while len(named) > 1:
                    half = len(named) // 2
                    named = named[:half] if self.run(command, named[:half]) else named[half:]
                error = self.run(command, named) or error
            failed[named[0]] = error
        return left, failed


def training(*arguments: object) -> Any:
    return convert_namespace_to_omegaconf(
        options.parse_args_and_arch(options.get_training_parser(), input_args=list(map(str, arguments)))
    )


def main(folder: Path) -> None:
    """Train on three sentences, then attack."""
    os.chdir(folder)
    parts = ("train", "valid", "test")
    for part in parts:
        for language in ("src", "tgt"):
            Path(f"{part}.{language}").write_text("a b c\nb c\nc a b\n")
    texts = [argument for part in parts for argument in (f"--{part}pref", part)]
    parser = options.get_preprocessing_parser()
    preprocess.main(parser.parse_args(["-s", "src", "-t", "tgt", *texts, "--destdir", "bin", "--joined-dictionary"]))

    file, plugin = folder / "checkpoint.pt", ["bin", "--user-dir", str(USER_DIR), "--cpu", "--num-workers", "0"]
    sizes = [a for side in ("encoder", "decoder") for size in ("", "-ffn") for a in (f"--{side}{size}-embed-dim", 8)]
    restore = training(
        *plugin, "--arch", "moec_transformer_tiny", *sizes, "--max-tokens", 100, "--max-update", 1, "--optimizer",
        "adam", "--criterion", "moec_label_smoothed_cross_entropy", "--disable-validation", "--no-epoch-checkpoints",
    )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        train.main(copy.deepcopy(restore))
    restore.checkpoint.no_save = True
    finetune = copy.deepcopy(restore)
    restore.checkpoint.restore_file, restore.checkpoint.reset_optimizer = str(file), True
    finetune.checkpoint.finetune_from_model, finetune.checkpoint.save_dir = str(file), "new"

    search = [*plugin, "--path", str(file), "--beam", "1", "--max-len-b", "3"]
    translate = convert_namespace_to_omegaconf(
        options.parse_args_and_arch(options.get_generation_parser(interactive=True), input_args=search)
    )
    translate.interactive.input, translate.dataset.batch_size = "valid.src", 1
    given = Namespace(data="bin", task="translation", path=str(file), user_dir=str(USER_DIR), cpu=True)

    def hub() -> None:
        model = MoECTransformerModel.from_pretrained(str(folder), file.name, data_name_or_path=str(folder / "bin"))
        model.translate("a b", beam=1, max_len_b=3)

    def tool(*arguments: str) -> Callable[[], None]:
        def run() -> None:
            sys.argv = ["moec", "checkpoint", *arguments]
            with contextlib.redirect_stderr(io.StringIO()) as errors:
                if moec() != 0:
                    raise ValueError(errors.getvalue())

        return run

    commands = {
        "hub": hub,
        "fairseq-generate": lambda: generate.main(translate),
        "fairseq-interactive": lambda: interactive.main(translate),
        "fairseq-validate": lambda: validate.main(translate, override_args=copy.deepcopy(given)),
        "fairseq-train --restore-file": lambda: train.main(restore),
        "fairseq-train --finetune-from-model": lambda: train.main(finetune),
        "moec checkpoint info": tool("info", file.name),
        "moec checkpoint merge": tool("merge", file.name, "--out", "out.pt"),
        "moec checkpoint reshard": tool("reshard", file.name, "--ranks", "2", "--out", "shards/"),
        "moec checkpoint average": tool("average", file.name, "--out", "out.pt"),
    }
    attack = Attack(folder / "checkpoints/checkpoint_last.pt", file, commands)
    places = [p for p, value in leaves(attack.state["cfg"]) if value is None or isinstance(value, str) or len(p) > 2]
    for place in places:  # what an import of it would find
        package = Path(payload(place))
        package.mkdir()
        (package / "__init__.py").write_text(payload(("import", *place)))

    harmless, failed = attack.sweep("hub", places)
    evaluated = [place for place, error in failed.items() if "is not evaluated" in error]
    together = [place for place in harmless if place[0] != "criterion"]  # which fairseq-validate builds
    results = {
        "places": list(map(name, places)),
        "failed": {name(place): error for place, error in failed.items()},
        "evaluated": {command: attack.run(command, evaluated) for command in commands},
        "harmless": {command: attack.run(command, together) for command in commands},
        "criterion": {name(p): attack.run("fairseq-validate", [p]) for p in places if p[0] == "criterion"},
        "old": attack.run("hub", evaluated, old=True),
        "unchanged, old": attack.run("hub", [], old=True),
        "done": sorted(attack.done | {str(file) for file in Path().rglob(f"{MARK}*")}),
    }
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
